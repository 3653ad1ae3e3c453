"""Trial of accumulation=auto on one rank: train and evaluate on the longest samples."""

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
from launcher.training.failures import is_out_of_memory
from launcher.training.parts import Parts, build
from launcher.training.requests import RankRequests, stop_error, stop_signal
from launcher.training.runner import Outcome

# A trial ends when its memory has stopped growing, and after this many steps at the latest.
MAX_STEPS = 12
_MIB = 2**20
# The first step has no optimizer state yet, later ones meet fragmented memory, and the C library
# needs some steps until its arenas stop growing.
_STABLE_STEPS = 2
_GROWTH = 1.005
# A dynamic loss scale may have to come down a long way before the first update is applied.
_ATTEMPTS = 24


def run_trial(
    config: RunConfig, run_dir: RunDir, world: World, stop: Callable[[], Signals | None]
) -> Outcome:
    """Run everything in a training step that uses memory, and record the peak in rank-N.json.

    Raises:
        OutOfMemory: The micro-batch does not fit.
        TrainctlError: The run could not start with any size, or a signal ended it.
    """
    search = config.accumulation.search
    assert search is not None, "a trial's config has a search"  # noqa: S101
    rng.seed_everything(config.seed)
    # Before anything is allocated: the free memory is the limit.
    memory = memory_of(world.device, search)
    memory.impose()
    out_of_memory = False
    try:
        _warm_up(config, world, memory, stop)
    except Exception as error:
        if not is_out_of_memory(error):
            raise
        out_of_memory = True
    peak = memory.peak()
    fits = not out_of_memory and peak <= memory.limit
    measured = {
        "fits": fits,
        "peak_mib": peak / _MIB,
        "limit_mib": memory.limit / _MIB,
        "device": world.device,
    }
    path = run_dir.path / f"rank-{world.rank}.json"
    # Written in both cases, for the message: how much was missing.
    write_atomically(path, json.dumps(measured, indent=1) + "\n")
    if not fits:
        raise OutOfMemory(
            f"rank {world.rank} used {peak / _MIB:,.0f} MiB of {memory.limit / _MIB:,.0f} MiB"
            f"{' and ran out of memory' if out_of_memory else ''}"
        )
    return Outcome(TrainState(), {}, {}, None)


def _warm_up(
    config: RunConfig, world: World, memory: Memory, stop: Callable[[], Signals | None]
) -> None:
    parts = build(config, world, RankRequests(stop, None))
    engine = parts.engine
    try:
        window = _longest_window(parts)
        saves = config.checkpoint.copies_state
        held: Mapping[str, torch.Tensor] = {}
        scored = _longest_scored(parts)
        stable_steps = 0
        for step in range(MAX_STEPS):
            before = memory.peak()
            _train_step(parts, window, parts.schedule.lr(step, {}))
            for _ in engine.evaluate(scored, parts.task.predict):
                pass
            if saves and not held and torch.device(world.device).type == "cpu":
                # A background save keeps a copy of the state in this memory.
                held = {name: _copy(value) for name, value in engine.state().items()}
            grows = step == 0 or memory.peak() > before * _GROWTH
            # Each rank measures its own memory, but a step needs all ranks.
            grows = bool(engine.agree(Request.CONTINUE if grows else Request.NONE))
            stable_steps = 0 if grows else stable_steps + 1
            if stable_steps == _STABLE_STEPS:
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
    # Two micro-batches are enough: the second one computes while the gradients of the first exist.
    plan = parts.plan
    longest = _longest(parts.train, plan.micro_batch_size)
    micro_batches = [longest] * min(2, plan.micro_batches)
    num_targets = longest.num_targets * len(micro_batches) * plan.ranks
    num_samples = plan.micro_batch_size * len(micro_batches) * plan.ranks
    return Window(micro_batches, num_samples, num_targets)


def _longest_scored(parts: Parts) -> Sequence[MicroBatch]:
    if not len(parts.validation):
        return ()
    return [_longest(parts.validation, parts.plan.micro_batch_size)] * 2


def _longest(samples: Samples, size: int) -> MicroBatch:
    # The longest sample `size` times: no batch of the run needs more memory.
    return samples.micro_batch([int(samples.lengths.argmax())] * size, 0)
