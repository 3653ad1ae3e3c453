"""Whole tensors, and what a rank holds of them in different layouts."""

from __future__ import annotations

import importlib
import itertools
import os
from pathlib import Path

import torch
import torch.distributed as dist
from torch import Tensor

from launcher.checkpoint._storage import Storage
from launcher.checkpoint._store import DirectoryStore
from launcher.contracts import EngineState, LocalShard, Shard, Snapshot, World
from launcher.run_dir import RunDir

# The heavy import comes before the ranks are forked, which then start in no time.
importlib.import_module("launcher.checkpoint._index")

State = dict[str, Tensor | LocalShard]
LAYOUTS = ("whole", "owner", "rows", "uneven rows", "columns", "flat", "uneven flat", "last rank")
SHAPES = {
    "float32": (5, 7),
    "bfloat16": (6, 4, 3),
    "float16": (11,),
    "uint8": (9, 2),
    "int64": (3, 3),
    "float64": (),
    "int32": (0, 4),
    "bool": (1,),
}


def whole_tensors(step: int) -> dict[str, Tensor]:
    """Tensors of many dtypes and shapes; bits that differ from step to step."""
    random = torch.Generator().manual_seed(step)
    found = {}
    for name, shape in SHAPES.items():
        dtype = getattr(torch, name)
        size = torch.Size(shape).numel() * dtype.itemsize
        noise = torch.randint(0, 256, (size,), generator=random).to(torch.uint8)
        flat = noise > 127 if dtype == torch.bool else noise.view(dtype)
        found[name] = flat.reshape(shape)
    return found


def held(
    whole: Tensor, name: str, layout: str, rank: int, ranks: int
) -> Tensor | LocalShard | None:
    """Return a copy of a rank's part of a tensor; None where the rank has none."""
    if layout == "whole":
        return whole.clone()
    if layout == "owner":
        return whole.clone() if rank == len(name) % ranks else None
    shard = shard_of(tuple(whole.shape), name, layout, rank, ranks)
    if len(shard.boxes) == 1:
        # A view that is not contiguous, as a block of columns may be.
        (box,) = shard.boxes
        local = whole.clone()
        for dim, (start, size) in enumerate(zip(box.offsets, box.sizes, strict=True)):
            local = local.narrow(dim, start, size)
        return LocalShard(local, shard)
    cuts = [
        whole[tuple(slice(o, o + s) for o, s in zip(box.offsets, box.sizes, strict=True))]
        for box in shard.boxes
    ]
    local = torch.cat([cut.reshape(-1) for cut in cuts]) if cuts else whole.new_empty(0)
    return LocalShard(local, shard)


def shard_of(shape: tuple[int, ...], name: str, layout: str, rank: int, ranks: int) -> Shard:
    """The part that a rank holds."""
    if layout in {"rows", "uneven rows", "columns"} and shape:
        dim = len(shape) - 1 if layout == "columns" else 0
        start, stop = bounds(shape[dim], rank, ranks, uneven=layout.startswith("uneven"))
        return Shard.slice_of(name, shape, dim, start, stop)
    numel = torch.Size(shape).numel()
    if layout == "last rank":
        start, stop = (0, numel) if rank == ranks - 1 else (0, 0)
    else:
        start, stop = bounds(numel, rank, ranks, uneven=layout.startswith("uneven"))
    return Shard.flat_range(name, shape, start, stop - start)


def bounds(length: int, rank: int, ranks: int, *, uneven: bool) -> tuple[int, int]:
    """A rank's range: about equal ones, or one element for each rank but the first."""
    if uneven:
        first = max(0, length - ranks + 1)
        start, stop = (0, first) if rank == 0 else (first + rank - 1, first + rank)
        return min(start, length), min(stop, length)
    size = -(-length // ranks)
    return min(rank * size, length), min((rank + 1) * size, length)


def engine(step: int, rank: int, ranks: int, *, turn: int = 0) -> State:
    """Every tensor in every layout; `turn` gives each name another layout."""
    found: State = {}
    for (name, whole), place in itertools.product(whole_tensors(step).items(), range(len(LAYOUTS))):
        key = f"model.{name}.{place}"
        value = held(whole, key, LAYOUTS[(place + turn) % len(LAYOUTS)], rank, ranks)
        if value is not None:
            found[key] = value
    return found


def same_engines(one: EngineState, other: EngineState) -> bool:
    """Bitwise equality of what a rank holds."""
    return one.keys() == other.keys() and all(
        bits(value) == bits(other[name]) for name, value in one.items()
    )


def bits(value: Tensor | LocalShard) -> tuple[torch.dtype, torch.Size, bytes]:
    tensor = value.tensor if isinstance(value, LocalShard) else value
    plain = tensor.detach().contiguous().reshape(-1)
    data = plain.view(torch.uint8).numpy().tobytes() if plain.numel() else b""
    return tensor.dtype, tensor.shape, data


def generators(step: int, rank: int) -> dict[str, Tensor]:
    return {"torch": torch.tensor([step, rank, 7], dtype=torch.uint8)}


def snapshot(step: int, *, turn: int = 0, state: EngineState | None = None) -> Snapshot:
    """A snapshot of this rank, of every tensor or of a given state."""
    rank, ranks = dist.get_rank(), dist.get_world_size()
    return Snapshot(
        step=step,
        engine=engine(step, rank, ranks, turn=turn) if state is None else state,
        train_state={"step": step},
        rng=generators(step, rank),
        config='{"seed": 0}\n',
        data_fingerprint="data",
    )


def store(
    path: Path,
    storage: Storage | None = None,
    *,
    keep: int = 9,
    asynchronous: bool = False,
    timeout_s: float = 60,
) -> DirectoryStore:
    """This rank's store of a run."""
    # No test cuts the real power: syncs would only make the disk busy.
    os.fsync = lambda fd: None
    rank = dist.get_rank()
    return DirectoryStore(
        RunDir(path),
        World(rank, dist.get_world_size(), rank, "cpu"),
        keep=keep,
        asynchronous=asynchronous,
        timeout_s=timeout_s,
        storage=storage,
    )


def names(run: Path) -> list[str]:
    """Return the names in the folder of checkpoints."""
    return sorted(path.name for path in (run / "checkpoints").iterdir())


def load(run: Path, turn: int = 0) -> tuple[int, bool, bool]:
    """Load into tensors of another step; the step, and if engine and generators are as saved."""
    live = snapshot(0, turn=turn).engine
    loaded = store(run).load(live)
    assert loaded is not None
    assert all(loaded.engine[name] is live[name] for name in live)
    expected = snapshot(loaded.step, turn=turn)
    same_rng = loaded.rng.keys() == expected.rng.keys() and all(
        torch.equal(loaded.rng[name], tensor) for name, tensor in expected.rng.items()
    )
    return loaded.step, same_engines(loaded.engine, expected.engine), same_rng
