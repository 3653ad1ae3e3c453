"""Saving and resuming while some parameters, or all, have not been updated yet."""

from __future__ import annotations

import logging

import pytest
import torch
from torch import Tensor, nn
from typing_extensions import override

from launcher.config import load
from launcher.contracts import (
    BatchPlan,
    Clipping,
    EngineParts,
    MicroBatch,
    PrecisionOption,
    Request,
    Window,
    World,
)
from launcher.parallelism import SingleEngine
from tests.parallelism.test_single import Toy, optimizer_option, ragged, tensors, window
from tests.tasks import LogitsTask

PRECISIONS = ["fp32", "bf16_pure", "bf16_pure_stochastic", "fp16"]


class Branching(Toy):
    """A layer that is used from a certain forward pass on, and one that never is."""

    def __init__(self) -> None:
        super().__init__()
        self.late = nn.Linear(8, 8)
        self.never = nn.Linear(8, 8)
        self.uses_late = False

    @override
    def forward(self, ids: Tensor) -> Tensor:
        hidden = torch.tanh(self.hidden(self.embed(ids)))
        logits: Tensor = self.head(self.norm(self.late(hidden) if self.uses_late else hidden))
        return logits


def precision_option(preset: str) -> PrecisionOption:
    return load.load_config([f"precision={preset}"]).config.precision


def poisoned(good: Window) -> Window:
    """The window, but its loss is not a number."""
    pieces = [
        MicroBatch({**m.inputs, "weight": torch.tensor(float("nan"))}, m.num_targets, m.indices)
        for m in good.micro_batches
    ]
    return Window(pieces, good.num_samples, good.num_targets)


def engine(precision: PrecisionOption, seed: int = 0) -> SingleEngine:
    torch.manual_seed(seed)
    return SingleEngine(
        EngineParts(
            module=Branching(),
            task=LogitsTask("ids", "input_ids"),
            optimizer=optimizer_option(),
            precision=precision,
            clipping=Clipping(1.0, None),
            skip_nonfinite=True,
            world=World(0, 1, 0, "cpu"),
            plan=BatchPlan(1, 1, 1, 1),
            requests=lambda: Request.NONE,
        )
    )


def batches() -> list[Window]:
    return [window(ids, labels, 8) for ids, labels in ragged(9, 8)]


def train(live: SingleEngine, windows: list[Window], *, late: bool) -> list[float]:
    module = live.module
    assert isinstance(module, Branching)
    module.train()
    module.uses_late = late
    losses = []
    for each in windows:
        losses.append(live.forward_backward(each).item())
        live.update(1e-2)
    return losses


def moved(live: SingleEngine, precision: PrecisionOption) -> SingleEngine:
    """Return another engine that continues from the state of this one, as in a resumed run."""
    saved = {name: tensor.clone() for name, tensor in tensors(live).items()}
    other = engine(precision, seed=1)
    assert other.state().keys() >= saved.keys()
    other.load_state(saved)
    assert other.state().keys() == saved.keys()
    return other


@pytest.mark.parametrize("preset", PRECISIONS)
def test_a_parameter_without_gradient_does_not_keep_a_run_from_going_on(preset: str) -> None:
    precision, windows = precision_option(preset), batches()
    first = engine(precision)
    train(first, windows[:3], late=False)
    assert not [name for name in first.state() if name.startswith("optimizer.never")]
    second = moved(first, precision)
    for part, late in ((windows[3:5], False), (windows[5:], True)):
        assert train(first, part, late=late) == train(second, part, late=late)
    for name, tensor in tensors(first).items():
        assert torch.equal(tensor, tensors(second)[name]), name


@pytest.mark.parametrize("preset", PRECISIONS)
def test_a_save_before_the_first_update_changes_nothing(preset: str) -> None:
    """As when the first steps are skipped: they are done, and can be saved, but nothing moved."""
    precision, windows = precision_option(preset), batches()
    quiet, saving = engine(precision), engine(precision)
    for live in (quiet, saving):
        live.forward_backward(poisoned(windows[0]))
        assert not live.update(1e-2).applied
    assert not [name for name in saving.state() if name.startswith("optimizer.")]
    resumed = moved(saving, precision)
    losses = train(quiet, windows[1:], late=False)
    assert train(saving, windows[1:], late=False) == losses
    assert train(resumed, windows[1:], late=False) == losses
    for name, tensor in tensors(quiet).items():
        assert torch.equal(tensor, tensors(saving)[name]), name
        assert torch.equal(tensor, tensors(resumed)[name]), name


def test_parameters_that_take_no_part_are_named_once(caplog: pytest.LogCaptureFixture) -> None:
    live, windows = engine(precision_option("fp32")), batches()
    with caplog.at_level(logging.WARNING, "trainctl.engine"):
        train(live, windows, late=False)
    [record] = caplog.records
    assert "without a gradient" in record.getMessage()
    assert "late.weight, late.bias, never.weight, never.bias;" in record.getMessage()
