"""Optimizers whose update needs a quantity of the whole tensor: a norm, means of rows.

Such an optimizer is silently another one when it sees shards as if they were tensors. Here an
update is therefore a generator: it sums over what it has, yields the sums, and goes on as if they
were over the whole tensor. On one rank they are. Where parameters are sharded, whoever drives the
update first adds the other shards' sums, in place: for one bucket at a time (`Sharding.complete`),
or for many in one collective (`PerTensor.updates`).
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import chain
from typing import Any, Protocol

import torch
from torch import Tensor
from typing_extensions import override

from launcher.optimizer._blocks import Scratch, block_elements
from launcher.optimizer._buckets import BUCKET_ELEMENTS, SMALL_ELEMENTS, Bucket, Part, alike

Sums = Mapping[str, Tensor]
"""Sums over elements of a bucket's tensors, by the name of what is summed."""


class Sharding(Protocol):
    """How the tensors that an optimizer holds relate to the whole ones."""

    def whole_shape(self, param: Tensor) -> Sequence[int]:
        """Shape of the tensor that a parameter is, or is a shard of."""

    def complete(self, params: Sequence[Tensor], sums: Sums) -> None:
        """Add, in place, the other shards' sums of some parameters."""


class Unsharded:
    """Every tensor is whole."""

    def whole_shape(self, param: Tensor) -> Sequence[int]:
        """The parameter's own."""
        return param.shape

    def complete(self, params: Sequence[Tensor], sums: Sums) -> None:
        """Nothing is missing."""


class PerTensor(torch.optim.Optimizer):
    """Steps buckets of like parameters, and lets partial sums be completed.

    Results do not depend on which parameters share a bucket. State dicts keep the dtype of the
    state, which torch's own loading casts to the parameter's.

    Args:
        params: Parameters or parameter groups, as torch's optimizers take them.
        defaults: Options of groups that do not say otherwise.
        sharding: What the parameters are shards of.
        small_elements: Elements of the largest tensor that shares a bucket.
        block_elements: Elements of a block of a larger tensor; None for what suits the device.
    """

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
        self._forget()
        super().__init__(params, defaults)

    @abstractmethod
    def _layout(self, param: Tensor, group: Mapping[str, Any]) -> dict[str, Tensor]:
        """What a new parameter's state looks like: a tensor on the meta device for each key."""

    @abstractmethod
    def _update(
        self, bucket: Bucket, step: int, group: Mapping[str, Any], scratch: Scratch
    ) -> Iterator[Sums]:
        """Update a bucket whose parameters all have gradients.

        Args:
            bucket: The parameters and their state.
            step: Number of this step, from 1.
            group: Options of the parameters' group.
            scratch: Where temporary memory comes from.

        Yields:
            Sums that must be completed over all shards before it goes on.
        """

    @torch.no_grad()
    @override
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for params, update in self.updates():
            for sums in update:
                self._sharding.complete(params, sums)
        return loss

    def updates(
        self, *, together: bool = False
    ) -> Iterator[tuple[Sequence[Tensor], Iterator[Sums]]]:
        """One step: each bucket's parameters and their update, to be driven without gradients.

        Args:
            together: Several updates will be open at once; each then has scratch memory of its own.
        """
        for group, buckets in zip(self.param_groups, self._buckets_of_groups(), strict=True):
            for bucket in buckets:
                for part in bucket.advance():
                    scratch = Scratch() if together else self._scratch
                    yield part.bucket.params, self._finished(part, group, scratch)

    def _finished(self, part: Part, group: Mapping[str, Any], scratch: Scratch) -> Iterator[Sums]:
        yield from self._update(part.bucket, part.step, group, scratch)
        part.finish()

    @override
    def add_param_group(self, param_group: dict[str, Any]) -> None:
        super().add_param_group(param_group)
        self._forget()

    @override
    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
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
        self.__dict__.setdefault("_sharding", Unsharded())
        self.__dict__.setdefault("_small_elements", SMALL_ELEMENTS)
        self.__dict__.setdefault("_block_limit", None)
        self._forget()

    def _forget(self) -> None:
        """Build the buckets anew at the next step, from what `state` then holds."""
        self._buckets: dict[int, list[Bucket]] = {}
        self._placed: set[int] = set()
        self._scratch = Scratch()

    def _buckets_of_groups(self) -> list[list[Bucket]]:
        """Each group's buckets; parameters enter one with their first gradient."""
        for index, group in enumerate(self.param_groups):
            new = [p for p in group["params"] if p.grad is not None and id(p) not in self._placed]
            if not new:
                continue
            self._placed.update(map(id, new))
            for param in new:
                _check(param)
            same = alike(
                [p for p in new if p.numel()],
                small=self._small_elements,
                limit=BUCKET_ELEMENTS,
                whole_shape=self._sharding.whole_shape,
            )
            self._buckets.setdefault(index, []).extend(self._bucket(ps, group) for ps in same)
        return [self._buckets.get(index, []) for index in range(len(self.param_groups))]

    def _bucket(self, params: list[Tensor], group: Mapping[str, Any]) -> Bucket:
        """Stack the parameters' state, which starts at zero, and make `state` show the stack."""
        state = {
            key: torch.zeros((len(params), *like.shape), dtype=like.dtype, device=params[0].device)
            for key, like in self._layout(params[0], group).items()
        }
        bucket = Bucket(params, torch.zeros(len(params), dtype=torch.int64), state)
        for index, param in enumerate(params):
            entries = bucket.entries(index)
            for key, value in self.state.get(param, {}).items():
                entries[key].copy_(value)
            self.state[param] = entries
        return bucket

    def _block_elements(self, device: torch.device) -> int:
        return self._block_limit or block_elements(device)


def _check(param: Tensor) -> None:
    if param.grad is not None and param.grad.is_sparse:
        raise RuntimeError(
            "sparse gradients have no whole-tensor statistics; use a dense embedding"
        )
    if hasattr(param, "device_mesh"):
        raise TypeError(
            "a DTensor is no shard: give its local tensors, and a Sharding for their sums"
        )
    if not param.is_floating_point():
        raise TypeError(f"parameters must be real floating-point numbers, but one is {param.dtype}")
