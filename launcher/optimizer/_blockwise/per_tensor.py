"""Base class of optimizers whose update needs sums over the whole tensor."""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from itertools import chain, zip_longest
from typing import Any, ClassVar

import torch
from torch import Tensor
from typing_extensions import override

from launcher.contracts import Shard, Sharding
from launcher.optimizer._blockwise.blocks import Scratch, block_elements, compute_dtype
from launcher.optimizer._blockwise.buckets import BUCKET_ELEMENTS, Bucket, group_by_shape
from launcher.optimizer._torch.base_optimizer import BaseOptimizer

# Sums over elements of a bucket's tensors, by the name of what is summed.
Sums = Mapping[str, Tensor]
# Shapes of one parameter's sums, by the same names.
Shapes = Mapping[str, tuple[int, ...]]


class PackedSums:
    """Buffers for the sums of all parameters, one flat tensor per dtype."""

    # The layout follows from the parameters alone: it is the same on every rank, whatever elements
    # and gradients a rank has. What a rank does not write is zero: one plain sum over ranks is then
    # right for every kind of shard.

    def __init__(self, params: Sequence[Tensor], shapes: Sequence[Shapes]) -> None:
        sizes = [sum(math.prod(shape) for shape in each.values()) for each in shapes]
        dtypes = [compute_dtype(param) for param in params]
        self._flat = {
            str(dtype): torch.zeros(
                # One more for each parameter: how many ranks have its gradient.
                sum(size + 1 for size, other in zip(sizes, dtypes, strict=True) if other == dtype),
                dtype=dtype,
                device=params[0].device,
            )
            for dtype in dict.fromkeys(dtypes)
        }
        self._views: list[dict[str, Tensor]] = []
        self._counts: list[Tensor] = []
        starts = dict.fromkeys(self._flat, 0)
        for each, dtype in zip(shapes, map(str, dtypes), strict=True):
            flat, start, views = self._flat[dtype], starts[dtype], {}
            for key, shape in each.items():
                stop = start + math.prod(shape)
                views[key] = flat[start:stop].view(shape)
                start = stop
            self._views.append(views)
            self._counts.append(flat[start])
            starts[dtype] = start + 1

    @property
    def tensors(self) -> Mapping[str, Tensor]:
        return self._flat

    def clear(self) -> None:
        torch._foreach_zero_(list(self._flat.values()))

    def count(self, places: Sequence[int]) -> None:
        if places:
            torch._foreach_add_([self._counts[place] for place in places], 1.0)

    def counts(self) -> list[float]:
        """Number of ranks that have each parameter's gradient; waits for the device."""
        return torch.stack([count.double() for count in self._counts]).tolist()

    def put(self, place: int, sums: Mapping[str, Tensor]) -> None:
        """Write this rank's sums of the parameter at a place."""
        for key, value in sums.items():
            self._views[place][key].copy_(value.view_as(self._views[place][key]))

    def take(self, place: int, sums: Mapping[str, Tensor]) -> None:
        """Overwrite this rank's sums by those of all ranks."""
        for key, value in sums.items():
            value.copy_(self._views[place][key].view_as(value))


class PerTensor(BaseOptimizer):
    """Steps buckets of parameters of the same shape; shards in lockstep, with few collectives.

    Tensors of up to `small_elements` share buckets; larger ones are divided into blocks of
    `block_elements`, by default a size that fits the device's cache.
    """

    # An update is a generator: it sums over the elements it has, yields the sums, and continues as
    # if they were over the whole tensor. For sharded parameters, `step` starts the updates of all
    # parameters, and each time all have yielded, one collective sums everything that they yielded.
    # Taking shards for whole tensors would silently be another optimizer.

    # A copy without its sharding would take shards for tensors.
    kept = ("_sharding", "_small_elements", "_block_limit")
    takes_groups = True
    whole_state: ClassVar[frozenset[str]] = frozenset({"step"})
    """Keys of state that every rank holds completely, although the parameter is sharded."""

    def __init__(
        self,
        params: Iterable[Any],
        defaults: dict[str, Any],
        *,
        sharding: Sharding,
        small_elements: int,
        block_elements: int | None,
    ) -> None:
        self._sharding = sharding
        self._small_elements = small_elements
        self._block_limit = block_elements
        self._reset_buckets()
        super().__init__(params, defaults)

    @abstractmethod
    def _layout(self, param: Tensor, group: Mapping[str, Any]) -> dict[str, Tensor]:
        """Describe a new parameter's state: a tensor on the meta device for each key."""

    @abstractmethod
    def _sums(self, shape: tuple[int, ...]) -> Sequence[Shapes]:
        """Return the shapes of what `_update` may yield, in order, for a whole tensor's shape.

        They must not depend on options, gradients or shards: all ranks must compute the same.
        """

    @abstractmethod
    def _update(
        self, bucket: Bucket, step: int, group: Mapping[str, Any], scratch: Scratch
    ) -> Iterator[Sums]:
        """Update a bucket whose parameters all have gradients; `step` counts from 1.

        Yields:
            Sums over this rank's elements; they are over all ranks when the update continues.
        """

    @override
    def _step(self) -> None:
        if self._sharding.ranks > 1:
            self._step_shards()
            return
        for group, buckets in zip(self.param_groups, self._buckets_of_groups(), strict=True):
            # bf16_pure steps a group in chunks, without the memory of the other parameters.
            members = set(map(id, group["params"]))
            complete = all(id(param) in members for each in buckets for param in each.params)
            for bucket in self._step_together(group, buckets) if complete else buckets:
                for part in bucket.advance(members):
                    for _ in self._update(part.bucket, part.step, group, self._scratch):
                        pass
                    part.finish()

    def _step_together(self, group: Mapping[str, Any], buckets: list[Bucket]) -> Sequence[Bucket]:
        """Step some buckets of a group at once, and return the others."""
        del group
        return buckets

    def _step_shards(self) -> None:
        members = [(param, group) for group in self.param_groups for param in group["params"]]
        opened = {
            place: self._open(param, group)
            for place, (param, group) in enumerate(members)
            if param.grad is not None
        }
        for number, packed in enumerate(self._rounds([param for param, _ in members])):
            packed.clear()
            packed.count(list(opened))
            sums = {place: next(update, {}) for place, update in opened.items()}
            for place, values in sums.items():
                # A replicated shard is counted on one rank only.
                if self._sharding.shard_of(members[place][0]).counted:
                    packed.put(place, values)
            self._sharding.add_up(packed.tensors)
            # `counts` waits for the device: only where a gradient is missing.
            if number == 0 and len(opened) < len(members):
                for place in self._late(members, opened.keys(), packed.counts()):
                    opened[place] = self._open(*members[place])
                    sums[place] = next(opened[place], {})
            for place, values in sums.items():
                packed.take(place, values)
            # Between two rounds of an update, all others have written to the scratch memory.
            self._scratch.owner += 1
        for update in opened.values():
            for left in update:
                raise AssertionError(f"`_sums` does not name {sorted(left)}")

    def _open(self, param: Tensor, group: Mapping[str, Any]) -> Iterator[Sums]:
        bucket = self._shards.get(id(param))
        if bucket is None:
            _check(param)
            if not param.is_contiguous():
                raise ValueError("a shard must be contiguous")
            bucket = self._bucket([param], group, self._sharding.shard_of(param))
            self._shards[id(param)] = bucket
        [part] = bucket.advance({id(param)})
        return self._update(part.bucket, part.step, group, self._scratch)

    def _late(
        self,
        members: Sequence[tuple[Tensor, Mapping[str, Any]]],
        opened: Collection[int],
        counts: Sequence[float],
    ) -> Iterator[int]:
        # Statistics of the whole tensor are kept on every rank, and must be updated where the shard
        # is empty too: such shards get an empty gradient if another rank has one.
        for place, (param, _) in enumerate(members):
            if not counts[place] or place in opened:
                continue
            shard = self._sharding.shard_of(param)
            if shard.numel:
                raise RuntimeError(
                    f"{shard.name} must have a gradient on every rank or on none, but "
                    f"{counts[place]:.0f} ranks have one and rank {self._sharding.rank} has not; "
                    "give it zeros"
                )
            param.grad = torch.zeros_like(param)
            yield place

    def _rounds(self, params: Sequence[Tensor]) -> Sequence[PackedSums]:
        # By parameters, because bf16_pure steps them in chunks.
        key = tuple(map(id, params))
        if key not in self._packed:
            named = [self._sums(self._whole_shape(param)) for param in params]
            self._packed[key] = [
                PackedSums(params, shapes) for shapes in zip_longest(*named, fillvalue={})
            ]
        return self._packed[key]

    def _whole_shape(self, param: Tensor) -> tuple[int, ...]:
        sharded = self._sharding.ranks > 1
        return self._sharding.shard_of(param).shape if sharded else tuple(param.shape)

    @override
    def add_param_group(self, param_group: dict[str, Any]) -> None:
        super().add_param_group(param_group)
        self._reset_buckets()

    @override
    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        # torch casts state to the format of its parameter: float32 moments of bfloat16 parameters
        # would be rounded.
        super().load_state_dict(state_dict)
        saved = chain.from_iterable(group["params"] for group in state_dict["param_groups"])
        params = chain.from_iterable(group["params"] for group in self.param_groups)
        for place, param in zip(saved, params, strict=True):
            for key, value in state_dict["state"].get(place, {}).items():
                device = "cpu" if key == "step" else param.device
                self.state[param][key] = value.to(device, copy=True)

    @override
    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        self._reset_buckets()

    def _reset_buckets(self) -> None:
        # The next step builds new ones from `state`.
        self._buckets: dict[int, list[Bucket]] = {}
        self._shards: dict[int, Bucket] = {}
        self._packed: dict[tuple[int, ...], list[PackedSums]] = {}
        self._placed: dict[int, int] = {}
        self._scratch = Scratch()

    def _buckets_of_groups(self) -> list[list[Bucket]]:
        # Parameters enter a bucket with their first gradient: others must not get state.
        for index, group in enumerate(self.param_groups):
            new = [p for p in group["params"] if self._placed.get(id(p)) != index]
            if any(id(p) in self._placed for p in new):
                # It was in another group, whose bucket would step it too.
                self._reset_buckets()
                return self._buckets_of_groups()
            new = [p for p in new if p.grad is not None]
            if not new:
                continue
            self._placed.update(dict.fromkeys(map(id, new), index))
            for param in new:
                _check(param)
            same = group_by_shape(
                [p for p in new if p.numel()],
                small=self._small_elements,
                limit=BUCKET_ELEMENTS,
            )
            self._buckets.setdefault(index, []).extend(self._bucket(ps, group) for ps in same)
        return [self._buckets.get(index, []) for index in range(len(self.param_groups))]

    def _bucket(
        self, params: list[Tensor], group: Mapping[str, Any], shard: Shard | None = None
    ) -> Bucket:
        # Stacked, so that one operation updates the state of all; `state` has views of the stack.
        state = {
            key: torch.zeros((len(params), *like.shape), dtype=like.dtype, device=params[0].device)
            for key, like in self._layout(params[0], group).items()
        }
        bucket = Bucket(params, torch.zeros(len(params), dtype=torch.int64), state, shard)
        for index, param in enumerate(params):
            entries = bucket.entries(index)
            for key, value in self.state.get(param, {}).items():
                entries[key].copy_(value)
        self._show([bucket])
        return bucket

    def _show(self, buckets: Iterable[Bucket]) -> None:
        for bucket in buckets:
            for index, param in enumerate(bucket.params):
                self.state[param] = bucket.entries(index)

    def _block_elements(self, device: torch.device) -> int:
        return self._block_limit or block_elements(device)


def _check(param: Tensor) -> None:
    if param.grad is not None and param.grad.is_sparse:
        raise RuntimeError(
            "sparse gradients have no whole-tensor statistics; use a dense embedding"
        )
    if hasattr(param, "device_mesh"):
        raise TypeError(
            "a parameter must be a local tensor, but one is a DTensor; give its local tensor and a "
            "Sharding"
        )
    if not param.is_floating_point():
        raise TypeError(f"parameters must be real floating-point numbers, but one is {param.dtype}")
