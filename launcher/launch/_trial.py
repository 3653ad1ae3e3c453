"""What a rank does in a trial of accumulation=auto: the run's first steps, on its longest samples.

A trial is a run in a directory of its own, whose config still says `auto`, with the micro-batch
that is tried as the upper bound. It builds what the run will build, trains, evaluates, and leaves
what it took in RUN_DIR/rank-<n>.json.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from signal import Signals

import torch

from launcher.config.schema import RunConfig
from launcher.contracts import LocalShard, MicroBatch, Request, Samples, TrainState, Window, World
from launcher.errors import OutOfMemory
from launcher.launch._memory import Memory, memory_of
from launcher.run_dir import RunDir, write_atomically
from launcher.training import rng
from launcher.training.out_of_memory import is_out_of_memory
from launcher.training.parts import Parts, build
from launcher.training.requests import RankRequests, stop_error, stop_signal
from launcher.training.runner import Outcome

MAX_STEPS = 12
"""A trial ends when its memory has stopped growing, and with this step at the latest."""
_MIB = 2**20
# The first step has no optimizer state yet, and later ones find the memory that others gave back in
# pieces that do not fit; the C library takes some steps to come to rest.
_QUIET_STEPS = 2
_GROWTH = 1.005
# A dynamic loss scale may have to come down a long way before the first update is applied.
_ATTEMPTS = 24


def try_out(
    config: RunConfig, run_dir: RunDir, world: World, stop: Callable[[], Signals | None]
) -> Outcome:
    """Do all that a run does that takes memory, and write down how much it took.

    Args:
        config: The config, with accumulation=auto and the micro-batch that is tried as its bound.
        run_dir: The trial's directory.
        world: This process's place among the ranks.
        stop: The signal that asked the run to end, or None.

    Raises:
        OutOfMemory: The micro-batch does not fit.
        TrainctlError: The run could not start with any micro-batch, or was asked to end.
    """
    search = config.accumulation.search
    assert search is not None, "a trial's config has a search"  # noqa: S101
    rng.seed_everything(config.seed)
    memory = memory_of(world.device, search)
    memory.impose()
    refused = False
    try:
        _rehearse(config, world, memory, stop)
    except Exception as error:
        if not is_out_of_memory(error):
            raise
        refused = True
    peak = memory.peak()
    fits = not refused and peak <= memory.limit
    measured = {
        "fits": fits,
        "peak_mib": peak / _MIB,
        "limit_mib": memory.limit / _MIB,
        "device": world.device,
    }
    path = run_dir.path / f"rank-{world.rank}.json"
    write_atomically(path, json.dumps(measured, indent=1) + "\n")
    if not fits:
        raise OutOfMemory(
            f"rank {world.rank} took {peak / _MIB:,.0f} MiB of {memory.limit / _MIB:,.0f} MiB"
            f"{' and was refused more' if refused else ''}"
        )
    return Outcome(TrainState(), {}, {}, None)


def _rehearse(
    config: RunConfig, world: World, memory: Memory, stop: Callable[[], Signals | None]
) -> None:
    parts = build(config, world, RankRequests(stop, None))
    engine = parts.engine
    try:
        window = _longest_window(parts)
        saves = config.checkpoint.copies_state
        held: Mapping[str, torch.Tensor] = {}
        scored = _longest_scored(parts)
        quiet = 0
        for step in range(MAX_STEPS):
            before = memory.peak()
            _train_step(parts, window, parts.schedule.lr(step, {}))
            for _ in engine.evaluate(scored, parts.task.predict):
                pass
            if saves and not held and torch.device(world.device).type == "cpu":
                # A store that saves in the background keeps a copy of the state in this memory.
                held = {name: _copy(value) for name, value in engine.state().items()}
            grows = step == 0 or memory.peak() > before * _GROWTH
            # Each rank measures its own memory, but a step needs all ranks.
            grows = bool(engine.agree(Request.CONTINUE if grows else Request.NONE))
            quiet = 0 if grows else quiet + 1
            if quiet == _QUIET_STEPS:
                break
        del held
    finally:
        engine.close()


def _copy(value: torch.Tensor | LocalShard) -> torch.Tensor:
    return (value.tensor if isinstance(value, LocalShard) else value).clone()


def _train_step(parts: Parts, window: Window, lr: float | None) -> None:
    for _ in range(_ATTEMPTS):
        parts.engine.forward_backward(window)
        update = parts.engine.update(lr)
        if (signal := stop_signal(update.requests)) is not None:
            raise stop_error(signal, 0)
        if update.applied:
            return


def _longest_window(parts: Parts) -> Window:
    """A window of the longest samples; its second micro-batch meets gradients of the first."""
    plan = parts.plan
    piece = _longest(parts.train, plan.micro_batch_size)
    pieces = [piece] * min(2, plan.micro_batches)
    num_targets = sum(each.num_targets for each in pieces) * plan.ranks
    return Window(pieces, plan.micro_batch_size * len(pieces) * plan.ranks, num_targets)


def _longest_scored(parts: Parts) -> Sequence[MicroBatch]:
    if not len(parts.validation):
        return ()
    return [_longest(parts.validation, parts.plan.micro_batch_size)] * 2


def _longest(samples: Samples, size: int) -> MicroBatch:
    """A micro-batch that takes as much memory as any: the longest sample, `size` times."""
    return samples.micro_batch([int(samples.lengths.argmax())] * size, 0)
