"""Every format through the engine of one process: it learns, and a resumed run continues bit for
bit."""

from collections.abc import Callable

import pytest
import torch
from torch import nn

from launcher.config import load
from launcher.contracts import (
    BatchPlan,
    Clipping,
    EngineParts,
    MicroBatch,
    OptimizerOption,
    PrecisionOption,
    Request,
    Window,
    World,
)
from launcher.errors import CheckpointError
from launcher.parallelism import SingleEngine
from tests.parallelism.test_single import tensors
from tests.tasks import LogitsTask, mean_loss

Build = Callable[..., PrecisionOption]


@pytest.fixture(scope="module")
def adamw() -> OptimizerOption:
    return load.load_config(["optimizer=adamw", "scheduler=constant"]).config.optimizer


def engine(precision: PrecisionOption, optimizer: OptimizerOption) -> SingleEngine:
    torch.manual_seed(0)
    module = nn.Sequential(nn.Embedding(11, 16), nn.Linear(16, 16), nn.ReLU(), nn.Linear(16, 11))
    return SingleEngine(
        EngineParts(
            module=module,
            task=LogitsTask("input", "ids"),
            optimizer=optimizer,
            precision=precision,
            clipping=Clipping(1.0, None),
            skip_nonfinite=False,
            world=World(0, 1, 0, "cpu"),
            plan=BatchPlan(1, 1, 1, 1),
            requests=lambda: Request.NONE,
        )
    )


def window(step: int) -> Window:
    ids = torch.randint(11, (24,), generator=torch.Generator().manual_seed(step))
    inputs = {"ids": ids, "labels": (ids * 3 + 1) % 11}
    return Window([MicroBatch(inputs, 24, range(24))], num_samples=24, num_targets=24)


def train(live: SingleEngine, steps: range) -> list[float]:
    losses = []
    for step in steps:
        losses.append(live.forward_backward(window(step)).item())
        live.update(1e-2)
    return losses


PRESETS = ["fp32", "bf16", "bf16_full_eval", "fp16", "bf16_pure", "bf16_pure_stochastic"]


@pytest.mark.parametrize("preset", PRESETS)
def test_learns_and_goes_on_bit_for_bit(
    build_option: Build, adamw: OptimizerOption, preset: str
) -> None:
    # A scale that doubles and overflows in a few steps, so that its state matters.
    changes = {"growth_interval": 2, "init_scale": 2.0**22} if preset == "fp16" else {}
    option = build_option(preset, **changes)
    first, second = engine(option, adamw), engine(option, adamw)
    losses = train(first, range(20))
    saved = {name: tensor.clone() for name, tensor in tensors(first).items()}
    second.state()
    second.load_state(saved)
    assert train(first, range(20, 30)) == train(second, range(20, 30))
    for name, tensor in tensors(first).items():
        assert torch.equal(tensor, tensors(second)[name]), name
    assert losses[-1] < 0.8 * losses[0]
    assert mean_loss(first, window(30).micro_batches) < losses[-1] + 0.1


@pytest.mark.parametrize(
    ("saved", "live", "message"),
    [
        ("fp16", "bf16", "nothing needs loss_scale, good_updates any more"),
        ("bf16", "fp16", "loss_scale starts at 65536"),
    ],
)
def test_a_run_may_go_on_in_another_format_of_the_same_weights(
    build_option: Build,
    adamw: OptimizerOption,
    caplog: pytest.LogCaptureFixture,
    saved: str,
    live: str,
    message: str,
) -> None:
    """As we advise where float16 overflows however small the scale is."""
    first, second = engine(build_option(saved), adamw), engine(build_option(live), adamw)
    losses = train(first, range(10))
    second.load_state({name: tensor.clone() for name, tensor in tensors(first).items()})
    assert message in caplog.text
    assert train(second, range(10, 30))[-1] < losses[-1]
    for name, tensor in tensors(second).items():
        assert name.startswith(("model.", "optimizer.", "precision."))
        assert tensor.isfinite().all()


@pytest.mark.parametrize(
    ("saved", "live"), [("fp32", "bf16_pure"), ("bf16_pure", "bf16_pure_stochastic")]
)
def test_a_state_of_other_weights_is_refused(
    build_option: Build, adamw: OptimizerOption, saved: str, live: str
) -> None:
    first = engine(build_option(saved), adamw)
    train(first, range(2))
    with pytest.raises(CheckpointError, match="another"):
        engine(build_option(live), adamw).load_state(first.state())
