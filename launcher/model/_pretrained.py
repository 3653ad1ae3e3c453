"""Pretrained weights of shards: each rank reads its own parts of the files."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Mapping
from collections.abc import Set as AbstractSet
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

import torch
from torch import Tensor, nn
from typing_extensions import override

from launcher.contracts import Box, InitialWeights, LocalShard, SavedWeight
from launcher.errors import DataError

if TYPE_CHECKING:
    from collections.abc import Sequence

# Bytes that are read at once, and converted: all memory that a rank needs besides its shards.
_CHUNK_BYTES = 1 << 22


class PretrainedWeights(InitialWeights):
    """Weights in safetensors files; what no file has is drawn.

    Args:
        saved: Where each weight is, by name.
        drawn: The other weights.
    """

    # Not through the safetensors library: of a slice it maps the whole file, as memory that the
    # kernel must be able to provide, or reads the whole tensor.

    def __init__(self, saved: Mapping[str, SavedWeight], drawn: InitialWeights) -> None:
        self._saved = saved
        self._drawn = drawn

    @override
    @torch.no_grad()
    def fill(self, shards: Mapping[str, LocalShard]) -> None:
        self._drawn.fill({n: local for n, local in shards.items() if n not in self._saved})
        by_path: dict[Path, list[tuple[SavedWeight, LocalShard]]] = defaultdict(list)
        for name, local in shards.items():
            if name in self._saved:
                by_path[self._saved[name].path].append((self._saved[name], local))
        for path, wanted in by_path.items():
            with path.open("rb") as file:
                for weight, local in sorted(wanted, key=lambda pair: pair[0].offset):
                    for box, part in local.shard.parts(local.tensor):
                        _read_box(file, weight, local.shard.shape, box, part)

    @override
    def check(self, module: nn.Module) -> None:
        self._drawn.check(module)


def match_saved(
    module: nn.Module, saved: Mapping[str, SavedWeight], drawn: AbstractSet[str]
) -> dict[str, SavedWeight] | None:
    """Return where each weight of a network is; None unless every one has a tensor of its name.

    Args:
        module: The network, on the meta device.
        saved: All saved tensors.
        drawn: Names of weights that no file has.
    """
    names: dict[Tensor, list[str]] = defaultdict(list)
    for name, tensor in module.state_dict(keep_vars=True).items():
        names[tensor].append(name)
    found: dict[str, SavedWeight] = {}
    for aliases in names.values():
        known = [name for name in aliases if name in saved]
        # Of tied weights that are saved twice, only transformers knows which one counts.
        if len(known) > 1 or (not known and not drawn & set(aliases)):
            return None
        found |= {name: saved[known[0]] for name in aliases if known}
    return found


def _read_box(
    file: BinaryIO, saved: SavedWeight, shape: Sequence[int], box: Box, part: Tensor
) -> None:
    """Copy a box of a saved tensor of some shape into a contiguous tensor of the box's shape."""
    dtype: torch.dtype = getattr(torch, saved.dtype)
    row = math.prod(shape[1:])
    if not shape or box.sizes[1:] == tuple(shape[1:]):
        start = box.offsets[0] * row if shape else 0
        file.seek(saved.offset + start * dtype.itemsize)
        _read(file, saved.path, dtype, part.view(-1))
        return
    for index in range(box.sizes[0]):
        offset = saved.offset + (box.offsets[0] + index) * row * dtype.itemsize
        inner = Box(box.offsets[1:], box.sizes[1:])
        below = SavedWeight(saved.path, offset, saved.dtype)
        _read_box(file, below, shape[1:], inner, part[index])


def _read(file: BinaryIO, path: Path, dtype: torch.dtype, flat: Tensor) -> None:
    buffer = bytearray(min(_CHUNK_BYTES, flat.numel() * dtype.itemsize))
    for chunk in torch.split(flat, _CHUNK_BYTES // dtype.itemsize):
        wanted = memoryview(buffer)[: chunk.numel() * dtype.itemsize]
        if file.readinto(wanted) != len(wanted):  # type: ignore[attr-defined] # of a binary file
            raise DataError(f"{path}: is truncated")
        if chunk.numel():
            chunk.copy_(torch.frombuffer(wanted, dtype=dtype))
