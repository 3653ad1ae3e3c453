"""A run with small, recognisable snapshots, and stores over it."""

from __future__ import annotations

import json
import os
import shutil
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from torch import Tensor

from launcher.checkpoint import _manifest
from launcher.checkpoint._storage import Storage
from launcher.checkpoint._store import DirectoryStore
from launcher.contracts import EngineState, LocalShard, Snapshot, World
from launcher.run_dir import RunDir

CONFIG = '{"seed": 0}\n'


@dataclass(frozen=True)
class Bench:
    run_dir: RunDir

    @property
    def folder(self) -> Path:
        return self.run_dir.checkpoints

    def step(self, step: int) -> Path:
        return self.run_dir.checkpoint(step)

    def store(
        self,
        storage: Storage | None = None,
        *,
        keep: int = 2,
        asynchronous: bool = False,
        timeout_s: float = 60,
    ) -> DirectoryStore:
        return DirectoryStore(
            self.run_dir,
            World(rank=0, size=1, local_rank=0, device="cpu"),
            keep=keep,
            asynchronous=asynchronous,
            timeout_s=timeout_s,
            storage=storage,
        )

    def snapshot(self, step: int, *, config: str = CONFIG, numel: int = 12) -> Snapshot:
        """Return a snapshot whose values identify its step, with the same tensors for every
        step."""
        random = torch.Generator().manual_seed(step)
        engine: EngineState = {
            "model.weight": torch.randn(3, numel, generator=random),
            "model.half": torch.randn(5, generator=random).bfloat16(),
            "optimizer.weight.step": torch.tensor(float(step)),
            "optimizer.weight.exp_avg": torch.randn(3, numel, generator=random),
        }
        return Snapshot(
            step=step,
            engine=engine,
            train_state={"step": step, "samples": 8 * step, "memory": {"best": step / 3}},
            rng={"torch": torch.randint(0, 256, (50,), generator=random).to(torch.uint8)},
            config=config,
            data_fingerprint="data",
        )

    def save(self, *steps: int, keep: int = 9) -> None:
        store = self.store(keep=keep)
        for step in steps:
            store.save(self.snapshot(step))
        store.close()

    def load(self) -> Snapshot | None:
        return self.store().load(self.snapshot(0).engine)

    @staticmethod
    def blank(engine: EngineState) -> EngineState:
        """Live tensors of the same shapes and dtypes, with other values."""
        tensors = {name: plain(value) for name, value in engine.items()}
        return {
            name: torch.full(tuple(tensor.shape), 85, dtype=torch.uint8).to(tensor.dtype)
            for name, tensor in tensors.items()
        }

    def names(self) -> list[str]:
        return sorted(path.name for path in self.folder.glob("*"))

    def copy(self, where: Path) -> Bench:
        """The same run elsewhere; its id, the folder's name, stays."""
        other = self.elsewhere(where)
        shutil.copytree(self.run_dir.path, other.run_dir.path, symlinks=True)
        return other

    def elsewhere(self, where: Path) -> Bench:
        """A run of the same name in another folder, which may not be there yet."""
        return Bench(RunDir(where / self.run_dir.id))

    def reseal(self, step: int, **changes: object) -> None:
        """Make the manifest agree with the files as they are now, as an attacker would."""
        folder = self.step(step)
        manifest = _manifest.peek(folder)
        assert manifest is not None
        files = {
            path.relative_to(folder).as_posix(): _manifest.record(path.read_bytes())
            for path in folder.rglob("*")
            if path.is_file() and path.name != _manifest.NAME
        }
        resealed = manifest.model_copy(update={"files": files, **changes})
        (folder / _manifest.NAME).write_bytes(_manifest.encode(resealed))

    @staticmethod
    def same(one: Snapshot | None, other: Snapshot | None) -> bool:
        """Bitwise equality of everything."""
        if one is None or other is None:
            return one is other
        return (
            (one.step, one.config, one.data_fingerprint)
            == (other.step, other.config, other.data_fingerprint)
            and json.dumps(one.train_state) == json.dumps(other.train_state)
            and Bench.same_tensors(one.engine, other.engine)
            and Bench.same_tensors({**one.rng}, {**other.rng})
        )

    @staticmethod
    def same_tensors(one: EngineState, other: EngineState) -> bool:
        return one.keys() == other.keys() and all(
            same_tensor(plain(value), plain(other[name])) for name, value in one.items()
        )


def plain(value: Tensor | LocalShard) -> Tensor:
    assert isinstance(value, Tensor)
    return value


def same_tensor(one: Tensor, other: Tensor) -> bool:
    return (one.dtype, one.shape, bits(one)) == (other.dtype, other.shape, bits(other))


def bits(tensor: Tensor) -> bytes:
    if not tensor.numel():
        return b""
    plain = torch.empty(tensor.numel(), dtype=tensor.dtype)
    plain.copy_(tensor.detach().reshape(-1))
    return plain.view(torch.uint8).numpy().tobytes()


@pytest.fixture(autouse=True)
def _no_waiting_for_the_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    """No test here cuts the real power: thousands of syncs would only hold up our neighbours."""
    monkeypatch.setattr(os, "fsync", lambda descriptor: None)


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    path = tmp_path / "run-1"
    path.mkdir()
    return Bench(RunDir(path))


@pytest.fixture
def run(tmp_path: Path) -> Path:
    path = tmp_path / "run-1"
    path.mkdir()
    return path
