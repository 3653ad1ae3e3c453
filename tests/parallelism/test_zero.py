"""ZeRO: flat shards of every parameter, full weights on request, no compiler."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn
from typing_extensions import override

from launcher.contracts import (
    BatchPlan,
    Engine,
    EngineParts,
    LocalShard,
    OptimizerOption,
    ParallelismOption,
    Request,
    Snapshot,
    World,
)
from launcher.errors import ConfigError, NonFinite
from launcher.training.batches import Windows
from tests.checkpoint.sharded import bits, store
from tests.contract.engine_bench import (
    CLIPPINGS,
    LENGTH,
    VOCABULARY,
    WIDTH,
    InFormat,
    NextToken,
    Ragged,
    optimizer_option,
    option,
)
from tests.distributed import run_on_ranks
from tests.tasks import RANDOM

SAMPLES_PER_STEP = 16


class Branching(nn.Module):
    """A frozen layer, tied weights, a layer of some micro-batches and one that is never used."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(VOCABULARY, WIDTH)
        self.frozen = nn.Linear(WIDTH, WIDTH)
        self.frozen.requires_grad_(False)
        self.idle = nn.Linear(WIDTH, WIDTH)
        self.norm = nn.LayerNorm(WIDTH)
        self.head = nn.Linear(WIDTH, VOCABULARY)
        self.head.weight = self.embed.weight

    @override
    def forward(self, ids: Tensor) -> Tensor:
        logits: Tensor = self.head(self.norm(torch.tanh(self.frozen(self.embed(ids)))))
        return logits


class Alternating(nn.Module):
    """A layer of every first micro-batch of a window, one of every second, and one of all."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(VOCABULARY, WIDTH)
        self.layers = nn.ModuleList(nn.Linear(WIDTH, WIDTH) for _ in range(2))
        self.head = nn.Linear(WIDTH, VOCABULARY)
        self.calls = 0

    @override
    def forward(self, ids: Tensor) -> Tensor:
        self.calls += 1
        layer = self.layers[self.calls % 2]
        logits: Tensor = self.head(torch.tanh(layer(self.embed(ids))))
        return logits


class OfOneRank(nn.Module):
    """A layer that only the first rank uses."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(VOCABULARY, WIDTH)
        self.extra = nn.Linear(WIDTH, WIDTH)
        self.head = nn.Linear(WIDTH, VOCABULARY)

    @override
    def forward(self, ids: Tensor) -> Tensor:
        hidden = self.embed(ids)
        if dist.get_rank() == 0:
            hidden = hidden + self.extra(hidden)
        logits: Tensor = self.head(hidden)
        return logits


class Overflowing(Branching):
    """The gradient of one element is infinite, the loss is not."""

    def __init__(self) -> None:
        super().__init__()
        self.norm.bias.register_hook(self._spoiled)  # type: ignore[no-untyped-call]

    @staticmethod
    def _spoiled(grad: Tensor) -> Tensor:
        grad = grad.clone()
        grad[-1] = torch.inf
        return grad


def parallelism(name: str, *words: str) -> ParallelismOption:
    ranks = {"single": 1, "fsdp_hybrid": 4}.get(name, 2)
    more = [f"accumulation.samples_per_step={SAMPLES_PER_STEP}", "accumulation.micro_batch_size=1"]
    found: ParallelismOption = option(
        "parallelism", f"parallelism={name}", f"launch.processes={ranks}", *words, *more
    )
    return found


# Tiny parameters would all stay whole.
Z3 = ("zero3", "parallelism.persistence_elements=0")
OFFLOAD = ("zero_offload", "parallelism.persistence_elements=20")


Job = tuple[ParallelismOption, OptimizerOption]


def job(words: tuple[str, ...], optimizer: str = "adamw") -> Job:
    """The options of an engine, composed once for all ranks."""
    return parallelism(*words), optimizer_option(optimizer)


def start(options: Job, *, done: int = 0, network: type[nn.Module] = Branching) -> Any:
    """An engine on this rank, and its windows from a step on."""
    chosen, optimizer = options
    size = dist.get_world_size()
    world = World(dist.get_rank(), size, dist.get_rank(), "cpu", chosen.layout(size))
    plan = BatchPlan(SAMPLES_PER_STEP // 2 // size, 2, size, LENGTH)
    torch.manual_seed(0)
    parts = EngineParts(
        module=network(),
        task=NextToken(),
        optimizer=optimizer,
        precision=InFormat(kind="in_format", float64=False),
        clipping=CLIPPINGS["norm"],
        skip_nonfinite=False,
        world=world,
        plan=plan,
        requests=lambda: Request.NONE,
    )
    engine: Engine = chosen.build(parts)
    windows = Windows(
        Ragged(96, seed=7),
        plan,
        RANDOM,
        seed=0,
        data_rank=world.data_rank,
        start=done * SAMPLES_PER_STEP,
        stop=None,
    )
    return engine, iter(windows)


def train(engine: Engine, windows: Any, steps: int) -> list[float]:
    losses = []
    for _ in range(steps):
        losses.append(engine.forward_backward(next(windows)).item())
        losses.append(engine.update(1e-2).grad_norm.item())
    return losses


def weights(engine: Engine) -> dict[str, Tensor]:
    """Whole weights, on rank 0."""
    with engine.full_module() as module:
        if module is None:
            return {}
        assert not module.training
        return {name: param.detach().clone() for name, param in module.named_parameters()}


Trained = tuple[list[float], dict[str, Tensor]]
ENGINES = (("zero1",), ("zero2",), Z3, OFFLOAD)
OPTIMIZERS = ("adamw", "adafactor")


def trained(jobs: Sequence[Job], network: type[nn.Module] = Branching) -> list[Trained]:
    found = []
    for options in jobs:
        engine, windows = start(options, network=network)
        losses = train(engine, windows, 3)
        found.append((losses, weights(engine)))
        engine.close()
    return found


@cache
def outcomes(*engines: tuple[str, ...]) -> dict[tuple[tuple[str, ...], str], list[Trained]]:
    """Every rank's losses and weights, for each engine and optimizer, in one world."""
    listed = [(words, optimizer) for words in engines for optimizer in OPTIMIZERS]
    ranks = 1 if engines == (("single",),) else 2
    by_rank = run_on_ranks(trained, [job(*each) for each in listed], ranks=ranks)
    return dict(zip(listed, map(list, zip(*by_rank, strict=True)), strict=True))


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize("words", ENGINES, ids=lambda w: w[0])
def test_frozen_tied_and_unused_parameters(words: tuple[str, ...], optimizer: str) -> None:
    [(expected, whole)] = outcomes(("single",))[("single",), optimizer]
    (losses, found), (others, _) = outcomes(*ENGINES)[words, optimizer]
    assert losses == others
    assert losses == pytest.approx(expected, rel=1e-6)
    assert found.keys() == whole.keys()
    for name, weight in whole.items():
        torch.testing.assert_close(found[name], weight, rtol=1e-5, atol=1e-6)
    # They never had a gradient: no weight decay either.
    torch.manual_seed(0)
    fresh = Branching()
    assert torch.equal(found["idle.weight"], fresh.idle.weight)
    assert torch.equal(found["frozen.weight"], fresh.frozen.weight)


def test_parameters_of_some_micro_batches() -> None:
    [[(expected, _)]] = run_on_ranks(trained, [job(("single",))], Alternating, ranks=1)
    jobs = [job(words) for words in (("zero2",), Z3, OFFLOAD, ("fsdp",))]
    for (losses, _), (others, _) in zip(*run_on_ranks(trained, jobs, Alternating), strict=True):
        assert losses == others
        assert losses == pytest.approx(expected, rel=1e-6)


def refused(jobs: Sequence[Job]) -> list[str]:
    found = []
    for options in jobs:
        engine, windows = start(options, network=Overflowing)
        engine.forward_backward(next(windows))
        with pytest.raises(NonFinite) as error:
            engine.update(1e-2)
        engine.close()
        found.append(str(error.value))
    return found


def test_all_ranks_name_the_same_gradient() -> None:
    """Only one of them holds the element that is not finite."""
    first, second = run_on_ranks(refused, [job(("zero2",)), job(Z3)])
    assert first == second
    for message in first:
        assert "the first such gradient is norm.bias" in message


def left_out(jobs: Sequence[Job]) -> list[str]:
    found = []
    for options in jobs:
        engine, windows = start(options, network=OfOneRank)
        with pytest.raises(ConfigError) as error:
            engine.forward_backward(next(windows))
        engine.close()
        found.append(str(error.value))
    return found


def test_a_layer_that_some_ranks_leave_out_is_named() -> None:
    """Otherwise gloo aborts a rank, and NCCL waits for ever."""
    first, second = run_on_ranks(left_out, [job(("zero1",)), job(("zero2",)), job(("fsdp",))])
    assert first == second
    for message in first:
        assert "ranks 1 leave out extra, which others use" in message


def held(engine: Engine) -> dict[str, Any]:
    """Copies of what this rank holds."""
    return {
        name: LocalShard(value.tensor.clone(), value.shard)
        if isinstance(value, LocalShard)
        else value.clone()
        for name, value in engine.state().items()
    }


def leg(path: Path, options: Job, first: int, steps: int) -> list[float]:
    """Load the newest checkpoint, train some steps, save."""
    engine, windows = start(options, done=first)
    checkpoints = store(path)
    if first:
        snapshot = checkpoints.load(engine.state())
        assert snapshot is not None
        engine.load_state(snapshot.engine)
        # What was loaded is there before the first update.
        assert same(engine.state(), snapshot.engine)
    losses = train(engine, windows, steps)
    checkpoints.save(snapshot_of(engine, first + steps))
    checkpoints.close()
    engine.close()
    return losses


def snapshot_of(engine: Engine, step: int) -> Snapshot:
    return Snapshot(
        step=step,
        engine=engine.state(),
        train_state={"step": step},
        rng={"torch": torch.zeros(1, dtype=torch.uint8)},
        config="{}",
        data_fingerprint="data",
    )


def same(one: Mapping[str, Any], other: Mapping[str, Any]) -> bool:
    return one.keys() == other.keys() and all(bits(v) == bits(other[k]) for k, v in one.items())


LEGS = [(("zero2",), 2), (("single",), 1), (("ddp", "parallelism.find_unused_parameters=true"), 2)]
LEGS += [(("accelerate", "parallelism.find_unused_parameters=true"), 2), (Z3, 2)]


def test_a_state_moves_between_engines(tmp_path: Path) -> None:
    for name in ("alone", "moved"):
        (tmp_path / name).mkdir()
    [expected] = run_on_ranks(leg, tmp_path / "alone", job(("single",)), 0, len(LEGS), ranks=1)
    found = []
    for place, (words, ranks) in enumerate(LEGS):
        moved = (tmp_path / "moved", job(words), place, 1)
        losses, *others = run_on_ranks(leg, *moved, ranks=ranks)
        assert all(other == losses for other in others)
        found += losses
    assert found == pytest.approx(expected, rel=1e-5)


def resumed(options: Job) -> tuple[dict[str, Any], dict[str, Any]]:
    """States after four steps: in one go, and with a resume after the second."""
    first, windows = start(options)
    train(first, windows, 2)
    saved = held(first)
    train(first, windows, 2)
    second, windows = start(options, done=2)
    second.load_state(saved)
    train(second, windows, 2)
    return held(first), held(second)


@pytest.mark.parametrize("words", [("zero2",), Z3], ids=lambda w: w[0])
def test_a_resume_on_the_same_ranks_continues_bitwise(words: tuple[str, ...]) -> None:
    for first, second in run_on_ranks(resumed, job(words)):
        assert same(first, second)
        shards = [value for value in first.values() if isinstance(value, LocalShard)]
        assert any(not shard.shard.is_whole for shard in shards)


def evaluated_otherwise(options: Job) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Weights for evaluation and for training of a schedule-free optimizer, on every rank."""
    engine, windows = start(options)
    train(engine, windows, 3)
    found = weights(engine)
    train(engine, windows, 1)
    return found, weights(engine)


def test_weights_for_evaluation_reach_the_module() -> None:
    alone, two = (job((name,), "schedule_free_adamw") for name in ("single", "zero2"))
    [expected] = run_on_ranks(evaluated_otherwise, alone, ranks=1)
    found, _ = run_on_ranks(evaluated_otherwise, two)
    for own, other in zip(found, expected, strict=True):
        for name, weight in other.items():
            torch.testing.assert_close(own[name], weight, rtol=1e-5, atol=1e-6)


def built(folder: Path, jobs: Sequence[Job]) -> bool:
    os.environ["TORCH_EXTENSIONS_DIR"] = str(folder)
    trained(jobs)
    return folder.exists()


def test_nothing_is_compiled(tmp_path: Path) -> None:
    jobs = [job(("zero1",)), job(OFFLOAD)]
    assert run_on_ranks(built, tmp_path / "extensions", jobs) == [False, False]
