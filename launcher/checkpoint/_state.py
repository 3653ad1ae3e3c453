"""State that is saved: boxes (index ranges) of full tensors, and copies for async saves."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from launcher.contracts import Box, LocalShard

# Tensors by name: a plain tensor is full, a LocalShard is this rank's part of a full tensor.
State = Mapping[str, Tensor | LocalShard]


def local_tensor(value: Tensor | LocalShard) -> Tensor:
    return value.tensor if isinstance(value, LocalShard) else value


def full_shape(value: Tensor | LocalShard) -> tuple[int, ...]:
    return value.shard.shape if isinstance(value, LocalShard) else tuple(value.shape)


def full_bytes(state: State) -> int:
    return sum(math.prod(full_shape(v)) * local_tensor(v).itemsize for v in state.values())


def parts(value: Tensor | LocalShard) -> list[tuple[Box, Tensor]]:
    """Return the boxes that this rank holds, each with a view of its elements."""
    tensor, shape = local_tensor(value).detach(), full_shape(value)
    whole = Box((0,) * len(shape), shape)
    if not isinstance(value, LocalShard):
        return [(whole, tensor)]
    shard = value.shard
    if tensor.numel() != shard.numel:
        raise ValueError(
            f"{shard.name}: the local tensor must have the {shard.numel} elements of its boxes, "
            f"but has {tensor.numel()}"
        )
    if math.prod(shape) == 0:
        # A tensor without elements must have an entry in the file, too.
        return [(whole, tensor.view(shape))]
    boxes = [box for box in shard.boxes if box.numel]
    if len(boxes) == 1 and tuple(tensor.shape) == boxes[0].sizes:
        return [(boxes[0], tensor)]
    # `view` and not `reshape`, which may copy: the copy would be filled instead of the live tensor.
    flat, start, found = tensor.view(-1), 0, list[tuple[Box, Tensor]]()
    for box in boxes:
        found.append((box, flat[start : start + box.numel].view(box.sizes)))
        start += box.numel
    return found


def check_cover(shape: Sequence[int], boxes: Sequence[Box]) -> None:
    """Raise ValueError unless boxes cover every element of a tensor exactly once."""
    # A missing box would leave the values of the initialisation in the weights, without an error.
    for box in boxes:
        if not len(box.offsets) == len(box.sizes) == len(shape):
            raise ValueError(f"{box} must have {len(shape)} dims")
        if any(
            start < 0 or size < 0 or start + size > length
            for start, size, length in zip(box.offsets, box.sizes, shape, strict=True)
        ):
            raise ValueError(f"{box} is outside of a tensor of shape {tuple(shape)}")
    if not math.prod(shape):
        if len(boxes) != 1:
            raise ValueError(f"a tensor without elements must have one box, but has {len(boxes)}")
        return
    if empty := [box for box in boxes if not box.numel]:
        raise ValueError(f"{empty[0]} is empty")
    for one, other in _neighbours(boxes):
        if _overlap(one, other):
            raise ValueError(f"{one} and {other} overlap")
    if (found := sum(box.numel for box in boxes)) != math.prod(shape):
        raise ValueError(
            f"the boxes of a tensor of shape {tuple(shape)} must have {math.prod(shape)} elements, "
            f"but have {found}"
        )


def _neighbours(boxes: Sequence[Box]) -> Iterator[tuple[Box, Box]]:
    """Yield the pairs of boxes that share rows; others cannot overlap."""
    ordered = sorted(boxes, key=lambda box: box.offsets)
    for place, box in enumerate(ordered):
        for other in ordered[place + 1 :]:
            if box.offsets and other.offsets[0] >= box.offsets[0] + box.sizes[0]:
                break
            yield box, other


def _overlap(one: Box, other: Box) -> bool:
    return all(
        start < other_start + other_size and other_start < start + size
        for start, size, other_start, other_size in zip(
            one.offsets, one.sizes, other.offsets, other.sizes, strict=True
        )
    )


class Staging:
    """CPU memory for copies, reused by all saves."""

    # Allocating it for each save would cost page faults, and pinning memory is slow.

    def __init__(self) -> None:
        self._buffers: dict[str, Tensor] = {}

    def copy(self, state: State) -> dict[str, Tensor | LocalShard]:
        """Return CPU copies, contiguous and of the same shapes and dtypes, until the next call."""
        # Pinned memory for CUDA tensors, because copies to pageable memory are synchronous.
        tensors = {name: local_tensor(value).detach() for name, value in state.items()}
        self._buffers = {name: self._buffer(name, tensor) for name, tensor in tensors.items()}
        for name, tensor in tensors.items():
            fill(self._buffers[name], tensor)
        for device in {tensor.device for tensor in tensors.values() if tensor.is_cuda}:
            torch.cuda.current_stream(device).synchronize()
        return {
            name: LocalShard(self._buffers[name], value.shard)
            if isinstance(value, LocalShard)
            else self._buffers[name]
            for name, value in state.items()
        }

    def _buffer(self, name: str, tensor: Tensor) -> Tensor:
        old = self._buffers.get(name)
        if old is not None and (old.shape, old.dtype) == (tensor.shape, tensor.dtype):
            return old
        return torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=tensor.is_cuda)


def fill(target: Tensor, source: Tensor) -> None:
    """Copy values between tensors of one shape and dtype; from CUDA without waiting for them."""
    # Between CPU tensors one memcpy in this thread. torch would use all of its threads, which on a
    # busy machine (as while the last checkpoint is being written) wait for each other at every
    # tensor: up to fifty times slower, measured with 100 tensors of 1 MB on two cores.
    both = (source, target)
    plain = all(t.is_cpu and t.is_contiguous() and not t.is_conj() and not t.is_neg() for t in both)
    if plain and source.numel() > 1:
        np.copyto(_bytes(target), _bytes(source))
    else:
        target.copy_(source, non_blocking=source.is_cuda)


def _bytes(tensor: Tensor) -> npt.NDArray[np.uint8]:
    array: npt.NDArray[np.uint8] = tensor.view(-1).view(torch.uint8).numpy()
    return array
