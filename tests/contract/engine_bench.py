"""One small training run on any engine: what the engine contract compares.

Everything but the network and the data is what `trainctl run` uses: the loop, the windows, the
evaluator, the option classes. `Case.planted` names a defect that is planted on purpose, so that the
contract can be shown to find it (`planted.py`).
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache, partial
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor, nn
from typing_extensions import override

from launcher.contracts import (
    BatchPlan,
    Clipping,
    EngineParts,
    Head,
    Metrics,
    MicroBatch,
    Observer,
    OptimizerOption,
    ParallelismOption,
    Precision,
    PrecisionOption,
    Request,
    Samples,
    Schedule,
    StepReport,
    Stop,
    Task,
    TrainState,
    World,
)
from launcher.errors import Interrupted, NonFinite, Preempted
from launcher.parallelism import (  # noqa: F401 - before ranks are forked
    _ddp_engine,
    _fsdp_engine,
    _zero_engine,
)
from launcher.parallelism._zero_partitions import import_deepspeed
from launcher.precision._autocast import Float32
from launcher.training import rng
from launcher.training.batches import Windows
from launcher.training.evaluation import Evaluator
from launcher.training.loop import train
from launcher.training.requests import stop_signal
from tests.contract import planted
from tests.tasks import RANDOM

import_deepspeed("cpu")  # likewise

VOCABULARY, LENGTH, WIDTH = 17, 12, 10
SAMPLES_PER_STEP, STEPS = 24, 8
# The last window is short: eleven samples, of which a third rank gets none.
NUM_SAMPLES = SAMPLES_PER_STEP * (STEPS - 1) + 11
NO_TARGET = -100
OPTIMIZERS = (
    "adamw",
    "adafactor",
    "adafactor_t5",
    "stable_adamw",
    "sgd",
    "lion",
    "lamb",
    "muon",
)
"""Presets that must train the same on every engine."""

CLIPPINGS = {
    "norm": Clipping(0.3, None),
    "value": Clipping(None, 0.02),
    "norm_per_parameter": Clipping(None, None, 0.2),
}


@dataclass(frozen=True, kw_only=True)
class Case:
    """A run to compare.

    Attributes:
        parallelism: The engine's option.
        optimizer: The optimizer's option.
        accumulation: Micro-batches of each rank in a full window.
        clipping: Name in `CLIPPINGS`.
        dtype: Number format of everything.
        dropout: Probability in the network.
        asked: By rank, the step after which the rank asks for something, and what.
        poisoned: Sample whose loss is not a number; None for none.
        skip_nonfinite: Skip such a window instead of ending the run.
        planted: Defect to plant; see `planted.DEFECTS`.
    """

    parallelism: ParallelismOption
    optimizer: OptimizerOption
    accumulation: int = 1
    clipping: str = "norm"
    dtype: torch.dtype = torch.float32
    dropout: float = 0.0
    asked: Mapping[int, tuple[int, Request]] = field(default_factory=dict)
    poisoned: int | None = None
    skip_nonfinite: bool = False
    planted: str | None = None


@dataclass
class Trajectory:
    """Results of a run on one rank.

    Attributes:
        losses: Mean loss of each window.
        norms: Gradient norm of each step.
        lrs: Learning rate of each step.
        scores: Scores of each evaluation.
        weights: Parameters after the run by name.
        last_step: Step after which the run ended.
        own_indices: Samples that this rank computed, by step.
        draws: A random number of each step.
        applied: Which updates were applied.
        error: The error that ended the run, as (class, message, samples); None where none did.
    """

    losses: list[float] = field(default_factory=list)
    norms: list[float] = field(default_factory=list)
    lrs: list[float | None] = field(default_factory=list)
    scores: list[Mapping[str, float]] = field(default_factory=list)
    weights: dict[str, Tensor] = field(default_factory=dict)
    last_step: int = 0
    own_indices: list[list[int]] = field(default_factory=list)
    draws: list[float] = field(default_factory=list)
    applied: list[bool] = field(default_factory=list)
    error: tuple[str, str, tuple[int, ...]] | None = None


class Network(nn.Module):
    """An embedding, two residual blocks with biases and norms, and a head."""

    def __init__(self, dropout: float) -> None:
        super().__init__()
        self.embed = nn.Embedding(VOCABULARY, WIDTH)
        self.dropout = nn.Dropout(dropout)
        self.blocks = nn.ModuleList(
            nn.ModuleDict({"dense": nn.Linear(WIDTH, WIDTH), "norm": nn.LayerNorm(WIDTH)})
            for _ in range(2)
        )
        self.head = nn.Linear(WIDTH, VOCABULARY, bias=False)

    @override
    def forward(self, ids: Tensor) -> Tensor:
        hidden = self.dropout(self.embed(ids))
        for block in self.blocks:
            assert isinstance(block, nn.ModuleDict)
            hidden = hidden + torch.tanh(block["dense"](block["norm"](hidden)))
        logits: Tensor = self.head(hidden)
        return logits


class Ragged(Samples):
    """Random ids with very different numbers of targets, some samples without any."""

    fingerprint = "ragged"

    def __init__(self, count: int, seed: int, poisoned: int | None = None) -> None:
        self.poisoned = poisoned
        generator = torch.Generator().manual_seed(seed)
        self.ids = torch.randint(VOCABULARY, (count, LENGTH), generator=generator)
        self.labels = torch.randint(VOCABULARY, (count, LENGTH), generator=generator)
        for row in range(count):
            self.labels[row, (row * 5) % (LENGTH + 1) :] = NO_TARGET
        self.lengths = np.full(count, LENGTH)

    @override
    def __len__(self) -> int:
        return len(self.ids)

    @override
    def num_targets(self, indices: Sequence[int]) -> int:
        return int((self.labels[list(indices)] != NO_TARGET).sum())

    @override
    def micro_batch(self, indices: Sequence[int], draw: int) -> MicroBatch:
        del draw
        rows = list(indices) or [0]
        labels = self.labels[rows] if indices else torch.full_like(self.labels[rows], NO_TARGET)
        weight = [float("nan") if row == self.poisoned else 1.0 for row in rows]
        inputs = {
            "ids": self.ids[rows],
            "labels": labels,
            "index": torch.tensor(rows),
            "weight": torch.tensor(weight),
        }
        return MicroBatch(inputs, self.num_targets(indices), list(indices))

    @override
    def describe(self, index: int) -> str:
        return f"sample {index}"


class NextToken(Task):
    """Cross entropy on the labels; the metrics notice a sample that is counted twice."""

    head = Head("causal_lm")
    columns = ()

    @override
    def samples(self, records: Any) -> Samples:
        raise NotImplementedError

    @override
    def forward_inputs(self, inputs: Mapping[str, Tensor]) -> Mapping[str, Any]:
        return {"ids": inputs["ids"]}

    @override
    def loss(self, outputs: Tensor, inputs: Mapping[str, Tensor]) -> Tensor:
        return (self._losses(outputs, inputs).sum(dim=1) * inputs["weight"]).sum()

    @override
    def predict(self, outputs: Tensor, inputs: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
        return {"loss": self._losses(outputs, inputs).sum(dim=1), "index": inputs["index"]}

    @override
    def metrics(self, samples: Samples) -> Metrics:
        return CountedLoss()

    @staticmethod
    def _losses(outputs: Tensor, inputs: Mapping[str, Tensor]) -> Tensor:
        labels = inputs["labels"]
        losses = nn.functional.cross_entropy(
            outputs.flatten(0, 1), labels.flatten(), reduction="none", ignore_index=NO_TARGET
        )
        return losses.view_as(labels)


class CountedLoss(Metrics):
    """The summed loss, how many samples were counted, and a number that their order decides."""

    names = ("eval_loss", "samples", "order")

    def __init__(self) -> None:
        self.losses: list[float] = []
        self.indices: list[int] = []

    @override
    def add(self, predictions: Mapping[str, Tensor]) -> None:
        self.losses += predictions["loss"].tolist()
        self.indices += predictions["index"].tolist()

    @override
    def compute(self) -> dict[str, float]:
        order = sum(place * index for place, index in enumerate(self.indices, 1))
        return {
            "eval_loss": sum(self.losses),
            "samples": float(len(self.indices)),
            "order": float(order),
        }


class InOneFormat(Float32):
    """One number format throughout; in float64 a wrong sum is not mistaken for rounding."""

    def __init__(self, device_type: str, dtype: torch.dtype) -> None:
        super().__init__(device_type, None)
        self._dtype = dtype

    @property
    @override
    def param_dtype(self) -> torch.dtype:
        return self._dtype


class InFormat(PrecisionOption):
    """The option of `InOneFormat`."""

    float64: bool

    @override
    def build(self, device_type: str) -> Precision:
        return InOneFormat(device_type, torch.float64 if self.float64 else torch.float32)


class Descending(Schedule):
    """A rate that differs at every step."""

    def __init__(self, peak: float) -> None:
        self._peak = peak

    @override
    def lr(self, step: int, memory: Mapping[str, float]) -> float:
        return self._peak * (1 - step / (2 * STEPS))


class Notes(Observer):
    """Records the trajectory, and stops on the request of a rank."""

    def __init__(self, own: Trajectory) -> None:
        self.own = own

    @override
    def __call__(self, report: StepReport) -> Stop | None:
        own = self.own
        own.losses.append(report.loss.item())
        own.norms.append(report.update.grad_norm.item())
        own.lrs.append(report.lr)
        own.last_step = report.state.step
        own.own_indices.append([i for m in report.window.micro_batches for i in m.indices])
        own.draws.append(torch.rand(()).item())
        own.applied.append(report.update.applied)
        if report.scores:
            own.scores.append(report.scores)
        signal = stop_signal(report.update.requests)
        return None if signal is None else Stop(signal.name)


def run_case(case: Case) -> Trajectory:
    """Train on this rank; to be called on every rank of a world."""
    rank, size = dist.get_rank(), dist.get_world_size()
    world = World(rank, size, rank, "cpu", case.parallelism.layout(size))
    defect = planted.DEFECTS[case.planted](world) if case.planted else planted.Defect(world)
    own = Trajectory()

    def requests() -> Request:
        step, request = case.asked.get(rank, (0, Request.NONE))
        return request if len(own.losses) + 1 >= step else Request.NONE

    plan = BatchPlan(
        SAMPLES_PER_STEP // (case.accumulation * world.data_ranks),
        case.accumulation,
        world.data_ranks,
        LENGTH,
    )
    torch.manual_seed(0)
    parts = EngineParts(
        module=Network(case.dropout),
        task=NextToken(),
        optimizer=case.optimizer,
        precision=InFormat(kind="in_format", float64=case.dtype == torch.float64),
        clipping=CLIPPINGS[case.clipping],
        skip_nonfinite=case.skip_nonfinite,
        world=world,
        plan=plan,
        requests=requests,
    )
    engine = defect.engine(case.parallelism, parts)
    held_out = Ragged(31, seed=8)
    evaluate = Evaluator(
        world=defect.evaluating(world),
        engine=engine,
        task=parts.task,
        samples=held_out,
        batch_size=4,
        every_steps=4,
        max_samples=None,
        final_max_samples=None,
        beat=lambda _phase, _step: None,
        requests=requests,
        save=lambda _: None,
        interrupted=lambda _: None,
    )
    samples = Ragged(NUM_SAMPLES, seed=7, poisoned=case.poisoned)
    windows = Windows(
        samples,
        plan,
        RANDOM,
        seed=defect.data_seed(world),
        data_rank=defect.data_rank(world),
        start=defect.data_start(world),
        stop=len(samples),
    )
    try:
        train(
            engine,
            windows,
            defect.schedule(Descending(case.optimizer.peak_lr or 1e-2)),
            TrainState(),
            max_steps=STEPS,
            seed_step=partial(rng.seed_step, 0, world.data_rank),
            evaluate=evaluate,
            observers=[Notes(own)],
        )
        with engine.full_module() as module:
            if module is not None:
                own.weights = {k: v.detach().clone() for k, v in module.named_parameters()}
    except NonFinite as error:
        own.error = (type(error).__name__, str(error), error.indices)
    except (Preempted, Interrupted):
        pass  # a signal ends the run before its evaluation
    finally:
        engine.close()
    return own


def run_cases(cases: Sequence[Case]) -> list[Trajectory]:
    """Run some cases one after the other in one world."""
    return [run_case(case) for case in cases]


@cache
def option(group: str, *words: str) -> Any:
    """Return a group's option as the command line composes it."""
    from launcher.config.load import load_config

    return getattr(load_config([*words, "max_grad_norm=null"]).config, group)


def optimizer_option(preset: str) -> OptimizerOption:
    """Return a preset of `optimizer`, with a rate at which this network moves visibly."""
    composed: OptimizerOption = option("optimizer", f"optimizer={preset}", "scheduler=constant")
    values = composed.model_dump(mode="json") | {"lr": 1e-2}
    return type(composed).model_validate_json(json.dumps(values))
