"""Evaluation over several data ranks: every sample once, in order, with the same metrics."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from typing_extensions import override

from launcher.config import load
from launcher.config.schema import RunConfig
from launcher.contracts import (
    BatchPlan,
    Clipping,
    EngineParts,
    Layout,
    Metrics,
    MicroBatch,
    Request,
    Samples,
    StepReport,
    TrainState,
    World,
)
from launcher.errors import Preempted
from launcher.training.evaluation import Evaluator
from launcher.training.saving import report_of
from tests.distributed import run_on_ranks
from tests.tasks import LogitsTask
from tests.toy.shared import MeanLoss

BATCH, LENGTH = 3, 5


class Ragged(Samples):
    """Sample i has 1 + i % LENGTH targets."""

    fingerprint = "ragged"

    def __init__(self, count: int) -> None:
        self.count = count
        self.lengths = np.arange(count) % LENGTH + 1
        self.ids = torch.randint(11, (count, LENGTH), generator=torch.Generator().manual_seed(0))

    @override
    def __len__(self) -> int:
        return self.count

    @override
    def num_targets(self, indices: Sequence[int]) -> int:
        return int(self.lengths[list(indices)].sum())

    @override
    def micro_batch(self, indices: Sequence[int], draw: int) -> MicroBatch:
        if not indices:
            row = torch.zeros(1, 1, dtype=torch.int64)
            inputs = {"ids": row, "labels": row - 100, "index": row[0] - 1}
            return MicroBatch(inputs, 0, ())
        width = int(self.lengths[list(indices)].max())
        ids = self.ids[list(indices), :width]
        inside = torch.arange(width) < torch.from_numpy(self.lengths[list(indices)])[:, None]
        inputs = {"ids": ids, "labels": ids.where(inside, -100), "index": torch.tensor(indices)}
        return MicroBatch(inputs, self.num_targets(indices), indices)

    @override
    def describe(self, index: int) -> str:
        return f"sample {index}"


class Order(MeanLoss):
    """The mean loss, and which samples it was computed from, in order."""

    def __init__(self) -> None:
        super().__init__()
        self.order: list[int] = []

    @override
    def add(self, predictions: Mapping[str, Tensor]) -> None:
        super().add(predictions)
        self.order += predictions["index"].tolist()


class Indexed(LogitsTask):
    def __init__(self) -> None:
        super().__init__("input", "ids")
        self.started: list[Order] = []

    @override
    def predict(self, outputs: Tensor, inputs: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
        return {**super().predict(outputs, inputs), "index": inputs["index"]}

    @override
    def metrics(self, samples: Samples) -> Metrics:
        self.started.append(Order())
        return self.started[-1]


def evaluated(
    config: RunConfig,
    rank: int,
    ranks: int,
    count: int,
    max_samples: int | None,
    signal_after: int | None = None,
) -> tuple[list[int], Mapping[str, float], int]:
    """Return the order of the samples, the metrics, and the forward passes of one rank.

    The metrics are empty if a signal came to this rank after so many passes, or to another one.
    """
    saved: list[StepReport] = []
    came = {True: Request.STOP_SIGTERM, False: Request.NONE}
    torch.manual_seed(0)
    task, passes = Indexed(), []
    module = nn.Sequential(nn.Embedding(11, 8), nn.Dropout(0.5), nn.Linear(8, 11))
    module.register_forward_hook(lambda *_: passes.append(1))
    world = World(rank, ranks, rank, "cpu", Layout(dp_replicate=ranks))
    engine = config.parallelism.build(
        EngineParts(
            module=module,
            task=task,
            optimizer=config.optimizer,
            precision=config.precision,
            clipping=Clipping(1.0, None),
            skip_nonfinite=False,
            world=world,
            plan=BatchPlan(micro_batch_size=BATCH, micro_batches=1, ranks=ranks, seq_len=LENGTH),
            requests=lambda: Request.NONE,
        )
    )
    evaluate = Evaluator(
        world=world,
        engine=engine,
        task=task,
        samples=Ragged(count),
        batch_size=BATCH,
        every_steps=1,
        max_samples=max_samples,
        final_max_samples=None,
        beat=lambda phase, step: None,
        requests=lambda: came[signal_after is not None and len(passes) >= signal_after],
        save=saved.append,
        interrupted=saved.append,
    )
    report = report_of(TrainState(step=1), {}, last=False)
    found: Mapping[str, float] = {}
    try:
        found = evaluate(report)
        assert not saved
    except Preempted:
        assert saved == [report, report]
    engine.close()
    return task.started[-1].order, found, len(passes)


def on_rank(config: str, ranks: int, count: int, max_samples: int | None) -> Any:
    rank = torch.distributed.get_rank()
    return evaluated(RunConfig.from_json(config), rank, ranks, count, max_samples)


def on_rank_with_signal(config: str, count: int) -> Any:
    rank = torch.distributed.get_rank()
    after = 3 if rank == 1 else None
    return evaluated(RunConfig.from_json(config), rank, 2, count, None, after)


@pytest.fixture(scope="module")
def configs() -> list[RunConfig]:
    """The configs of one process and of several."""
    words = [["parallelism=single"], ["parallelism=ddp", "launch.processes=2"]]
    return [load.load_config(each).config for each in words]


@pytest.mark.parametrize(("count", "max_samples"), [(31, None), (31, 7), (2, None), (18, None)])
def test_every_sample_is_evaluated_once_on_any_number_of_ranks(
    configs: list[RunConfig], count: int, max_samples: int | None
) -> None:
    single, ddp = configs
    order, metrics, _ = evaluated(single, 0, 1, count, max_samples)
    assert len(order) == (max_samples or count)
    assert order == sorted(set(order))
    for ranks in (2, 3):
        found = run_on_ranks(on_rank, ddp.to_json(), ranks, count, max_samples, ranks=ranks)
        for each_order, each_metrics, _ in found:
            assert each_order == order
            assert each_metrics == metrics  # bit for bit
        assert len({passes for *_, passes in found}) == 1


def test_a_signal_to_one_rank_ends_the_evaluation_on_all(configs: list[RunConfig]) -> None:
    found = run_on_ranks(on_rank_with_signal, configs[1].to_json(), 300, ranks=2)
    [(_, first, first_passes), (_, second, second_passes)] = found
    assert first == second == {}
    assert 3 <= first_passes == second_passes < 50
