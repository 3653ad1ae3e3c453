"""Parameters that no update has reached: every kind of optimizer, saved and resumed bit for bit."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from launcher.config import load
from launcher.contracts import OptimizerOption, OptimizerTarget, Precision
from launcher.errors import CheckpointError
from launcher.parallelism._optimizer_state import (
    load_optimizer,
    optimizer_template,
    optimizer_tensors,
)
from tests.contract.test_optimizers import (
    PRESETS,
    Network,
    build,
    copies,
    distance,
    network,
    packaged,
    same,
)

IDLE = ("temperature", "blocks.1.dense.weight")


def names(module: Network) -> dict[Tensor, str]:
    return {param: name for name, param in module.named_parameters()}


def take_steps(
    module: Network,
    optimizer: torch.optim.Optimizer,
    option: OptimizerOption,
    steps: int,
    *,
    idle: bool,
) -> None:
    """Steps in which some parameters may take no part."""
    for _ in range(steps):
        distance(module).backward()  # type: ignore[no-untyped-call]
        for name in IDLE if idle else ():
            module.get_parameter(name).grad = None
        for group in optimizer.param_groups:
            if option.lr is not None:
                group["lr"] = option.lr * group["lr_scale"]
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)


def saved(module: Network, optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    tensors = optimizer_tensors(optimizer, names(module))
    return {key: value.detach().clone() for key, value in tensors.items()}


def moved(
    module: Network, optimizer: torch.optim.Optimizer, option: OptimizerOption
) -> tuple[Network, torch.optim.Optimizer]:
    """Return another module and optimizer in the same state."""
    state, weights = saved(module, optimizer), copies(module)
    other = network(seed=1)
    fresh = build(option, other)
    optimizer_template(fresh, names(other))
    with torch.no_grad():
        for param, weight in zip(other.parameters(), weights, strict=True):
            param.copy_(weight)
    load_optimizer(fresh, names(other), state)
    assert saved(other, fresh).keys() == state.keys()
    return other, fresh


@pytest.mark.parametrize("preset", PRESETS)
def test_a_parameter_joins_after_the_resume(preset: str) -> None:
    option, module = packaged(preset), network()
    optimizer = build(option, module)
    take_steps(module, optimizer, option, 3, idle=True)
    other, fresh = moved(module, optimizer, option)
    for idle in (True, False):
        take_steps(module, optimizer, option, 2, idle=idle)
        take_steps(other, fresh, option, 2, idle=idle)
        assert same(copies(module), copies(other))


@pytest.mark.parametrize("preset", PRESETS)
def test_saving_before_the_first_update_changes_nothing(preset: str) -> None:
    option, module = packaged(preset), network()
    optimizer = build(option, module)
    unsaved = network()
    unsaved_optimizer = build(option, unsaved)
    saved(module, optimizer)
    other, fresh = moved(module, optimizer, option)
    for network_, optimizer_ in (
        (unsaved, unsaved_optimizer),
        (module, optimizer),
        (other, fresh),
    ):
        take_steps(network_, optimizer_, option, 3, idle=False)
    assert same(copies(module), copies(unsaved))
    assert same(copies(other), copies(unsaved))


@pytest.mark.parametrize("preset", PRESETS)
@pytest.mark.parametrize("rounding", ["bf16_pure", "bf16_pure_stochastic"])
def test_weights_in_sixteen_bits_resume_as_well(preset: str, rounding: str) -> None:
    option = packaged(preset)
    formats = load.load_config([f"precision={rounding}"]).config.precision

    def live(seed: int) -> tuple[Network, Precision, torch.optim.Optimizer]:
        module, precision = network(seed), formats.build("cpu")
        precision.prepare(module)
        build(option, network())  # skips what this machine has not
        return module, precision, precision.build_optimizer(option, OptimizerTarget(module, "cpu"))

    def resumed() -> tuple[Network, torch.optim.Optimizer]:
        other, its_precision, fresh = live(1)
        template = optimizer_template(fresh, names(other))
        state = saved(module, optimizer)
        assert state.keys() <= template.keys()
        other.load_state_dict(module.state_dict())
        load_optimizer(fresh, names(other), state)
        its_precision.load_state(precision.state())
        assert saved(other, fresh).keys() == state.keys()
        return other, fresh

    module, precision, optimizer = live(0)
    # Evaluating may switch weights, and must leave no trace.
    for name in ("eval", "train"):
        getattr(optimizer, name, lambda: None)()
    resumed()
    take_steps(module, optimizer, option, 3, idle=True)
    other, fresh = resumed()
    for idle in (True, False):
        take_steps(module, optimizer, option, 2, idle=idle)
        take_steps(other, fresh, option, 2, idle=idle)
        assert same(copies(module), copies(other))


def test_half_of_a_parameters_state_is_another_optimizers() -> None:
    option, module = packaged("adamw"), network()
    optimizer = build(option, module)
    take_steps(module, optimizer, option, 1, idle=True)
    state = saved(module, optimizer)
    assert not [key for key in state if "temperature" in key]
    del state["optimizer.embed.weight.exp_avg"]
    fresh = build(option, other := network())
    with pytest.raises(CheckpointError, match=r"missing \['optimizer.embed.weight.exp_avg'\]"):
        load_optimizer(fresh, names(other), state)
