from collections.abc import Callable
from functools import cache
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
import torch
from torch import Tensor, nn
from typing_extensions import override

from launcher.config import load
from launcher.contracts import OptimizerOption, OptimizerTarget, Precision, PrecisionOption
from launcher.errors import ConfigError
from launcher.optimizer._blockwise.adafactor_small import SmallTensors
from launcher.precision._pure import PureBf16
from launcher.precision._rounding import Compensated

Build = Callable[..., PrecisionOption]

OPTIMIZERS = sorted(
    path.stem
    for path in (Path(__file__).parent.parent.parent / "conf" / "optimizer").glob("[!_]*.yaml")
)


def network(dtype: torch.dtype) -> nn.Sequential:
    torch.manual_seed(5)
    layers = [nn.Linear(16, 24), nn.LayerNorm(24), nn.Linear(24, 16, bias=False)]
    return nn.Sequential(*layers).to(torch.bfloat16).to(dtype)


def give_gradients(module: nn.Module, step: int) -> None:
    generator = torch.Generator().manual_seed(100 + step)
    for param in module.parameters():
        grad = torch.randn(param.shape, generator=generator)
        param.grad = grad.bfloat16().to(param.dtype)


@cache
def optimizer_option(preset: str) -> OptimizerOption:
    words = [f"optimizer={preset}", "scheduler=constant", "max_grad_norm=null"]
    return load.load_config(words).config.optimizer


def built(
    option: OptimizerOption, module: nn.Module, precision: Precision | None = None
) -> torch.optim.Optimizer:
    try:
        if precision is None:
            optimizer = option.build(OptimizerTarget(module, "cpu"))
        else:
            optimizer = precision.build_optimizer(option, OptimizerTarget(module, "cpu"))
    except ConfigError as error:
        pytest.skip(str(error).splitlines()[-1].strip())
    for group in optimizer.param_groups:
        if option.lr is not None:
            group["lr"] = option.lr * group["lr_scale"]
    return optimizer


def exact(param: Tensor, optimizer: torch.optim.Optimizer) -> Tensor:
    """Return the float32 value of weight and remainder."""
    value = torch.empty(param.shape)
    Compensated().widen(param, value, optimizer.state[param])
    return value


def take_steps(model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    # RAdam moves nothing before its sixth step.
    for step in range(8):
        # Some optimizers draw projections from the global generator.
        torch.manual_seed(step)
        give_gradients(model, step)
        optimizer.step()
        optimizer.zero_grad()


@pytest.mark.parametrize("chunk_bytes", [8 * 500, 2**30])
@pytest.mark.parametrize("preset", OPTIMIZERS)
def test_kahan_follows_float32_master_weights_bit_for_bit(
    preset: str, chunk_bytes: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    option = optimizer_option(preset)
    master, module = network(torch.float32), network(torch.bfloat16)
    reference = built(option, master)
    optimizer = built(option, module, PureBf16(Compensated(), chunk_bytes=chunk_bytes))
    if chunk_bytes < 2**20:
        # Adafactor rounds differently when it steps a whole group at once, not a chunk of it.
        monkeypatch.setattr(SmallTensors, "of", lambda *_: None)
    take_steps(master, reference)
    take_steps(module, optimizer)
    moved = False
    for param, expected in zip(module.parameters(), master.parameters(), strict=True):
        assert param.dtype == torch.bfloat16
        assert torch.equal(exact(param, optimizer), expected)
        moved |= not torch.equal(expected, expected.bfloat16().float())
    assert moved


def stepping(
    make: Callable[..., torch.optim.Optimizer],
    module: nn.Module,
    precision: Precision | None = None,
    **options: Any,
) -> Any:
    """An optimizer of torch's, as a precision has it built."""

    def build(target: OptimizerTarget) -> torch.optim.Optimizer:
        return make(target.module.parameters(), **options)

    option = cast("OptimizerOption", SimpleNamespace(build=build))
    precision = precision or PureBf16(Compensated(), chunk_bytes=2**20)
    return precision.build_optimizer(option, OptimizerTarget(module, "cpu"))


@pytest.mark.parametrize("preset", ["bf16_pure", "bf16_pure_stochastic"])
def test_updates_below_the_last_bit_are_not_lost(build_option: Build, preset: str) -> None:
    precision = build_option(preset).build("cpu")
    module = nn.Linear(64, 64, bias=False)
    nn.init.ones_(module.weight)
    precision.prepare(module)
    # A thousandth of the last bit of 1.0: plain bfloat16 would never change.
    optimizer = stepping(torch.optim.SGD, module, precision, lr=2**-18)
    for _ in range(2000):
        module.weight.grad = -torch.ones_like(module.weight)
        optimizer.step()
    assert module.weight.float().mean().item() == pytest.approx(1 + 2000 * 2**-18, abs=2e-3)


def test_moments_are_float32_and_the_optimizer_is_itself_between_steps(build_option: Build) -> None:
    precision = build_option("bf16_pure").build("cpu")
    module = network(torch.float32)
    precision.prepare(module)
    params = list(module.parameters())
    optimizer = stepping(torch.optim.AdamW, module, precision, lr=1e-3)
    give_gradients(module, 0)
    optimizer.step()
    assert all(a is b for a, b in zip(optimizer.param_groups[0]["params"], params, strict=True))
    assert set(optimizer.state) == set(params)
    for param in params:
        state = optimizer.state[param]
        assert set(state) == {"step", "exp_avg", "exp_avg_sq", "low_bits"}
        assert state["exp_avg"].dtype == torch.float32
    assert all(param.grad is not None for param in params)


def test_options_of_a_group_reach_the_step_and_come_back() -> None:
    module = nn.Linear(4, 4, bias=False).to(torch.bfloat16)

    class Counting(torch.optim.SGD):
        @override
        def step(self, closure: Any = None) -> Any:
            for group in self.param_groups:
                group["lr"] *= 2
                group["count"] = group.get("count", 0) + 1

    optimizer = stepping(Counting, module, lr=1.0)
    optimizer.param_groups[0]["lr"] = 0.25
    optimizer.step()
    optimizer.step()
    assert optimizer.param_groups[0]["lr"] == 1.0
    assert optimizer.param_groups[0]["count"] == 2


def test_float32_copies_exist_a_chunk_at_a_time() -> None:
    module = nn.ModuleList(nn.Linear(32, 32, bias=False) for _ in range(8)).to(torch.bfloat16)
    seen: list[list[int]] = []

    class Watched(torch.optim.SGD):
        @override
        def step(self, closure: Any = None) -> Any:
            seen.append([p.numel() for group in self.param_groups for p in group["params"]])
            assert {p.dtype for g in self.param_groups for p in g["params"]} == {torch.float32}
            return super().step(closure)

    def make(params: Any, lr: float) -> torch.optim.Optimizer:
        copies = list(params)
        return Watched([{"params": copies[:3]}, {"params": copies[3:]}], lr=lr)

    optimizer = stepping(make, module, PureBf16(Compensated(), chunk_bytes=2 * 1024 * 8), lr=0.1)
    give_gradients(module, 0)
    optimizer.step()
    assert seen == [[1024, 1024]] * 4


@pytest.mark.parametrize("preset", ["adamw", "adafactor", "stable_adamw", "lamb"])
def test_float32_weights_take_one_step_however_many_chunks_there_are(preset: str) -> None:
    ends = []
    for chunk_bytes in (8 * 500, 2**30):
        module = network(torch.bfloat16)
        module[1].float()
        optimizer = built(
            optimizer_option(preset), module, PureBf16(Compensated(), chunk_bytes=chunk_bytes)
        )
        take_steps(module, optimizer)
        assert all(param.grad is None for param in module.parameters())
        ends.append(module.get_parameter("1.weight").detach())
    torch.testing.assert_close(ends[0], ends[1], rtol=1e-5, atol=1e-6)


def test_parameters_without_gradient_or_of_another_format_are_left_alone() -> None:
    module = network(torch.bfloat16)
    module[1].float()
    before = {name: param.clone() for name, param in module.named_parameters()}
    optimizer = stepping(torch.optim.AdamW, module, lr=0.1)
    give_gradients(module, 0)
    module[0].bias.grad = None
    optimizer.step()
    after = dict(module.named_parameters())
    assert torch.equal(after["0.bias"], before["0.bias"])
    assert after["1.weight"].dtype == torch.float32
    assert "low_bits" not in optimizer.state[after["1.weight"]]
    assert not torch.equal(after["1.weight"], before["1.weight"])


def test_state_made_at_construction_is_float32() -> None:
    module = network(torch.bfloat16)
    optimizer = stepping(torch.optim.Adagrad, module, lr=0.1)
    give_gradients(module, 0)
    optimizer.step()
    assert {optimizer.state[p]["sum"].dtype for p in module.parameters()} == {torch.float32}


def test_an_optimizer_with_other_weights_for_evaluation_gets_its_own_back() -> None:
    option = optimizer_option("schedule_free_adamw")
    module = network(torch.bfloat16)
    optimizer: Any = built(option, module, PureBf16(Compensated(), chunk_bytes=2**20))
    for step in range(3):
        give_gradients(module, step)
        optimizer.step()
    trained = [exact(param, optimizer) for param in module.parameters()]
    optimizer.eval()
    averaged = [exact(param, optimizer) for param in module.parameters()]
    optimizer.eval()
    optimizer.train()
    back = [exact(param, optimizer) for param in module.parameters()]
    assert any(not torch.equal(a, b) for a, b in zip(trained, averaged, strict=True))
    assert all(torch.equal(a, b) for a, b in zip(trained, back, strict=True))


def test_the_rounding_goes_on_where_it_was(build_option: Build) -> None:
    first = build_option("bf16_pure_stochastic").build("cpu")
    assert first.state().keys() == {"rounding_step"}
    second = build_option("bf16_pure_stochastic").build("cpu")
    module, other = network(torch.bfloat16), network(torch.bfloat16)
    optimizer = stepping(torch.optim.SGD, module, first, lr=1e-3)
    give_gradients(module, 0)
    optimizer.step()
    other.load_state_dict(module.state_dict())
    second.load_state(first.state())
    resumed = stepping(torch.optim.SGD, other, second, lr=1e-3)
    for model, steps in ((module, optimizer), (other, resumed)):
        give_gradients(model, 1)
        steps.step()
    assert all(
        torch.equal(a, b) for a, b in zip(module.parameters(), other.parameters(), strict=True)
    )


def test_a_closure_is_refused() -> None:
    module = network(torch.bfloat16)
    optimizer = stepping(torch.optim.AdamW, module, lr=0.1)
    with pytest.raises(ValueError, match="closure"):
        optimizer.step(lambda: 0.0)
