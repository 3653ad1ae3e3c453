"""Defects that are planted in our engines, optimizers, clipping, schedules and data.

`trainctl verify` must find them. Each changes one run of `tests.contract.engine_bench` on two ranks
and not the reference, as a defect of one engine does. Those of `tests.contract.planted` are among
them. `scripts/verify_mutations.py` prints the score.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor
from typing_extensions import override

from launcher.contracts import EngineParts, ParallelismOption, Schedule, Window, World
from launcher.verify.compare import Difference, Reference, first_difference, floor_of
from launcher.verify.measure import distance, limits_of
from launcher.verify.trajectory import Trajectory
from tests.contract import engine_bench, planted
from tests.contract.engine_bench import OPTIMIZERS, Case, optimizer_option, option
from tests.distributed import RankError, run_on_ranks

Spoil = Callable[[Any, World], None]
"""Changes an engine that has been built."""


class _Spoiled(planted.Defect):
    """A defect of an engine that is planted in the finished engine."""

    spoil: Spoil

    @override
    def engine(self, option: ParallelismOption, parts: EngineParts) -> Any:
        engine = option.build(parts)
        type(self).spoil(engine, self.world)
        return engine


def _window(change: Callable[[Window, World], Window]) -> Spoil:
    """Change each window before the engine sees it."""

    def spoil(engine: Any, world: World) -> None:
        right = engine.forward_backward
        engine.forward_backward = lambda window: right(change(window, world))

    return spoil


def _gradients(change: Callable[[Any, list[Tensor], int], object]) -> Spoil:
    """Change the gradients between the backward pass and the update."""

    def spoil(engine: Any, _: World) -> None:
        right, steps = engine.update, [0]

        def update(lr: float | None) -> Any:
            grads = [p.grad for p in engine.params if p.grad is not None]
            change(engine, grads, steps[0])
            steps[0] += 1
            return right(lr)

        engine.update = update

    return spoil


def _step(change: Callable[[Any, Callable[[], Any], int], Any]) -> Spoil:
    """Replace the optimizer's step: given the engine, the right step and the number of steps."""

    def spoil(engine: Any, _: World) -> None:
        right, steps = engine.step_optimizer, [0]

        def step() -> None:
            change(engine, right, steps[0])
            steps[0] += 1

        engine.step_optimizer = step

    return spoil


def _rate(change: Callable[[Schedule, int, World], float | None]) -> type[planted.Defect]:
    class Rate(planted.Defect):
        @override
        def schedule(self, schedule: Schedule) -> Schedule:
            world = self.world

            class Spoiled(Schedule):
                @override
                def lr(self, step: int, memory: Mapping[str, float]) -> float | None:
                    return change(schedule, step, world)

            return Spoiled()

    return Rate


def _clipping(**limits: float | None) -> type[planted.Defect]:
    class Limits(planted.Defect):
        @override
        def engine(self, option: ParallelismOption, parts: EngineParts) -> Any:
            return option.build(replace(parts, clipping=replace(parts.clipping, **limits)))

    return Limits


def _groups(**values: Any) -> Spoil:
    def spoil(engine: Any, _: World) -> None:
        for group in engine.optimizer.param_groups:
            group.update({key: value for key, value in values.items() if key in group})

    return spoil


def _targets(count: Callable[[Window, World], float]) -> Spoil:
    return _window(lambda window, world: replace(window, num_targets=int(count(window, world))))


def _own(window: Window) -> int:
    return sum(each.num_targets for each in window.micro_batches)


def _each(function: Callable[[Tensor], object]) -> Callable[[Any, list[Tensor], int], None]:
    def change(_engine: Any, grads: list[Tensor], _step: int) -> None:
        for grad in grads:
            function(grad)

    return change


def _with_state(change: Callable[[dict[str, Any]], None]) -> Spoil:
    def step(engine: Any, right: Callable[[], Any], _: int) -> None:
        for state in engine.optimizer.state.values():
            change(state)
        right()

    return _step(step)


def _stale_gradients(engine: Any, grads: list[Tensor], _: int) -> None:
    before = getattr(engine, "stale", None)
    engine.stale = [grad.clone() for grad in grads]
    for grad, old in zip(grads, before or grads, strict=True):
        grad.copy_(old)


def _stale_moment(state: dict[str, Any]) -> None:
    if "exp_avg" in state:
        state.setdefault("stale", state["exp_avg"].clone())
        state["exp_avg"].copy_(state["stale"])


def _after(change: Callable[[Any], None]) -> Spoil:
    def step(engine: Any, right: Callable[[], Any], _: int) -> None:
        right()
        change(engine)

    return _step(step)


@torch.no_grad()
def _round_weights(engine: Any) -> None:
    for param in engine.params:
        param.copy_(param.bfloat16())


def _decay_twice(engine: Any, right: Callable[[], Any], _: int) -> None:
    with torch.no_grad():
        for group in engine.optimizer.param_groups:
            for param in group["params"]:
                param.mul_(1 - group["lr"] * group["weight_decay"])
    right()


def _first_rate(engine: Any, right: Callable[[], Any], _: int) -> None:
    for group in engine.optimizer.param_groups:
        group["lr"] = group.setdefault("first_lr", group["lr"])
    right()


def _one_left_out(engine: Any, right: Callable[[], Any], _: int) -> None:
    kept = engine.params[-1].detach().clone()
    right()
    with torch.no_grad():
        engine.params[-1].copy_(kept)


def _not_cleared(engine: Any, _: World) -> None:
    engine.optimizer.zero_grad = lambda **_: None


def _own_loss(engine: Any, _: World) -> None:
    right = engine.forward_backward

    def forward_backward(window: Window) -> Tensor:
        right(window)
        own: Tensor = torch.stack(engine._losses).sum()
        return own

    engine.forward_backward = forward_backward


def _scaled_loss(engine: Any, world: World) -> None:
    right = engine.forward_backward
    engine.forward_backward = lambda window: right(window) * world.size


def _norm(factor: Callable[[World], float]) -> Spoil:
    def spoil(engine: Any, world: World) -> None:
        right = engine.update

        def update(lr: float | None) -> Any:
            stats = right(lr)
            return replace(stats, grad_norm=stats.grad_norm * factor(world))

        engine.update = update

    return spoil


class _DataSeed(planted.Defect):
    @override
    def data_seed(self, world: World) -> int:
        return 1


class _DataSeedOfRank(planted.Defect):
    @override
    def data_seed(self, world: World) -> int:
        return world.rank


class _DataStart(planted.Defect):
    @override
    def data_start(self, world: World) -> int:
        return 1


class _SwappedRanks(planted.Defect):
    @override
    def data_rank(self, world: World) -> int:
        return world.size - 1


class _OtherWeights(planted.Defect):
    @override
    def engine(self, option: ParallelismOption, parts: EngineParts) -> Any:
        torch.manual_seed(1)
        return option.build(replace(parts, module=engine_bench.Network(0.0)))


class _DropoutOn(planted.Defect):
    @override
    def engine(self, option: ParallelismOption, parts: EngineParts) -> Any:
        module: Any = parts.module
        module.dropout.p = 0.1
        return option.build(parts)


@dataclass(frozen=True, slots=True)
class Mutation:
    """A defect, and the run in which it is planted.

    Attributes:
        plant: The defect.
        changes: Fields of `Case` by name; `optimizer` is the name of a preset.
    """

    plant: Spoil | type[planted.Defect]
    changes: Mapping[str, Any] = field(default_factory=dict)


FOUR = {"accumulation": 4}
MUTATIONS: dict[str, Mutation] = {
    # Weights of the losses.
    "mean of means": Mutation(planted.MeanOfMeans),
    "mean of means over micro-batches": Mutation(planted.MeanOfMeans, FOUR),
    "divided by samples": Mutation(_targets(lambda w, _: w.num_samples)),
    "divided by the ranks once too often": Mutation(_targets(lambda w, r: w.num_targets * r.size)),
    "divided by a rank's own targets": Mutation(_targets(lambda w, _: max(1, _own(w)))),
    "divided by the accumulation once too often": Mutation(
        _targets(lambda w, _: w.num_targets * len(w.micro_batches)), FOUR
    ),
    "one target too many": Mutation(_targets(lambda w, _: w.num_targets + 1)),
    # Accumulation.
    "last micro-batch left out": Mutation(
        _window(lambda w, _: replace(w, micro_batches=[*w.micro_batches[:-1]] or w.micro_batches)),
        FOUR,
    ),
    "first micro-batch taken twice": Mutation(
        _window(lambda w, _: replace(w, micro_batches=[w.micro_batches[0], *w.micro_batches])), FOUR
    ),
    "gradients not cleared": Mutation(_not_cleared),
    "gradients of the step before": Mutation(_gradients(_stale_gradients)),
    # Collectives.
    "no all-reduce": Mutation(planted.NoAllReduce),
    "no all-reduce with accumulation": Mutation(planted.NoAllReduce, FOUR),
    "gradients multiplied by the ranks": Mutation(_gradients(_each(lambda g: g.mul_(2)))),
    "gradients rounded to bfloat16": Mutation(_gradients(_each(lambda g: g.copy_(g.bfloat16())))),
    "a gradient left out": Mutation(_gradients(lambda _, grads, __: grads[0].zero_())),
    "loss of one rank": Mutation(_own_loss),
    "loss times ranks": Mutation(_scaled_loss),
    # Norm and clipping.
    "norm times ranks": Mutation(planted.NormTimesRanks),
    "norm of a shard": Mutation(_norm(lambda w: w.size**-0.5)),
    "norm reported times ranks": Mutation(_norm(lambda w: w.size)),
    "no clipping": Mutation(_clipping(max_norm=None)),
    "limit times ranks": Mutation(_clipping(max_norm=0.6)),
    # Adam's update is the same for any constant factor of the gradients.
    "limit divided by ranks": Mutation(_clipping(max_norm=0.15), {"optimizer": "sgd"}),
    "no clipping of values": Mutation(_clipping(max_value=None), {"clipping": "value"}),
    "no clipping of parameters": Mutation(
        _clipping(max_norm_per_parameter=None), {"clipping": "norm_per_parameter"}
    ),
    # Schedule.
    "schedule times ranks": Mutation(planted.ScheduleTimesRanks),
    "rate one step late": Mutation(_rate(lambda s, step, _: s.lr(max(0, step - 1), {}))),
    "rate one step early": Mutation(_rate(lambda s, step, _: s.lr(step + 1, {}))),
    "rate times ranks": Mutation(_rate(lambda s, step, w: (s.lr(step, {}) or 0) * w.size)),
    "rate of the first step": Mutation(_rate(lambda s, _, __: s.lr(0, {}))),
    "rate not passed on": Mutation(_step(_first_rate)),
    # Optimizer.
    "stale moments": Mutation(_with_state(_stale_moment)),
    "moments cleared": Mutation(_after(lambda e: e.optimizer.state.clear())),
    "bias correction of the first step": Mutation(
        _with_state(lambda state: state["step"].zero_() if "step" in state else None)
    ),
    "steps counted twice": Mutation(
        _with_state(lambda state: state["step"].add_(1) if "step" in state else None)
    ),
    "two steps": Mutation(_step(lambda _, right, __: (right(), right()))),
    "every fourth step left out": Mutation(
        _step(lambda _, right, step: right() if step % 4 != 3 else None)
    ),
    "decay on norms": Mutation(_groups(weight_decay=0.1)),
    "no decay": Mutation(_groups(weight_decay=0.0)),
    "decay applied twice": Mutation(_step(_decay_twice)),
    "other betas": Mutation(_groups(betas=(0.9, 0.99))),
    "larger epsilon": Mutation(_groups(eps=1e-4)),
    "a parameter left out": Mutation(_step(_one_left_out)),
    "weights rounded to bfloat16": Mutation(_after(_round_weights)),
    "momentum of zero": Mutation(_groups(momentum=0.0), {"optimizer": "sgd"}),
    "moments by another beta": Mutation(
        _groups(betas=(0.5, 0.99), beta1=0.5), {"optimizer": "lion"}
    ),
    # Shards taken for tensors, as Transformers' Adafactor takes ZeRO's partitions.
    "adafactor: a shard's statistics": Mutation(
        planted.ShardsForTensors, {"optimizer": "adafactor", "dtype": torch.float64}
    ),
    "adafactor_t5: a shard's statistics": Mutation(
        planted.ShardsForTensors, {"optimizer": "adafactor_t5", "dtype": torch.float64}
    ),
    "stable_adamw: a shard's update size": Mutation(
        planted.ShardsForTensors, {"optimizer": "stable_adamw", "dtype": torch.float64}
    ),
    "lamb: a shard's trust ratio": Mutation(
        planted.ShardsForTensors, {"optimizer": "lamb", "dtype": torch.float64}
    ),
    # Data, initial weights, random numbers, evaluation.
    "another rank's data": Mutation(planted.AnothersData),
    "all ranks read the last share": Mutation(_SwappedRanks),
    "another order of the data": Mutation(_DataSeed),
    "an order for each rank": Mutation(_DataSeedOfRank),
    "data begins one sample late": Mutation(_DataStart),
    "other initial weights": Mutation(_OtherWeights),
    "dropout with the wrong random stream": Mutation(_DropoutOn),
    "evaluation counted per rank": Mutation(planted.EvaluatedPerRank),
}
for _name, _mutation in MUTATIONS.items():
    if not isinstance(_mutation.plant, type):
        _members = {"spoil": staticmethod(_mutation.plant)}
        planted.DEFECTS[f"verify: {_name}"] = type("Planted", (_Spoiled,), _members)
    else:
        planted.DEFECTS[f"verify: {_name}"] = _mutation.plant

SOUND: list[Mapping[str, Any]] = [
    *({"optimizer": name, "accumulation": cut} for name in OPTIMIZERS for cut in (1, 4)),
    *({"clipping": name} for name in ("value", "norm_per_parameter")),
    *({"dtype": torch.float64, "accumulation": cut} for cut in (1, 4)),
]
"""Runs without a defect: the same as those with one, and every optimizer."""


def case_of(changes: Mapping[str, Any], ranks: int, planted_: str | None = None) -> Case:
    """Return a run on some ranks."""
    preset = "ddp" if ranks > 1 else "single"
    engine = option(
        "parallelism",
        f"parallelism={preset}",
        f"launch.processes={ranks}",
        f"accumulation.samples_per_step={engine_bench.SAMPLES_PER_STEP}",
        "accumulation.micro_batch_size=1",
    )
    values = {"optimizer": "adamw", **changes}
    optimizer = optimizer_option(values.pop("optimizer"))
    return Case(parallelism=engine, optimizer=optimizer, planted=planted_, **values)


def reference_of(changes: Mapping[str, Any]) -> tuple[Reference, Mapping[str, Tensor]]:
    """Return what `trainctl verify` compares a run with, and its weights."""
    alone = {key: value for key, value in changes.items() if key != "accumulation"}
    cases = [case_of({**alone, "accumulation": cut}, 1) for cut in (1, 4)]
    [[base, cut]] = run_on_ranks(engine_bench.run_cases, cases, ranks=1)
    number_format = str(changes.get("dtype", torch.float32)).removeprefix("torch.")
    run, second = record(base, 0, base.weights), record(cut, 0, base.weights)
    floor = floor_of(run, second, "eval_loss")
    return Reference(run, floor, limits_of(number_format), "eval_loss"), base.weights


def record(own: Any, data_rank: int, weights: Mapping[str, Tensor]) -> Trajectory:
    """Return a run of the bench as `trainctl verify` records one."""
    path_length = sum(lr for lr in own.lrs if lr is not None)
    found = {
        name: distance(value, weights[name], path_length) for name, value in own.weights.items()
    }
    before: list[dict[str, float] | None] = [None] * max(0, len(own.losses) - 1)
    return Trajectory(
        losses=own.losses,
        norms=own.norms,
        lrs=own.lrs,
        applied=own.applied,
        samples=own.own_indices,
        data_rank=data_rank,
        scores=dict(own.scores[-1]) if own.scores else {},
        distances=[*before, found],
    )


def run_planted(cases: Sequence[Case]) -> list[Any]:
    """Run cases on this rank; of this module, so that the rank knows its defects."""
    return engine_bench.run_cases(cases)


def references_of(
    runs: Sequence[Mapping[str, Any]],
) -> dict[object, tuple[Reference, Mapping[str, Tensor]]]:
    """Return the references of some runs, by `key_of`."""
    return {key_of(changes): reference_of(changes) for changes in _distinct(runs)}


def _distinct(runs: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    return list({key_of(changes): changes for changes in runs}.values())


def judged(
    runs: Sequence[tuple[Mapping[str, Any], str | None]],
    references: Mapping[object, tuple[Reference, Mapping[str, Tensor]]],
) -> list[Difference | str | None]:
    """Return what `trainctl verify` finds in each run on two ranks; text for a crash.

    All are run in one world; where one crashes, each in a world of its own.

    Args:
        runs: Changes and the name of the defect, None for a run without one.
        references: The references of all.
    """
    cases = [case_of(changes, 2, name and f"verify: {name}") for changes, name in runs]
    try:
        by_rank = run_on_ranks(run_planted, cases, timeout_s=120 + len(runs))
    except RankError as error:
        if len(runs) == 1:
            return [f"crashed: {str(error).strip().splitlines()[-1]}"]
        return [found for run in runs for found in judged([run], references)]
    found_: list[Difference | str | None] = []
    for place, (changes, _) in enumerate(runs):
        expected, weights = references[key_of(changes)]
        ranks = [record(own[place], rank, weights) for rank, own in enumerate(by_rank)]
        found_.append(first_difference(ranks, expected))
    return found_


def key_of(changes: Mapping[str, Any]) -> tuple[tuple[str, Any], ...]:
    """Return what the reference of a run depends on."""
    return tuple(sorted((k, str(v)) for k, v in changes.items() if k != "accumulation"))
