"""Gradients and parameters in blocks that fit the cache."""

# Each eager operation over a whole tensor reads and writes main memory, which is what an update
# costs. Here several operations pass over one block before the next, with intermediate results in
# scratch memory of a block's size. Small tensors of one shape are gathered into one block instead:
# for them the number of calls is what costs.

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from typing_extensions import override

# Elements of a block for each CPU thread: a mebibyte of float32, so that a block and its scratch
# stay in a core's second-level cache.
CACHE_ELEMENTS = 1 << 18
MAX_CPU_ELEMENTS = 1 << 21
# Elements of a block on a GPU: 16 MiB of float32, so that a block and its scratch stay in the
# second-level cache (40 to 50 MiB of an A100 or H100), and an operation takes longer than its
# launch.
GPU_ELEMENTS = 1 << 22


class Scratch:
    """Memory that is reused, by purpose; it grows to the largest request."""

    def __init__(self) -> None:
        self._memory: dict[tuple[str, torch.device, torch.dtype], Tensor] = {}
        # Changes when other updates may have written to the memory.
        self.owner = 0

    def take(
        self, purpose: str, shape: Sequence[int], device: torch.device, dtype: torch.dtype
    ) -> Tensor:
        """Return uninitialised memory, valid until the purpose is requested again."""
        numel = math.prod(shape)
        key = (purpose, device, dtype)
        memory = self._memory.get(key)
        if memory is None or memory.numel() < numel:
            memory = self._memory[key] = torch.empty(numel, device=device, dtype=dtype)
        return memory[:numel].view(shape)


def block_elements(device: torch.device) -> int:
    """Return the maximum number of elements of a block on this device."""
    if device.type == "cpu":
        return min(CACHE_ELEMENTS * torch.get_num_threads(), MAX_CPU_ELEMENTS)
    return GPU_ELEMENTS


def compute_dtype(param: Tensor) -> torch.dtype:
    # 16-bit arithmetic would lose small updates and squares of gradients.
    return torch.float64 if param.dtype == torch.float64 else torch.float32


@dataclass(frozen=True, slots=True)
class Span:
    """Blocks that hold complete matrices: one block of many, or the blocks of one.

    Attributes:
        matrices: Slice of the first dim of the blocks' shape.
        blocks: Indices of the blocks; each holds the next rows.
    """

    matrices: slice
    blocks: range


class Blocks(ABC):
    """Blocks of some parameters of one shape and of their gradients, in the dtype of the maths.

    The parameters form one tensor of `shape`: (matrices, rows, columns), or (tensors, elements). A
    block is a range of its first and of its second dim.
    """

    def __init__(self, shape: Sequence[int], dtype: torch.dtype) -> None:
        self.shape = tuple(shape)
        self.dtype = dtype

    @abstractmethod
    def __len__(self) -> int:
        pass

    @abstractmethod
    def grad(self, index: int) -> Tensor:
        """Return a block of the gradients, read-only, valid until the next call."""

    @abstractmethod
    def param(self, index: int) -> Tensor:
        """Return a block of the parameters to change in place, valid until the next call."""

    @abstractmethod
    def put(self, index: int) -> None:
        """Write the last block that `param` returned back to the parameters."""

    @abstractmethod
    def buffer(self, index: int, purpose: str = "buffer") -> Tensor:
        """Return scratch memory in a block's shape, valid until the purpose is requested again."""

    def load(self, index: int, chunk: Tensor, purpose: str) -> Tensor:
        """Return a block of state in the dtype of the maths: itself, or a copy for `store`."""
        same = chunk.dtype == self.dtype
        return chunk if same else self.buffer(index, purpose).copy_(chunk)

    def spread(self, per_param: Tensor) -> Tensor:
        """Reshape one number for each parameter to broadcast over a block."""
        ones = [1] * (len(self.shape) - 1)
        repeat = self.shape[0] // len(per_param)
        if len(per_param) > 1 and repeat > 1:
            per_param = per_param.repeat_interleave(repeat)
        return per_param.view(-1, *ones)

    @abstractmethod
    def cut(self, tensor: Tensor) -> Sequence[Tensor]:
        """Return views of each block's part of a tensor with the first two dims of `shape`."""

    @abstractmethod
    def spans(self) -> Sequence[Span]:
        """Return all blocks in order, by the matrices that they hold."""

    @abstractmethod
    def cut_rows(self, tensor: Tensor) -> Sequence[Tensor]:
        """Return each block's part of a tensor whose dims are a span's matrices and rows."""


def blocks_of(
    params: Sequence[Tensor], shape: Sequence[int], scratch: Scratch, limit: int
) -> Blocks:
    """Return one block of several parameters, or blocks of at most `limit` elements of one.

    Parameters have one shape, dtype and device, and gradients. A row is never divided.
    """
    return (Gathered if len(params) > 1 else Cut)(params, shape, scratch, limit)


def store(chunk: Tensor, value: Tensor) -> None:
    if value is not chunk:
        chunk.copy_(value)


class Gathered(Blocks):
    """Small tensors copied into one block, and copied back."""

    def __init__(
        self, params: Sequence[Tensor], shape: Sequence[int], scratch: Scratch, limit: int
    ) -> None:
        del limit
        super().__init__(shape, compute_dtype(params[0]))
        self._params = params
        self._device = params[0].device
        self._scratch = scratch
        self._grads: Tensor | None = None
        self._values: Tensor | None = None

    @override
    def __len__(self) -> int:
        return 1

    @override
    def grad(self, index: int) -> Tensor:
        if self._grads is None:
            grads = [param.grad for param in self._params if param.grad is not None]
            self._grads = self._gather("grads", grads)
        return self._grads

    @override
    def param(self, index: int) -> Tensor:
        if self._values is None:
            self._values = self._gather("params", self._params)
        return self._values

    @override
    def put(self, index: int) -> None:
        values = self.param(0).view(len(self._params), *self._params[0].shape)
        torch._foreach_copy_(list(self._params), list(values.unbind()))

    @override
    def buffer(self, index: int, purpose: str = "buffer") -> Tensor:
        return self._scratch.take(purpose, self.shape, self._device, self.dtype)

    @override
    def cut(self, tensor: Tensor) -> Sequence[Tensor]:
        return (tensor,)

    @override
    def spans(self) -> Sequence[Span]:
        return (Span(slice(None), range(1)),)

    @override
    def cut_rows(self, tensor: Tensor) -> Sequence[Tensor]:
        return (tensor,)

    def _gather(self, purpose: str, tensors: Sequence[Tensor]) -> Tensor:
        gathered = self._scratch.take(
            purpose, (len(tensors), *tensors[0].shape), self._device, self.dtype
        )
        if all(tensor.dtype == self.dtype for tensor in tensors):
            torch.stack(list(tensors), out=gathered)
        else:
            torch._foreach_copy_(list(gathered.unbind()), list(tensors))
        return gathered.view(self.shape)


class Cut(Blocks):
    """Blocks of one tensor: views, unless the dtype of the maths is another."""

    def __init__(
        self, params: Sequence[Tensor], shape: Sequence[int], scratch: Scratch, limit: int
    ) -> None:
        (self._param,) = params
        super().__init__(shape, compute_dtype(self._param))
        grad = self._param.grad
        if grad is None:
            raise ValueError("a parameter without gradient has no blocks")
        first, second, row = self.shape[0], self.shape[1], math.prod(self.shape[2:])
        self._second = max(1, min(second, limit // max(1, row)))
        self._first = max(1, min(first, limit // max(1, second * row)))
        self._repeat = -(-second // self._second)
        self._scratch = scratch
        # A copy only of gradients or parameters in an unusual memory format.
        self._whole = self._param.reshape(self.shape)
        self._params = self.cut(self._whole)
        self._grads = self.cut(grad.reshape(self.shape))
        self._at, self._value, self._owner = -1, self._whole, scratch.owner
        self._taken: dict[tuple[str, torch.Size], Tensor] = {}

    @override
    def __len__(self) -> int:
        return len(self._params)

    @override
    def grad(self, index: int) -> Tensor:
        grad = self._grads[index]
        return grad if grad.dtype == self.dtype else self._take("grads", grad).copy_(grad)

    @override
    def param(self, index: int) -> Tensor:
        # Decay, mean and update ask for the same block: it is converted once.
        if index != self._at or self._owner != self._scratch.owner:
            param = self._params[index]
            same = param.dtype == self.dtype
            self._value = param if same else self._take("params", param).copy_(param)
            self._at, self._owner = index, self._scratch.owner
        return self._value

    @override
    def put(self, index: int) -> None:
        if self._value is not self._params[index]:
            self._params[index].copy_(self._value)
        self._at = -1
        if index == len(self) - 1 and self._whole.data_ptr() != self._param.data_ptr():
            self._param.copy_(self._whole.view(self._param.shape))

    @override
    def buffer(self, index: int, purpose: str = "buffer") -> Tensor:
        return self._take(purpose, self._params[index])

    @override
    def cut(self, tensor: Tensor) -> Sequence[Tensor]:
        return [
            chunk
            for part in torch.split(tensor, self._first)
            for chunk in torch.split(part, self._second, dim=1)
        ]

    @override
    def spans(self) -> Sequence[Span]:
        starts = range(0, self.shape[0], self._first)
        return [
            Span(
                slice(start, start + self._first),
                range(place * self._repeat, (place + 1) * self._repeat),
            )
            for place, start in enumerate(starts)
        ]

    @override
    def cut_rows(self, tensor: Tensor) -> Sequence[Tensor]:
        return torch.split(tensor, self._second, dim=1)

    def _take(self, purpose: str, like: Tensor) -> Tensor:
        taken = self._taken.get((purpose, like.shape))
        if taken is None:
            taken = self._scratch.take(purpose, like.shape, like.device, self.dtype)
            self._taken[purpose, like.shape] = taken
        return taken
