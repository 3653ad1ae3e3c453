"""Names of a model's tensors, and the description of a shard."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol, Self

if TYPE_CHECKING:
    from torch import Tensor, nn


_WRAPPERS = re.compile(r"(?<![^.])(_orig_mod|_checkpoint_wrapped_module|_fsdp_wrapped_module)\.")
# peft keeps the layer that it wraps below itself, and names each adapter.
_ADAPTER = re.compile(
    r"(?<![^.])base_layer\."
    r"|(?<=\blora_[AB])\.default\b|(?<=\blora_embedding_[AB])\.default\b"
    r"|(?<=\blora_magnitude_vector)\.default\b|(?<=\bmodules_to_save)\.default\b"
)
_PARALLEL = re.compile(r"^(module\.)+")


def canonical_name(name: str) -> str:
    """Return a parameter's name without the parts that wrappers put into it.

    Patterns, optimizer groups and checkpoints use only this name, so that they mean the same under
    every engine.
    """
    # A frozen matrix keeps its name under an adapter. torch.compile, activation checkpointing and
    # FSDP wrap at any depth; DistributedDataParallel and DeepSpeed wrap the root only, and a model
    # may have a submodule that is called `module`.
    return _PARALLEL.sub("", _ADAPTER.sub("", _WRAPPERS.sub("", name)))


def named_tensors(module: nn.Module) -> dict[str, Tensor]:
    """Return parameters and persistent buffers by canonical name, detached; a tied tensor once."""
    tensors: dict[str, Tensor] = {}
    seen: set[int] = set()
    # keep_vars: without it, state_dict detaches, which makes a new object for each name of a tied
    # tensor, and the file would hold it twice.
    for name, tensor in module.state_dict(keep_vars=True).items():
        if id(tensor) not in seen:
            seen.add(id(tensor))
            tensors[canonical_name(name)] = tensor.detach()
    return tensors


@dataclass(frozen=True, slots=True)
class Box:
    """A rectangular part of a tensor: first index and length along every dim."""

    offsets: tuple[int, ...]
    sizes: tuple[int, ...]

    @property
    def numel(self) -> int:
        """Number of elements."""
        return math.prod(self.sizes)

    @property
    def slices(self) -> tuple[slice, ...]:
        """Index of the part in the full tensor."""
        return tuple(
            slice(start, start + size) for start, size in zip(self.offsets, self.sizes, strict=True)
        )


@dataclass(frozen=True, slots=True)
class Shard:
    """Description of the part of a full tensor that a local tensor holds.

    The local tensor, flattened, is the concatenation of the flattened boxes in order. DTensor
    layouts give one box; a flat range that starts in the middle of a row gives several.

    Attributes:
        name: Name of the full tensor.
        shape: Shape of the full tensor.
        boxes: The parts; empty where this rank holds nothing of the tensor.
        counted: False where another rank holds the same elements and counts them.
    """

    # Replicated tensors (norm layers under tensor parallelism) are on several ranks: a sum over
    # ranks, such as the gradient norm, must count each element once.

    name: str
    shape: tuple[int, ...]
    boxes: tuple[Box, ...]
    counted: bool = True

    @property
    def numel(self) -> int:
        """Number of elements that this rank holds."""
        return sum(box.numel for box in self.boxes)

    @property
    def is_whole(self) -> bool:
        """True where this rank holds every element."""
        return self.numel == self.whole_numel

    @property
    def whole_numel(self) -> int:
        """Number of elements of the full tensor."""
        return math.prod(self.shape)

    def parts(self, local: Tensor) -> Iterator[tuple[Box, Tensor]]:
        """Yield each box with its elements of a local tensor, in the box's shape."""
        # Views where the local tensor is contiguous: `scatter` writes through them.
        flat, start = local.reshape(-1), 0
        for box in self.boxes:
            yield box, flat[start : start + box.numel].view(box.sizes)
            start += box.numel

    def gather(self, local: Tensor, whole: Tensor) -> None:
        """Copy a local tensor's elements to their places in a full tensor."""
        for box, part in self.parts(local):
            whole[box.slices].copy_(part)

    def scatter(self, whole: Tensor, local: Tensor) -> None:
        """Copy the boxes' elements of a full tensor into a contiguous local tensor."""
        for box, part in self.parts(local):
            part.copy_(whole[box.slices])

    @classmethod
    def whole(cls, name: str, shape: Sequence[int]) -> Self:
        """Describe a tensor that this rank holds completely."""
        return cls(name, tuple(shape), (Box((0,) * len(shape), tuple(shape)),))

    @classmethod
    def slice_of(cls, name: str, shape: Sequence[int], dim: int, start: int, stop: int) -> Self:
        """Describe a slice along one dim, as DTensor's `Shard(dim)` holds it."""
        offsets, sizes = [0] * len(shape), list(shape)
        offsets[dim], sizes[dim] = start, stop - start
        # Fewer rows than ranks: FSDP gives the last ranks empty tensors.
        boxes = (Box(tuple(offsets), tuple(sizes)),) if math.prod(sizes) else ()
        return cls(name, tuple(shape), boxes)

    @classmethod
    def flat_range(cls, name: str, shape: Sequence[int], start: int, numel: int) -> Self:
        """Describe a range of the flattened tensor, as ZeRO's partitions hold it."""
        return cls(name, tuple(shape), tuple(_boxes(tuple(shape), start, numel)))


@dataclass(frozen=True, slots=True)
class LocalShard:
    """A local tensor of any shape, with the elements of `shard.boxes` in order."""

    tensor: Tensor
    shard: Shard


class Sharding(Protocol):
    """Relation of an optimizer's local tensors to the full ones."""

    @property
    def rank(self) -> int:
        """Index of this rank among those that share the tensors, from 0."""

    @property
    def ranks(self) -> int:
        """Number of ranks that share the tensors; 1 where every tensor is full."""

    def shard_of(self, param: Tensor) -> Shard:
        """Return the description of a parameter of the optimizer."""

    def add_up(self, sums: Mapping[str, Tensor]) -> None:
        """Add the sums of all ranks that share the tensors, in place, in one collective.

        Every rank must pass the same names, shapes and dtypes in the same order, also where it
        holds no element of a tensor: collectives of different sizes hang or abort.
        """


class Unsharded:
    """A sharding in which every tensor is full."""

    rank = 0
    ranks = 1

    def shard_of(self, param: Tensor) -> Shard:
        """Return the parameter itself as a shard; its name is not known here."""
        return Shard.whole("", param.shape)

    def add_up(self, sums: Mapping[str, Tensor]) -> None:
        """Leave the sums as they are."""


# One object for all: it has no state.
UNSHARDED = Unsharded()


def _boxes(shape: tuple[int, ...], start: int, numel: int) -> list[Box]:
    # Head of a row, full rows, tail of a row, recursively: at most 2 × dims - 1 boxes, which are
    # views. An index per element would cost eight bytes for each.
    if numel <= 0:
        return []
    if len(shape) <= 1:
        return [Box((start,) * len(shape), (numel,) * len(shape))]
    row = math.prod(shape[1:])
    boxes: list[Box] = []
    first, offset = divmod(start, row)
    if offset:
        head = min(numel, row - offset)
        boxes += [_in_row(first, box) for box in _boxes(shape[1:], offset, head)]
        first, numel = first + 1, numel - head
    rows, tail = divmod(numel, row)
    if rows:
        zeros = (0,) * (len(shape) - 1)
        boxes.append(Box((first, *zeros), (rows, *shape[1:])))
    boxes += [_in_row(first + rows, box) for box in _boxes(shape[1:], 0, tail)]
    return boxes


def _in_row(row: int, box: Box) -> Box:
    return Box((row, *box.offsets), (1, *box.sizes))
