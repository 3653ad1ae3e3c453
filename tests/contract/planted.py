"""Defects of data-parallel training, each found in some trainer, to be planted on purpose.

The engine contract must find every one of them: a contract that cannot fail shows nothing.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager
from dataclasses import replace
from typing import Any

from torch import Tensor
from torch.nn.parallel import DistributedDataParallel
from typing_extensions import override

from launcher.contracts import (
    Engine,
    EngineParts,
    Layout,
    OptimizerTarget,
    ParallelismOption,
    Request,
    Schedule,
    Window,
    World,
)
from launcher.parallelism import DDPEngine, _torch_engine
from launcher.parallelism._clipping import gradient_norm
from tests.contract.sharded_engine import ShardedEngine


class Defect:
    """No defect; the others override what they spoil."""

    def __init__(self, world: World) -> None:
        self.world = world

    def engine(self, option: ParallelismOption, parts: EngineParts) -> Engine:
        """Build the engine."""
        return option.build(parts)

    def data_rank(self, world: World) -> int:
        """Return which share of the training data this rank reads."""
        return world.data_rank

    def data_seed(self, world: World) -> int:
        """Return the seed of the order of the training data."""
        return 0

    def data_start(self, world: World) -> int:
        """Return the first sample of the order that is read."""
        return 0

    def evaluating(self, world: World) -> World:
        """Return what the evaluator takes for the world."""
        return world

    def schedule(self, schedule: Schedule) -> Schedule:
        """Return the schedule of the run."""
        return schedule


class MeanOfMeans(Defect):
    """Each rank takes the mean over its own targets, and the ranks' means are averaged."""

    @override
    def engine(self, option: ParallelismOption, parts: EngineParts) -> Engine:
        class Spoiled(DDPEngine):
            @override
            def forward_backward(self, window: Window) -> Tensor:
                own = sum(each.num_targets for each in window.micro_batches)
                ranks = parts.world.data_ranks
                return super().forward_backward(replace(window, num_targets=own * ranks))

        return Spoiled(parts, _ddp(option))


class ScheduleTimesRanks(Defect):
    """Every rank steps the schedule, so that it runs as many times too fast."""

    @override
    def schedule(self, schedule: Schedule) -> Schedule:
        ranks = self.world.size

        class Spoiled(Schedule):
            @override
            def lr(self, step: int, memory: Mapping[str, float]) -> float | None:
                return schedule.lr(step * ranks, memory)

        return Spoiled()


class NoAllReduce(Defect):
    """Gradients stay on the rank that computed them."""

    @override
    def engine(self, option: ParallelismOption, parts: EngineParts) -> Engine:
        class Spoiled(DDPEngine):
            @override
            def accumulation_context(self, *, last: bool) -> AbstractContextManager[object]:
                assert isinstance(self.wrapped, DistributedDataParallel)
                return self.wrapped.no_sync()

            @override
            def check_gradients(self) -> None:
                """The engine would notice it."""

        return Spoiled(parts, _ddp(option))


class NormTimesRanks(Defect):
    """The squares of gradients that are equal on all ranks are added up over the ranks."""

    @override
    def engine(self, option: ParallelismOption, parts: EngineParts) -> Engine:
        def wrong(*args: Any, **kwargs: Any) -> Tensor:
            norm: Tensor = gradient_norm(*args, **kwargs) * self.world.size**0.5
            return norm

        class Spoiled(DDPEngine):
            @override
            def update(self, lr: float | None) -> Any:
                with _replaced("gradient_norm", wrong):
                    return super().update(lr)

        return Spoiled(parts, _ddp(option))


class AnothersData(Defect):
    """Every rank reads the first rank's share."""

    @override
    def data_rank(self, world: World) -> int:
        return 0


class EvaluatedPerRank(Defect):
    """Every rank evaluates all held-out samples, and all of them are counted."""

    @override
    def evaluating(self, world: World) -> World:
        return replace(world, rank=0, layout=Layout())


class StopsAlone(Defect):
    """A rank acts on its own signal."""

    @override
    def engine(self, option: ParallelismOption, parts: EngineParts) -> Engine:
        class Spoiled(DDPEngine):
            @override
            def check_finite(self, norm: Tensor) -> tuple[bool, Request]:
                finite, _ = super().check_finite(norm)
                return finite, parts.requests()

        return Spoiled(parts, _ddp(option))


class ShardsForTensors(Defect):
    """The optimizer takes the rows that it holds for whole tensors."""

    @override
    def engine(self, option: ParallelismOption, parts: EngineParts) -> Engine:
        class Spoiled(ShardedEngine):
            @override
            def optimizer_target(self) -> OptimizerTarget:
                target = super().optimizer_target()
                return OptimizerTarget(target.module, target.device_type)

        return Spoiled(parts, _ddp(option))


class Sharded(Defect):
    """No defect: the optimizer steps rows and knows it."""

    @override
    def engine(self, option: ParallelismOption, parts: EngineParts) -> Engine:
        return ShardedEngine(parts, _ddp(option))


DEFECTS: dict[str, type[Defect]] = {
    "mean of means": MeanOfMeans,
    "schedule times ranks": ScheduleTimesRanks,
    "no all-reduce": NoAllReduce,
    "norm times ranks": NormTimesRanks,
    "another rank's data": AnothersData,
    "evaluation counted per rank": EvaluatedPerRank,
    "a rank stops alone": StopsAlone,
    "shards taken for tensors": ShardsForTensors,
    "sharded": Sharded,
}


def _ddp(option: ParallelismOption) -> Any:
    return option


@contextlib.contextmanager
def _replaced(name: str, value: object) -> Iterator[None]:
    right = getattr(_torch_engine, name)
    setattr(_torch_engine, name, value)
    try:
        yield
    finally:
        setattr(_torch_engine, name, right)
