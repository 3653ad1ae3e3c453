"""Optimizers on shards of parameters: on real ranks, with the same results as on full tensors."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor

from launcher.contracts import OptimizerOption, OptimizerTarget, Precision, is_sharded_state
from launcher.precision._pure import PureBf16
from launcher.precision._rounding import Compensated
from tests.distributed import RankError, run_on_ranks
from tests.optimizer.shards import (
    LAYOUTS,
    SHAPES,
    Shards,
    local_module,
    local_of,
    set_gradients,
    whole_module,
)

Build = Callable[..., OptimizerOption]

CASES: dict[str, tuple[str, dict[str, Any], float]] = {
    # Preset, what differs from it, and collectives per step.
    "adafactor": ("adafactor", {}, 2),
    "adafactor_t5": ("adafactor_t5", {}, 2),
    "adafactor_mean": ("adafactor", {"beta1": 0.9, "weight_decay": 0.1}, 2),
    "stable_adamw": ("stable_adamw", {"lr": 1e-2}, 1),
    "lamb": ("lamb", {"lr": 1e-2}, 1),
    "muon": ("muon", {}, 2),
    "adamw": ("adamw", {"lr": 1e-2}, 0),
    "lion": ("lion", {}, 0),
    "sgd": ("sgd", {"lr": 0.1}, 0),
}
STEPS = 8
LIMITS = {torch.float64: 1e-12, torch.float32: 1e-6}


class Run:
    """One rank's optimizer over shards, and the same over whole parameters.

    Args:
        option: The optimizer.
        layout: Name of the layout of the shards.
        dtype: Of the parameters.
        honest: Let the optimizer know that its parameters are shards.
    """

    def __init__(
        self,
        option: OptimizerOption,
        layout: str,
        dtype: torch.dtype = torch.float64,
        *,
        honest: bool = True,
    ) -> None:
        self.whole = whole_module(dtype)
        rank, ranks = dist.get_rank(), dist.get_world_size()
        self.module, self.shards = local_module(self.whole, LAYOUTS[layout], rank, ranks)
        self.sharding = Shards(self.shards)
        target = OptimizerTarget(self.module, "cpu", self.sharding)
        self.optimizer = option.build(target if honest else OptimizerTarget(self.module, "cpu"))
        self.reference = option.build(OptimizerTarget(self.whole, "cpu"))
        self.deviation = 0.0

    def run_steps(self, steps: range = range(STEPS)) -> None:
        """Step both with equal gradients."""
        for step in steps:
            set_gradients(self.whole, step)
            set_gradients(self.module, step, self.shards)
            self.step()

    def follow(self, trajectory: Sequence[Mapping[str, Tensor]]) -> None:
        """Step the shards alone, and compare them with whole parameters after each step."""
        for step, wholes in enumerate(trajectory):
            set_gradients(self.module, step, self.shards)
            self.optimizer.step()
            self.compare(wholes)

    def step(self) -> None:
        """Step both, and compare them."""
        self.reference.step()
        self.optimizer.step()
        self.compare(dict(self.whole.named_parameters()))

    def compare(self, wholes: Mapping[str, Tensor]) -> None:
        """Keep the largest deviation over the tensor's root mean square."""
        for name, param in self.module.named_parameters():
            if param.numel():
                size = wholes[name].detach().square().mean().sqrt()
                expected = local_of(self.shards[param], wholes[name])
                deviation = (param.detach() - expected).abs().max() / size
                self.deviation = max(self.deviation, deviation.item())


FEW_STEPS = 5
"""The updates of the fourth are clipped."""
# What a layout cuts is the same in every number format.
LAYOUTS_OF = {torch.float64: [*LAYOUTS], torch.float32: ["flat", "mixed"]}


def whole_steps(option: OptimizerOption, dtype: torch.dtype) -> list[dict[str, Tensor]]:
    """The whole parameters after each step, which no layout changes."""
    module = whole_module(dtype)
    optimizer = option.build(OptimizerTarget(module, "cpu"))
    found = []
    for step in range(FEW_STEPS):
        set_gradients(module, step)
        optimizer.step()
        found.append({name: p.detach().clone() for name, p in module.named_parameters()})
    return found


def deviations(
    option: OptimizerOption, layouts_of: Mapping[torch.dtype, Sequence[str]]
) -> dict[tuple[str, torch.dtype], tuple[float, float]]:
    """By layout and dtype: the deviation from whole parameters, and collectives per step."""
    found = {}
    for dtype, layouts in layouts_of.items():
        trajectory = whole_steps(option, dtype)
        for layout in layouts:
            run = Run(option, layout, dtype)
            run.follow(trajectory)
            found[layout, dtype] = (run.deviation, run.sharding.collectives / FEW_STEPS)
    return found


@pytest.mark.parametrize(
    "layouts_of",
    [
        pytest.param(LAYOUTS_OF, id="quick"),
        pytest.param(
            {torch.float32: [*LAYOUTS]}, id="float32 in every layout", marks=pytest.mark.slow
        ),
    ],
)
@pytest.mark.parametrize("ranks", [2, 3])
@pytest.mark.parametrize("case", CASES)
def test_shards_train_as_full_parameters(
    build_option: Build,
    case: str,
    ranks: int,
    layouts_of: Mapping[torch.dtype, Sequence[str]],
) -> None:
    preset, changes, collectives = CASES[case]
    option = build_option(preset, **changes)
    for rank in run_on_ranks(deviations, option, layouts_of, ranks=ranks):
        assert {key: each for key, each in rank.items() if not each[0] <= LIMITS[key[1]]} == {}
        assert {count for _, count in rank.values()} == {collectives}


def deviations_of_a_mistake(option: OptimizerOption) -> dict[str, float]:
    found = {}
    for layout in ("rows", "columns", "uneven"):
        run = Run(option, layout, honest=False)
        run.run_steps()
        found[layout] = run.deviation
    return found


@pytest.mark.parametrize("case", ["adafactor", "adafactor_t5", "stable_adamw", "lamb", "muon"])
def test_an_optimizer_that_takes_shards_for_tensors_is_found(
    build_option: Build, case: str
) -> None:
    preset, changes, _ = CASES[case]
    ranks = run_on_ranks(deviations_of_a_mistake, build_option(preset, **changes))
    for layout in ranks[0]:
        assert max(rank[layout] for rank in ranks) > 1e-4


def steps_with_gaps(option: OptimizerOption) -> list[float]:
    """Another parameter has no gradient at each step; some ranks leave empty shards without."""
    found = []
    for layout in ("empty", "flat", "uneven"):
        run = Run(option, layout)
        for step in range(STEPS):
            missing = list(SHAPES)[step % len(SHAPES)]
            set_gradients(run.whole, step, without=[missing])
            set_gradients(run.module, step, run.shards, without=[missing])
            for param in run.module.parameters():
                if not param.numel() and dist.get_rank() == 0:
                    param.grad = None
            run.step()
        names: dict[Tensor, str] = {param: name for name, param in run.module.named_parameters()}
        steps = {names[p]: int(s["step"]) for p, s in run.optimizer.state.items() if "step" in s}
        assert set(steps.values()) <= {STEPS - 1, STEPS - 2}, steps
        assert steps.keys() == SHAPES.keys(), steps
        found.append(run.deviation)
    return found


@pytest.mark.parametrize("case", ["adafactor_mean", "stable_adamw", "lamb"])
def test_parameters_without_gradients_are_left_alone(build_option: Build, case: str) -> None:
    preset, changes, _ = CASES[case]
    for rank in run_on_ranks(steps_with_gaps, build_option(preset, **changes), ranks=3):
        assert max(rank) <= 1e-12


def step_with_one_gradient_missing(option: OptimizerOption) -> None:
    run = Run(option, "rows")
    missing = ["blocks.0.up.weight"] if dist.get_rank() == 1 else []
    set_gradients(run.module, 0, run.shards, without=missing)
    run.optimizer.step()


def test_a_gradient_that_one_rank_lacks_is_an_error_there(build_option: Build) -> None:
    message = "blocks.0.up.weight must have a gradient on every rank or on none, but 1 ranks"
    with pytest.raises(RankError, match=message):
        run_on_ranks(step_with_one_gradient_missing, build_option("adafactor"), timeout_s=20)


def whole_state(run: Run) -> dict[str, dict[str, Any]]:
    """The state by parameter's name, with every tensor whole."""
    found: dict[str, dict[str, Any]] = {}
    for name, param in run.module.named_parameters():
        entry = found[name] = {}
        for key, value in run.optimizer.state[param].items():
            if not is_sharded_state(run.optimizer, param, key):
                entry[key] = copy.deepcopy(value)
                continue
            shard = run.shards[param]
            entry[key] = value.new_zeros(shard.shape)
            if shard.counted:
                shard.gather(value, entry[key])
            dist.all_reduce(entry[key])
    return found


def move_state(option: OptimizerOption, saved: str, loaded: str) -> tuple[float, float]:
    """Train in one layout and continue in another; return the deviations of state and
    parameters."""
    first, second = Run(option, saved), Run(option, loaded)
    first.run_steps()
    state, wrong = whole_state(first), 0.0
    for name, param in first.whole.named_parameters():
        expected = first.reference.state[param]
        assert expected.keys() == state[name].keys()
        for key, value in expected.items():
            if isinstance(value, Tensor):
                assert value.shape == state[name][key].shape
                wrong = max(wrong, (state[name][key] - value).abs().max().item())
    second.run_steps(range(1))  # Now every parameter has a state, which is overwritten.
    second.whole, second.reference, second.deviation = first.whole, first.reference, 0.0
    wholes = dict(first.whole.named_parameters())
    with torch.no_grad():
        for name, param in second.module.named_parameters():
            shard, entry = second.shards[param], second.optimizer.state[param]
            shard.scatter(wholes[name], param)
            for key, value in state[name].items():
                if is_sharded_state(second.optimizer, param, key):
                    shard.scatter(value, entry[key])
                elif isinstance(value, Tensor):
                    entry[key].copy_(value)
                else:
                    entry[key] = value
    second.run_steps(range(STEPS, STEPS + 4))
    return wrong, second.deviation


@pytest.mark.parametrize("case", ["adafactor_mean", "stable_adamw", "lamb", "muon", "adamw"])
def test_state_moves_between_layouts(build_option: Build, case: str) -> None:
    preset, changes, _ = CASES[case]
    option = build_option(preset, **changes)
    for saved, loaded in (("rows", "pieces"), ("flat", "mixed"), ("mixed", "columns")):
        for wrong, deviation in run_on_ranks(move_state, option, saved, loaded):
            assert wrong <= 1e-12
            assert deviation <= 1e-12


def steps_in_bfloat16(option: OptimizerOption, precision: Precision) -> tuple[float, int]:
    """Weights in bfloat16 with float32 copies of a few of them at a time."""
    whole = whole_module(torch.bfloat16)
    rank, ranks = dist.get_rank(), dist.get_world_size()
    module, shards = local_module(whole, LAYOUTS["flat"], rank, ranks)
    sharding, worst = Shards(shards), 0.0
    reference = precision.build_optimizer(option, OptimizerTarget(whole, "cpu"))
    optimizer = precision.build_optimizer(option, OptimizerTarget(module, "cpu", sharding))
    for step in range(STEPS):
        set_gradients(whole, step)
        set_gradients(module, step, shards)
        reference.step()
        optimizer.step()
    for name, param in module.named_parameters():
        expected = local_of(shards[param], dict(whole.named_parameters())[name])
        if param.numel():
            worst = max(worst, (param.detach() - expected).abs().max().item())
    return worst, sharding.collectives


def test_float32_copies_of_shards_are_chunked_alike_on_all_ranks(build_option: Build) -> None:
    precision = PureBf16(Compensated(), chunk_bytes=8 * 64)
    for worst, collectives in run_on_ranks(
        steps_in_bfloat16, build_option("adafactor"), precision, ranks=3
    ):
        # Sums in another order may round a weight to the other neighbour.
        assert worst <= 2**-6
        assert collectives > 2 * STEPS
