"""One cell on one rank: trains for some steps and records what the comparison needs."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from typing_extensions import override

from launcher.config.schema import RunConfig
from launcher.contracts import (
    Engine,
    Observer,
    Request,
    StepReport,
    Stop,
    TrainState,
    World,
    canonical_name,
)
from launcher.run_dir import write_atomically
from launcher.training import rng
from launcher.training.evaluation import Evaluator
from launcher.training.failures import closing
from launcher.training.loop import train
from launcher.training.parts import Data, Parts, build, windows_of
from launcher.training.requests import stop_error, stop_signal
from launcher.verify.measure import distance

if TYPE_CHECKING:
    from torch import Tensor, nn

SCORED_SAMPLES = 64
"""Most held-out samples of the evaluation after the last step."""
# The weights of every step show in which step a parameter begins to differ, but fill the disk for a
# large model: above this size, of all steps together, only those of the last step are stored.
_STORED_BYTES = 2 * 2**30


@dataclass
class Trajectory:
    """Record of a cell on one rank.

    Attributes:
        losses: Mean loss of each window over all ranks.
        norms: Gradient norm of each step.
        lrs: Learning rate of each step; None where the optimizer sets its own.
        applied: Which updates were applied.
        samples: Samples that this rank computed, by step.
        data_rank: Share of the data that the rank read.
        scores: Scores of the evaluation after the last step.
        distances: Distance of each parameter from the reference after each step, on rank 0; None
            for a step whose weights are not kept.
        modules: Class of the module of each parameter, on rank 0.
        number_format: The coarsest format that a step computes in.
        dropout: Modules whose dropout was switched off.
        seconds: Duration of the cell.
    """

    losses: list[float] = field(default_factory=list)
    norms: list[float] = field(default_factory=list)
    lrs: list[float | None] = field(default_factory=list)
    applied: list[bool] = field(default_factory=list)
    samples: list[list[int]] = field(default_factory=list)
    data_rank: int = 0
    scores: dict[str, float] = field(default_factory=dict)
    distances: list[dict[str, float] | None] = field(default_factory=list)
    modules: dict[str, str] = field(default_factory=dict)
    number_format: str = "float32"
    dropout: list[str] = field(default_factory=list)
    seconds: float = 0.0

    def write(self, path: Path) -> None:
        """Write the record as JSON; numbers that are not finite are Python's `NaN`."""
        # Atomically: the launcher takes a cell whose record exists as finished.
        write_atomically(path, json.dumps(asdict(self)))

    @classmethod
    def read(cls, path: Path) -> Trajectory:
        """Read the file that `write` wrote."""
        return cls(**json.loads(path.read_text(encoding="utf-8")))


@dataclass(frozen=True, slots=True)
class Weights:
    """Folder of the reference's weights, `step-N.safetensors`; a reference has `stored` set."""

    folder: Path
    stored: bool

    def file(self, step: int) -> Path:
        """Return the file of a step."""
        return self.folder / f"step-{step}.safetensors"


def run_cell(
    config: RunConfig,
    world: World,
    *,
    steps: int,
    weights: Weights,
    data: Data | None = None,
    requests: Callable[[], Request],
    beat: Callable[[str, int], None],
) -> Trajectory:
    """Train on this rank as `trainctl run` does, without its observers and checkpoints."""
    started = time.monotonic()
    beat("build", 0)
    rng.seed_everything(config.seed)
    parts = build(config, world, requests, data=data)
    own = Trajectory(data_rank=world.data_rank, number_format=_number_format(config, world))
    # Ranks that read different data draw different masks, so that no engine with several data ranks
    # could equal one process.
    own.dropout = without_dropout(parts.module)
    with closing(parts.engine.close):
        max_steps = min(steps, parts.max_steps)
        # The schedule still spans the whole run: only its first steps are executed.
        notes = _Notes(own, parts.engine, weights, max_steps=max_steps, beat=beat)
        train(
            parts.engine,
            windows_of(config, parts, world),
            parts.schedule,
            TrainState(),
            max_steps=max_steps,
            seed_step=partial(rng.seed_step, config.seed, world.data_rank),
            evaluate=_evaluator(config, world, parts, requests, beat),
            observers=[notes],
        )
    own.seconds = round(time.monotonic() - started, 3)
    return own


def without_dropout(module: nn.Module) -> list[str]:
    """Switch dropout off everywhere in a module, in place, and return the modules that had it."""
    from torch.nn.modules.dropout import _DropoutNd

    found = []
    for name, each in module.named_modules():
        rates = [
            key
            for key, value in vars(each).items()
            if isinstance(value, float) and value > 0 and _is_dropout(key, each, _DropoutNd)
        ]
        for key in rates:
            setattr(each, key, 0.0)
        if rates:
            found.append(canonical_name(name))
    return found


def _is_dropout(key: str, module: nn.Module, dropout: type) -> bool:
    # Attention in Transformers has no dropout module: it passes a number such as
    # `attention_dropout` to a function.
    return "dropout" in key or "drop_prob" in key or (key == "p" and isinstance(module, dropout))


class _Notes(Observer):
    """Records each step, and compares the weights after it with the reference's."""

    def __init__(
        self,
        own: Trajectory,
        engine: Engine,
        weights: Weights,
        *,
        max_steps: int,
        beat: Callable[[str, int], None],
    ) -> None:
        self._own, self._engine, self._weights = own, engine, weights
        self._max_steps, self._beat = max_steps, beat
        self._path_length = 0.0

    @override
    def __call__(self, report: StepReport) -> Stop | None:
        if (signal := stop_signal(report.update.requests)) is not None:
            raise stop_error(signal, report.state.step)
        own = self._own
        own.losses.append(report.loss.item())
        own.norms.append(report.update.grad_norm.item())
        own.lrs.append(report.lr)
        own.applied.append(report.update.applied)
        own.samples.append([i for batch in report.window.micro_batches for i in batch.indices])
        own.scores = dict(report.scores)
        self._path_length += report.lr or 0.0
        step = report.state.step
        # Collective: every rank enters, and only rank 0 gets the module.
        with self._engine.full_module() as module:
            if module is not None:
                own.distances.append(self._compared(module, step))
        self._beat("step", step)
        return None

    def _compared(self, module: nn.Module, step: int) -> dict[str, float] | None:
        params = {canonical_name(name): p.detach() for name, p in module.named_parameters()}
        if step == 1:
            self._own.modules = _modules(module)
        file = self._weights.file(step)
        if self._weights.stored:
            size = sum(p.numel() * p.element_size() for p in params.values())
            if size * self._max_steps <= _STORED_BYTES or step == self._max_steps:
                _store(file, params)
            return None
        return _distances(file, params, self._path_length) if file.exists() else None


def _modules(module: nn.Module) -> dict[str, str]:
    return {
        canonical_name(f"{path}.{name}" if path else name): type(each).__name__
        for path, each in module.named_modules()
        for name, _ in each.named_parameters(recurse=False)
    }


def _store(file: Path, params: Mapping[str, Tensor]) -> None:
    from safetensors.torch import save_file

    # safetensors refuses tensors that share memory, as tied weights do.
    save_file({name: p.cpu().contiguous().clone() for name, p in params.items()}, file)


def _distances(file: Path, params: Mapping[str, Tensor], path_length: float) -> dict[str, float]:
    from safetensors.torch import load_file

    # Infinite for a parameter that the reference lacks: it must not pass as equal.
    found = dict.fromkeys(params, math.inf)
    for name, expected in load_file(file).items():
        own = params.get(name)
        if own is None or own.shape != expected.shape:
            found[name] = math.inf
        else:
            found[name] = distance(own.cpu(), expected, path_length)
    return found


def _number_format(config: RunConfig, world: World) -> str:
    """Return the coarsest format of a step: that of a matrix product, or of the parameters."""
    import torch

    device = world.device.partition(":")[0]
    precision = config.precision.build(device)
    with precision.autocast():
        product = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else None
    formats = [dtype for dtype in (product, precision.param_dtype) if dtype is not None]
    coarsest: Any = max(formats, key=lambda dtype: torch.finfo(dtype).eps)
    return str(coarsest).removeprefix("torch.")


def _evaluator(
    config: RunConfig,
    world: World,
    parts: Parts,
    requests: Callable[[], Request],
    beat: Callable[[str, int], None],
) -> Evaluator:
    return Evaluator(
        world=world,
        engine=parts.engine,
        task=parts.task,
        samples=parts.validation,
        batch_size=parts.plan.micro_batch_size,
        every_steps=None,
        max_samples=None,
        final_max_samples=min(config.final_eval_max_samples or SCORED_SAMPLES, SCORED_SAMPLES),
        beat=beat,
        requests=requests,
        save=lambda _: None,
        interrupted=lambda _: None,
    )


def samples_of(ranks: Sequence[Trajectory], step: int) -> list[int]:
    """Return the samples of a step, sorted; ranks with the same share of the data read the same."""
    shares = {rank.data_rank: rank.samples[step] for rank in ranks}
    return sorted(index for share in shares.values() for index in share)
