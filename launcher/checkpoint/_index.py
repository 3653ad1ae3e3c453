"""Index of a checkpoint, and reading of tensors into live ones, without running a pickle."""

from __future__ import annotations

import io
import pickle
from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, BinaryIO, cast

import torch
from torch import Tensor
from torch.distributed.checkpoint.filesystem import _StorageInfo
from torch.distributed.checkpoint.metadata import (
    ChunkStorageMetadata,
    Metadata,
    MetadataIndex,
    TensorStorageMetadata,
)
from torch.distributed.checkpoint.planner_helpers import create_read_items_for_chunk_list
from torch.distributed.checkpoint.utils import _create_file_view
from typing_extensions import override

from launcher.checkpoint._dcp import STATE
from launcher.checkpoint._state import State, check_cover, fill, parts
from launcher.contracts import Box
from launcher.errors import CheckpointError
from launcher.training.failures import is_out_of_memory

# `.metadata` is a pickle, and loading one can run any code; torch's own reader does. It is read
# with an unpickler that accepts only these classes. Its content is then checked, because a checksum
# does not protect from the author of a checkpoint: plain tensors only, boxes that cover every
# tensor, positions inside the files of the manifest. A JSON index would need no pickle, but torch's
# tools (`dcp_to_torch_save`) read no other.
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

# Bytes that are read at once.
_CHUNK_BYTES = 1 << 22


class Index:
    """Names, shapes, dtypes and positions of the tensors of a verified checkpoint.

    Args:
        folder: The checkpoint.
        sizes: Length of each of its files, by path relative to the folder.
    """

    def __init__(self, folder: Path, sizes: Mapping[str, int]) -> None:
        self._folder = folder / STATE
        self._path = self._folder / ".metadata"
        with _refused(self._path):
            metadata = _read_metadata(self._path)
            self._entries = dict(_entries(metadata))
            self._places = dict(_places(metadata, sizes))
            _check_places_of(self._entries, self._places)

    def describe(self) -> dict[str, tuple[tuple[int, ...], torch.dtype]]:
        """Return shape and dtype of every tensor."""
        return {
            key: (tuple(entry.size), entry.properties.dtype) for key, entry in self._entries.items()
        }

    def boxes(self) -> dict[str, list[Box]]:
        """Return the boxes into which every tensor was cut."""
        return {
            key: [Box(tuple(chunk.offsets), tuple(chunk.sizes)) for chunk in entry.chunks]
            for key, entry in self._entries.items()
        }

    def read(self, names: Iterable[str]) -> dict[str, Tensor]:
        """Return tensors in new CPU memory."""
        kinds = self.describe()
        tensors = {name: torch.empty(kinds[name][0], dtype=kinds[name][1]) for name in names}
        self.fill(tensors)
        return tensors

    def fill(self, live: State) -> None:
        """Copy saved values into live tensors of the same full shapes and dtypes, in place."""
        # Only elements that a live tensor holds are read, chunk by chunk: a rank of a large model
        # has no room for the checkpoint, nor for a tensor that one process saved.
        reads: dict[MetadataIndex, list[tuple[Any, Tensor]]] = {}
        for name, value in live.items():
            boxes = parts(value)
            chunks = [
                ChunkStorageMetadata(torch.Size(box.offsets), torch.Size(box.sizes))
                for box, _ in boxes
            ]
            for item in create_read_items_for_chunk_list(name, self._entries[name], chunks):
                place_in_live = item.dest_index.index
                assert place_in_live is not None, "DCP's planner counts the boxes"  # noqa: S101
                target = _narrow(boxes[place_in_live][1], item.dest_offsets, item.lengths)
                reads.setdefault(item.storage_index, []).append((item, target))
        with ExitStack() as stack:
            files: dict[str, BinaryIO] = {}
            # In the order of the files: network file systems read ahead.
            for index in sorted(reads, key=self._position):
                place = self._places[index]
                path = self._folder / place.relative_path
                if place.relative_path not in files:
                    files[place.relative_path] = stack.enter_context(path.open("rb"))
                with _refused(path, f"the entry of {index.fqn}"):
                    self._copy(files[place.relative_path], index, reads[index])

    def _position(self, index: MetadataIndex) -> tuple[str, int]:
        place = self._places[index]
        return place.relative_path, place.offset

    def _copy(
        self, file: BinaryIO, index: MetadataIndex, reads: Iterable[tuple[Any, Tensor]]
    ) -> None:
        place = self._places[index]
        view = _create_file_view(cast("io.IOBase", file), place.offset, place.length)
        saved, start = self._open(cast("BinaryIO", view), index)
        for item, target in reads:
            wanted = _narrow(saved, item.storage_offsets, item.lengths)
            _copy_elements(view, start, wanted, target)

    def _open(self, view: BinaryIO, index: MetadataIndex) -> tuple[Tensor, int]:
        """Return the box of an index entry on the meta device, and where its elements begin."""
        entry = self._entries[index.fqn]
        (shape,) = (chunk.sizes for chunk in entry.chunks if chunk.offsets == index.offset)
        # Not all bytes of the file: an entry is a torch.save of its own, at this position.
        tensor = torch.load(view, map_location="meta", weights_only=True)
        dtype = entry.properties.dtype
        if type(tensor) is not Tensor or tensor.dtype != dtype or tensor.layout != torch.strided:
            found = f"{tensor.dtype} tensor" if isinstance(tensor, Tensor) else type(tensor)
            raise TypeError(f"found a {found}, expected a plain {dtype} tensor")
        if tensor.shape != shape:
            raise ValueError(f"shape {tuple(tensor.shape)}, expected {tuple(shape)}")
        storage: Any = tensor.untyped_storage()
        # The storage lies in the file as it is in memory.
        start: int = storage._checkpoint_offset  # noqa: SLF001 - documented for FakeTensorMode
        if start + storage.nbytes() > self._places[index].length:
            raise ValueError("its elements are not in the entry")
        return tensor, start


def _copy_elements(file: io.IOBase, start: int, saved: Tensor, target: Tensor) -> None:
    """Copy elements from a file: `saved` describes them, in a storage that begins at `start`."""
    # In chunks, and only what is wanted: a box may be larger than all that this rank holds.
    if saved.is_contiguous() and saved.numel() * saved.itemsize <= _CHUNK_BYTES:
        if not saved.numel():
            return
        file.seek(start + int(saved.storage_offset()) * saved.itemsize)
        data = bytearray(saved.numel() * saved.itemsize)
        if cast("Any", file).readinto(data) != len(data):
            raise ValueError("the entry is truncated")
        found = torch.frombuffer(data, dtype=saved.dtype).view(saved.shape)
        # Views that torch has not computed yet are saved as such.
        found = found.conj() if saved.is_conj() else found
        fill(target, found.neg() if saved.is_neg() else found)
        return
    # Rows that fit together into a chunk; those of a part of the columns one by one.
    row = max(1, saved[0].numel() * saved.itemsize)
    rows = max(1, _CHUNK_BYTES // row) if saved.is_contiguous() else 1
    for first in range(0, len(saved), rows):
        below, into = saved[first : first + rows], target[first : first + rows]
        if len(below) == 1 and saved.dim() > 1:
            below, into = below[0], into[0]
        _copy_elements(file, start, below, into)


class _Unpickler(pickle.Unpickler):  # noqa: S301 - this one cannot call what it does not know
    """Unpickler of DCP's index, which refuses every other class."""

    @override
    def find_class(self, module_name: str, global_name: str, /) -> Any:
        if (module_name, global_name) in _KNOWN:
            return super().find_class(module_name, global_name)
        if module_name == "torch" and isinstance(getattr(torch, global_name, None), torch.dtype):
            return getattr(torch, global_name)
        raise pickle.UnpicklingError(
            f"it refers to {module_name}.{global_name}, which no checkpoint of trainctl contains; "
            "nothing was run"
        )


def _read_metadata(path: Path) -> Metadata:
    with path.open("rb") as file:
        metadata = _Unpickler(file).load()
    if not isinstance(metadata, Metadata):
        raise TypeError(f"it holds a {type(metadata).__name__}, not an index")
    return metadata


def _entries(metadata: Metadata) -> Iterator[tuple[str, TensorStorageMetadata]]:
    """Yield the entries: plain tensors with boxes that cover them."""
    for key, entry in metadata.state_dict_metadata.items():
        if not isinstance(entry, TensorStorageMetadata):
            raise TypeError(f"{key} is not a tensor: it would have to be unpickled")
        if not isinstance(entry.properties.dtype, torch.dtype):
            raise TypeError(f"{key} has the dtype {entry.properties.dtype!r}")
        try:
            size = _lengths(entry.size)
            if any(length < 0 for length in size):
                raise ValueError(f"its shape is {size}")  # noqa: TRY301 - named below
            boxes = [Box(_lengths(chunk.offsets), _lengths(chunk.sizes)) for chunk in entry.chunks]
            check_cover(size, boxes)
        except (AttributeError, TypeError, ValueError) as error:
            raise ValueError(f"{key}: {error}") from error
        yield key, entry


def _lengths(size: object) -> tuple[int, ...]:
    if not isinstance(size, torch.Size):
        raise TypeError(f"expected a torch.Size, found {size!r}")
    return tuple(size)


def _places(
    metadata: Metadata, sizes: Mapping[str, int]
) -> Iterator[tuple[MetadataIndex, _StorageInfo]]:
    """Yield the position of each box, inside the files of the manifest."""
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
        yield index, place


def _check_places_of(
    entries: Mapping[str, TensorStorageMetadata], places: Mapping[MetadataIndex, _StorageInfo]
) -> None:
    """Check that every box has a position, and every position a box."""
    expected = {
        MetadataIndex(key, chunk.offsets)
        for key, entry in entries.items()
        for chunk in entry.chunks
    }
    for index in expected ^ places.keys():
        what = "has no place in any file" if index in expected else "is no box of a tensor"
        raise ValueError(f"{index.fqn} at {index.offset} {what}")


def _narrow(tensor: Tensor, offsets: Iterable[int], lengths: Iterable[int]) -> Tensor:
    for dim, (start, length) in enumerate(zip(offsets, lengths, strict=True)):
        tensor = tensor.narrow(dim, start, length)
    return tensor


@contextmanager
def _refused(path: Path, what: str = "the index") -> Iterator[None]:
    """Convert errors of unpickling and loading to a CheckpointError that names the file."""
    try:
        yield
    except (CheckpointError, OSError, KeyboardInterrupt, SystemExit, GeneratorExit):
        raise
    except BaseException as error:
        if is_out_of_memory(error):
            raise
        # Any class: a crafted file can make unpickling raise anything, and torch's
        # CheckpointException is a BaseException.
        raise CheckpointError(
            f"{path}: refused, although its checksum is right: {what} is invalid: "
            f"{error}; do not use this checkpoint unless you trust its source"
        ) from error
