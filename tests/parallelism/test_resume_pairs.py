"""A run saved by any engine continues on any other: every ordered pair of worlds."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from launcher.contracts import LocalShard
from tests.checkpoint.sharded import store
from tests.distributed import run_on_ranks
from tests.parallelism.test_zero import Z3, Job, held, job, snapshot_of, start, train

UNUSED = "parallelism.find_unused_parameters=true"
WORLDS: Mapping[str, tuple[tuple[str, ...], int]] = {
    "single": (("single",), 1),
    "ddp on 2": (("ddp", UNUSED), 2),
    "fsdp on 2": (("fsdp",), 2),
    "fsdp on 4": (("fsdp",), 4),
    "fsdp_hybrid on 4": (("fsdp_hybrid",), 4),
    "zero1 on 2": (("zero1",), 2),
    "zero2 on 2": (("zero2",), 2),
    "zero3 on 2": (Z3, 2),
    "accelerate on 2": (("accelerate", UNUSED), 2),
}
"""Preset with its settings, and number of ranks."""
BEFORE, AFTER = 2, 2
"""Steps before and after the save."""

Leg = tuple[list[float], dict[str, Any]]
"""Losses and norms after the save, and this rank's state at the save."""


def saved(path: Path, options: Job) -> tuple[list[float], Leg]:
    """Train, save, and train on; also returns losses and norms before the save."""
    engine, windows = start(options)
    before = train(engine, windows, BEFORE)
    checkpoints = store(path)
    checkpoints.save(snapshot_of(engine, BEFORE))
    checkpoints.close()
    state = held(engine)
    after = train(engine, windows, AFTER)
    engine.close()
    return before, (after, state)


def continued(paths: Sequence[Path], options: Job) -> list[Leg]:
    """Load each checkpoint, and train on."""
    found = []
    for path in paths:
        engine, windows = start(options, done=BEFORE)
        checkpoints = store(path)
        snapshot = checkpoints.load(engine.state())
        checkpoints.close()
        assert snapshot is not None
        engine.load_state(snapshot.engine)
        state = held(engine)
        found.append((train(engine, windows, AFTER), state))
        engine.close()
    return found


def full(by_rank: Sequence[Mapping[str, Any]]) -> dict[str, Tensor]:
    """Return the full tensors of all ranks' states."""
    found: dict[str, Tensor] = {}
    for own in by_rank:
        for name, value in own.items():
            if isinstance(value, LocalShard):
                # Where no rank holds an element, it stays a NaN.
                empty = torch.full(value.shard.shape, torch.nan, dtype=value.tensor.dtype)
                value.shard.gather(value.tensor, found.setdefault(name, empty))
            else:
                found[name] = value
    return found


@pytest.mark.slow
def test_every_pair_of_worlds_continues_the_run(tmp_path: Path) -> None:
    """Bitwise the same state before the first update, then the losses of an undisturbed run."""
    paths = {name: tmp_path / name.replace(" ", "-") for name in WORLDS}
    undisturbed, states, own = {}, {}, {}
    for name, (words, ranks) in WORLDS.items():
        paths[name].mkdir()
        by_rank = run_on_ranks(saved, paths[name], job(words), ranks=ranks)
        undisturbed[name] = by_rank[0][0] + by_rank[0][1][0]
        own[name] = by_rank[0][1][0]
        states[name] = full([state for _, (_, state) in by_rank])
    expected = undisturbed["single"]
    different = []
    for target, (words, ranks) in WORLDS.items():
        by_rank = run_on_ranks(
            continued, list(paths.values()), job(words), ranks=ranks, timeout_s=300
        )
        for place, source in enumerate(WORLDS):
            losses = by_rank[0][place][0]
            assert all(each[place][0] == losses for each in by_rank)
            loaded = full([each[place][1] for each in by_rank])
            assert loaded.keys() == states[source].keys()
            for name, tensor in states[source].items():
                assert torch.equal(loaded[name], tensor), f"{source} to {target}: {name}"
            if source == target:
                assert losses == own[source], source
            if losses != pytest.approx(expected[2 * BEFORE :], rel=1e-5):
                different.append((source, target, losses))
    assert different == []
    assert all(losses == pytest.approx(expected, rel=1e-5) for losses in undisturbed.values())
