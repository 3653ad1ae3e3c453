"""Write tensors in the format of torch.distributed.checkpoint (DCP); slow to import (0.5 s)."""

from __future__ import annotations

import dataclasses
import io
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import cast

import torch
from torch import Tensor
from torch.distributed.checkpoint.default_planner import DefaultSavePlanner
from torch.distributed.checkpoint.filesystem import (
    FileSystemBase,
    FileSystemWriter,
    _StoragePrefix,
)
from torch.distributed.checkpoint.metadata import (
    ChunkStorageMetadata,
    Metadata,
    MetadataIndex,
    StorageMeta,
    TensorProperties,
    TensorStorageMetadata,
)
from torch.distributed.checkpoint.planner import (
    SavePlan,
    TensorWriteData,
    WriteItem,
    WriteItemType,
)
from torch.distributed.checkpoint.storage import WriteResult
from typing_extensions import override

from launcher.checkpoint._draft import Draft
from launcher.checkpoint._ranks import Ranks
from launcher.checkpoint._state import State, check_cover, full_shape, parts
from launcher.contracts import Box, LocalShard

# DCP's planner decides which rank writes which box: what several ranks hold is written once, by the
# rank that has least to write so far. DCP's file writer writes the entries, so that torch's tools
# read our checkpoints. `dcp.save` and `dcp.load` are not used: they wrap every error in a
# BaseException, and their collectives run in the training's process group. File access goes through
# a `Draft`, which hashes, fsyncs, and can be interrupted at every call in a test.
STATE = "state"


@dataclasses.dataclass(frozen=True, slots=True)
class Plan:
    """Boxes that a rank writes, and on rank 0 the index of all ranks' boxes."""

    save_plan: SavePlan
    metadata: Metadata | None

    @property
    def names(self) -> frozenset[str]:
        """Names of the tensors of which this rank writes a part."""
        return frozenset(item.index.fqn for item in self.save_plan.items)


def make_plan(state: State, ranks: Ranks) -> Plan:
    """Decide, together with the other ranks, which rank writes which box."""
    found: list[Metadata] = []

    def decide(plans: list[SavePlan]) -> Sequence[SavePlan]:
        plans, metadata = _global_plan(plans)
        found.append(metadata)
        return plans

    plan = ranks.scatter(lambda: _local_plan(state), decide)
    return Plan(_in_file(plan, ranks.rank), found[0] if found else None)


def plan_parts(states: Sequence[State]) -> list[Plan]:
    """Plan the files of several parts in one process; the first plan has the index of all."""
    plans, metadata = _global_plan([_local_plan(state) for state in states])
    return [
        Plan(_in_file(plan, part), None if part else metadata) for part, plan in enumerate(plans)
    ]


def _local_plan(state: State) -> SavePlan:
    return SavePlan([item for name, value in state.items() for item in _items(name, value)])


def _global_plan(plans: list[SavePlan]) -> tuple[list[SavePlan], Metadata]:
    plans, metadata = DefaultSavePlanner(flatten_state_dict=False).create_global_plan(plans)
    _check_all_is_there(metadata)
    return plans, metadata


def _in_file(plan: SavePlan, rank: int) -> SavePlan:
    return dataclasses.replace(plan, storage_data=_StoragePrefix(f"__{rank}_"))


def write(state: State, plan: Plan, draft: Draft) -> list[WriteResult]:
    """Write this rank's boxes under `state/` of a draft; the tensors must not change meanwhile."""
    if not plan.save_plan.items:
        return []
    with _disk_errors(draft):
        writer, planner = _Writer(draft), _Planner(state)
        return writer.write_data(plan.save_plan, planner).wait()


def finish(plan: Plan, results: list[list[WriteResult]], draft: Draft) -> None:
    """Write the index of all ranks' boxes, on rank 0."""
    assert plan.metadata is not None, "only rank 0 has the index"  # noqa: S101
    with _disk_errors(draft):
        _Writer(draft).finish(plan.metadata, results)


@contextmanager
def _disk_errors(draft: Draft) -> Iterator[None]:
    try:
        yield
    except Exception as error:
        # torch reports a full disk as an unexpected position in its own file.
        if draft.error is not None and draft.error is not error:
            raise draft.error from error
        raise


def _items(name: str, value: Tensor | LocalShard) -> Iterator[WriteItem]:
    shape = torch.Size(full_shape(value))
    for box, tensor in parts(value):
        offsets = torch.Size(box.offsets)
        yield WriteItem(
            index=MetadataIndex(name, offsets),
            type=WriteItemType.SHARD if isinstance(value, LocalShard) else WriteItemType.TENSOR,
            tensor_data=TensorWriteData(
                chunk=ChunkStorageMetadata(offsets, torch.Size(box.sizes)),
                properties=TensorProperties(dtype=tensor.dtype),
                size=shape,
            ),
        )


def _check_all_is_there(metadata: Metadata) -> None:
    for name, entry in metadata.state_dict_metadata.items():
        assert isinstance(entry, TensorStorageMetadata), "nothing else is planned"  # noqa: S101
        boxes = [Box(tuple(chunk.offsets), tuple(chunk.sizes)) for chunk in entry.chunks]
        try:
            check_cover(entry.size, boxes)
        except ValueError as error:
            raise ValueError(f"{name}: {error}") from error


class _Planner(DefaultSavePlanner):
    """Passes the elements of a box to DCP's writer."""

    def __init__(self, state: State) -> None:
        super().__init__(flatten_state_dict=False)
        self._state = state

    @override
    def resolve_data(self, write_item: WriteItem) -> Tensor:
        found = dict(parts(self._state[write_item.index.fqn]))
        assert write_item.tensor_data is not None, "only tensors are planned"  # noqa: S101
        chunk = write_item.tensor_data.chunk
        return found[Box(tuple(chunk.offsets), tuple(chunk.sizes))]


class _Writer(FileSystemWriter):
    """DCP's writer, which writes one file per rank, on a draft."""

    def __init__(self, draft: Draft) -> None:
        # The draft syncs each file itself; copying ahead is for tensors on devices.
        super().__init__(draft.folder / STATE, sync_files=False, per_thread_copy_ahead=0)
        self.fs = _DraftFiles(draft)  # type: ignore[assignment]  # declared too narrowly

    @override
    def storage_meta(self) -> StorageMeta:
        # Without content: DCP's has a Path, which the unpickler would have to accept, and a random
        # id, with which checkpoints of equal states would differ.
        return StorageMeta()


class _DraftFiles(FileSystemBase):
    """Adapt a draft to DCP's file system interface."""

    def __init__(self, draft: Draft) -> None:
        self._draft = draft

    @contextmanager
    @override
    def create_stream(self, path: str | os.PathLike[str], mode: str) -> Iterator[io.IOBase]:
        if mode != "wb":
            raise ValueError(f"a draft is only written to, not opened with {mode!r}")
        with self._draft.open(self._name(path)) as stream:
            yield cast("io.IOBase", stream)

    @override
    def concat_path(self, path: str | os.PathLike[str], suffix: str) -> Path:
        return Path(path) / suffix

    @override
    def rename(self, path: str | os.PathLike[str], new_path: str | os.PathLike[str]) -> None:
        self._draft.rename(self._name(path), self._name(new_path))

    @override
    def init_path(self, path: str | os.PathLike[str]) -> Path:
        return Path(path)

    @override
    def mkdir(self, path: str | os.PathLike[str]) -> None:
        raise FileExistsError(f"{path}: the folders of a draft are made before it is filled")

    @classmethod
    @override
    def validate_checkpoint_id(cls, checkpoint_id: str | os.PathLike[str]) -> bool:
        del checkpoint_id
        return True

    @override
    def exists(self, path: str | os.PathLike[str]) -> bool:
        return Path(path).exists()

    @override
    def rm_file(self, path: str | os.PathLike[str]) -> None:
        raise FileExistsError(f"{path} is there already: a draft is never overwritten")

    def _name(self, path: str | os.PathLike[str]) -> str:
        return Path(path).relative_to(self._draft.folder).as_posix()
