"""Tensors in the format of torch.distributed.checkpoint, through our storage, not unpickled.

DCP's planners and its file writer do the work, so that sharded tensors change nothing in the format
and torch's own tools read our checkpoints. Its entry points `save` and `load` are not used for one
rank: they warn that there is no process group, and wrap every error in a BaseException. What is
replaced:

* file access, by a `Draft`, which hashes, fsyncs and can be stopped at every call;
* the reading of `.metadata`, a pickle, by an unpickler that knows the index's classes and nothing
  else;
* the reading of entries: tensors only, at the places that the index gives, within files of the
  manifest.

Importing this module takes half a second of CPU time; import it where it is needed, not before.
"""

from __future__ import annotations

import io
import os
import pickle
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor
from torch.distributed.checkpoint.default_planner import DefaultLoadPlanner, DefaultSavePlanner
from torch.distributed.checkpoint.filesystem import (
    FileSystemBase,
    FileSystemReader,
    FileSystemWriter,
    _StorageInfo,
)
from torch.distributed.checkpoint.metadata import Metadata, StorageMeta, TensorStorageMetadata
from torch.distributed.checkpoint.planner import LoadPlan, LoadPlanner
from torch.futures import Future
from typing_extensions import override

from launcher.checkpoint._draft import Draft
from launcher.checkpoint._staging import fill
from launcher.errors import CheckpointError

STATE = "state"

_INDEX = "torch.distributed.checkpoint.metadata"
_KNOWN = {
    (_INDEX, "Metadata"),
    (_INDEX, "TensorStorageMetadata"),
    (_INDEX, "TensorProperties"),
    (_INDEX, "_MEM_FORMAT_ENCODING"),
    (_INDEX, "ChunkStorageMetadata"),
    (_INDEX, "MetadataIndex"),
    (_INDEX, "StorageMeta"),
    ("torch.distributed.checkpoint.filesystem", "_StorageInfo"),
    ("torch.serialization", "_get_layout"),
    ("torch", "Size"),
}


def write(tensors: Mapping[str, Tensor], draft: Draft) -> None:
    """Write tensors under `state/` of a draft.

    Args:
        tensors: On any device; they must not change before this returns.
        draft: Takes the files.

    Raises:
        OSError: The disk said no.
    """
    try:
        _write(dict(tensors), draft)
    except Exception as error:
        # torch reports a full disk as an unexpected position in its own file.
        if draft.error is not None and draft.error is not error:
            raise draft.error from error
        raise


def _write(tensors: dict[str, Tensor], draft: Draft) -> None:
    writer, planner = _Writer(draft), DefaultSavePlanner(flatten_state_dict=False)
    writer.set_up_storage_writer(is_coordinator=True)
    planner.set_up_planner(tensors, writer.storage_meta(), is_coordinator=True)
    plan = writer.prepare_local_plan(planner.create_local_plan())
    plans, metadata = planner.create_global_plan([plan])
    (plan,) = writer.prepare_global_plan(plans)
    written = writer.write_data(planner.finish_plan(plan), planner)
    writer.finish(metadata, [written.wait()])


class Index:
    """Which tensors a checkpoint holds, and where.

    Args:
        folder: A checkpoint that has been verified.
        sizes: Length of each of its files, by path relative to the folder.

    Raises:
        CheckpointError: The index holds anything but the description of plain tensors in those
            files.
    """

    def __init__(self, folder: Path, sizes: Mapping[str, int]) -> None:
        self._reader = _Reader(folder / STATE)
        self._path = folder / STATE / ".metadata"
        with _refused(self._path):
            self._metadata = self._reader.read_metadata()
            self._entries = dict(_entries(self._metadata))
            _check_places(self._metadata, sizes)

    def describe(self) -> dict[str, tuple[torch.Size, torch.dtype]]:
        """Shape and dtype of every tensor by name."""
        return {key: (entry.size, entry.properties.dtype) for key, entry in self._entries.items()}

    def read(self) -> dict[str, Tensor]:
        """Every tensor by name, in fresh CPU memory.

        Raises:
            CheckpointError: A file holds something that is not the tensor it should be.
        """
        tensors = {
            key: torch.empty(size, dtype=dtype) for key, (size, dtype) in self.describe().items()
        }
        with _refused(self._path):
            planner = DefaultLoadPlanner(flatten_state_dict=False)
            planner.set_up_planner(dict(tensors), self._metadata, is_coordinator=True)
            self._reader.set_up_storage_reader(self._metadata, is_coordinator=True)
            plan = self._reader.prepare_local_plan(planner.create_local_plan())
            (plan,) = self._reader.prepare_global_plan(planner.create_global_plan([plan]))
            self._reader.read_data(planner.finish_plan(plan), planner).wait()
        return tensors


class _Writer(FileSystemWriter):
    """DCP's writer of one file per rank, on a draft."""

    def __init__(self, draft: Draft) -> None:
        # The draft syncs each file itself; copying ahead is for devices, our tensors are staged.
        super().__init__(draft.folder / STATE, sync_files=False, per_thread_copy_ahead=0)
        self.fs = _DraftFiles(draft)  # type: ignore[assignment]  # declared too narrowly

    @override
    def storage_meta(self) -> StorageMeta:
        """Nothing: DCP would pickle a Path and a random id; equal states would differ."""
        return StorageMeta()


class _DraftFiles(FileSystemBase):
    """A draft as DCP wants to see a file system."""

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
        self._draft.mkdir(self._name(path))

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


class _Unpickler(pickle.Unpickler):  # noqa: S301 - this one cannot call what it does not know
    """Makes the objects of DCP's index and refuses every other name."""

    @override
    def find_class(self, module_name: str, global_name: str, /) -> Any:
        if (module_name, global_name) in _KNOWN:
            return super().find_class(module_name, global_name)
        if module_name == "torch" and isinstance(getattr(torch, global_name, None), torch.dtype):
            return getattr(torch, global_name)
        raise pickle.UnpicklingError(
            f"it asks for {module_name}.{global_name}, which no checkpoint of ours holds; "
            "nothing was run"
        )


class _Reader(FileSystemReader):
    """DCP's reader, for plain tensors only."""

    @override
    def read_metadata(self, *args: Any, **kwargs: Any) -> Metadata:
        with (Path(self.path) / ".metadata").open("rb") as file:
            metadata = _Unpickler(file).load()
        if not isinstance(metadata, Metadata):
            raise TypeError(f"it holds a {type(metadata).__name__}, not an index")
        return metadata

    @override
    def read_data(self, plan: LoadPlan, planner: LoadPlanner) -> Future[None]:
        files: dict[str, io.BufferedReader] = {}
        try:
            for item in plan.items:
                place: _StorageInfo = self.storage_data[item.storage_index]
                path = Path(self.path) / place.relative_path
                if place.relative_path not in files:
                    files[place.relative_path] = path.open("rb")
                target = planner.resolve_tensor(item).detach()
                with _refused(path, f"the entry of {item.storage_index.fqn}"):
                    tensor = _load(files[place.relative_path], place, target.dtype)
                    for dim, (start, length) in enumerate(
                        zip(item.storage_offsets, item.lengths, strict=True)
                    ):
                        tensor = tensor.narrow(dim, start, length)
                    if tensor.shape != target.shape:
                        raise ValueError(
                            f"shape {tuple(tensor.shape)}, expected {tuple(target.shape)}"
                        )
                    fill(target, tensor)
                planner.commit_tensor(item, target)
        finally:
            for file in files.values():
                file.close()
        done: Future[None] = Future()
        done.set_result(None)
        return done


def _load(file: io.BufferedReader, place: _StorageInfo, dtype: torch.dtype) -> Tensor:
    """The one tensor at a place in a file."""
    file.seek(place.offset)
    tensor = torch.load(io.BytesIO(file.read(place.length)), map_location="cpu", weights_only=True)
    if type(tensor) is not Tensor or tensor.dtype != dtype or tensor.layout != torch.strided:
        found = f"{tensor.dtype} tensor" if isinstance(tensor, Tensor) else type(tensor).__name__
        raise TypeError(f"found a {found}, expected a plain {dtype} tensor")
    return tensor


def _entries(metadata: Metadata) -> Iterator[tuple[str, TensorStorageMetadata]]:
    for key, entry in metadata.state_dict_metadata.items():
        if not isinstance(entry, TensorStorageMetadata):
            raise TypeError(f"{key} is not a tensor: it would have to be unpickled")
        yield key, entry


def _check_places(metadata: Metadata, sizes: Mapping[str, int]) -> None:
    """Refuse an index that leads outside the files of the manifest."""
    for index, place in metadata.storage_data.items():
        name = f"{STATE}/{place.relative_path}"
        if name not in sizes:
            raise ValueError(
                f"{index.fqn} lies in {place.relative_path!r}, which is not in the manifest"
            )
        if not 0 <= place.offset <= place.offset + place.length <= sizes[name]:
            raise ValueError(f"{index.fqn} lies outside of {place.relative_path}")
        if place.transform_descriptors:
            raise ValueError(f"{index.fqn} is transformed by {place.transform_descriptors}")


@contextmanager
def _refused(path: Path, what: str = "the index") -> Iterator[None]:
    """Turn what unpickling and DCP's planning raise into a CheckpointError naming the file."""
    try:
        yield
    except (CheckpointError, OSError, KeyboardInterrupt, SystemExit, GeneratorExit):
        raise
    except BaseException as error:  # DCP's CheckpointException is not an Exception
        raise CheckpointError(
            f"{path}: refused, although its checksum is right: {what} is not what it should be: "
            f"{error}; do not use this checkpoint unless you know who made it"
        ) from error
