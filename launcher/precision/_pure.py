"""Steps bfloat16 weights through temporary float32 copies, in chunks."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import replace
from typing import Any, overload

import torch
from torch import Tensor, nn
from typing_extensions import override

from launcher.contracts import OptimizerOption, OptimizerTarget, Precision, Shard, Sharding
from launcher.precision._autocast import replaced_parameters
from launcher.precision._rounding import Rounding, resize

# A float32 weight and a float32 gradient.
_BYTES_PER_ELEMENT = 8


class PureBf16(Precision):
    """Bfloat16 throughout, except in the optimizer's arithmetic."""

    def __init__(self, rounding: Rounding, *, chunk_bytes: int) -> None:
        self._rounding = rounding
        self._chunk_bytes = chunk_bytes

    @property
    @override
    def param_dtype(self) -> torch.dtype:
        return torch.bfloat16

    @override
    def autocast(self) -> AbstractContextManager[Any]:
        # The weights have the format of the computation: there is nothing to cast.
        return nullcontext()

    @override
    def build_optimizer(
        self, option: OptimizerOption, target: OptimizerTarget
    ) -> torch.optim.Optimizer:
        # Options assign parameters to groups by name: the module must hold the copies meanwhile.
        with replaced_parameters(target.module, _float32_like) as copies:
            weights: dict[Tensor, Tensor] = {copy: param for param, copy in copies.items()}
            inner = option.build(replace(target, sharding=_CopySharding(target.sharding, weights)))
        sizes = None
        if target.is_sharded:
            sizes = {copy: math.prod(target.shape_of(param)) for copy, param in weights.items()}
        return Float32Steps(
            inner, weights, self._rounding, chunk_bytes=self._chunk_bytes, sizes=sizes
        )

    @override
    def state(self) -> Mapping[str, Tensor]:
        return self._rounding.state()

    @override
    def load_state(self, state: Mapping[str, Tensor]) -> None:
        self._rounding.load_state(state)


def _float32_like(param: nn.Parameter) -> nn.Parameter:
    if param.dtype != torch.bfloat16:
        return param
    wide = torch.empty_like(
        param.detach(), dtype=torch.float32, memory_format=torch.contiguous_format
    )
    # Shape and identity without memory: optimizers keep parameters, and must find the same ones in
    # every step.
    copy = nn.Parameter(wide, requires_grad=param.requires_grad)
    resize(copy, 0)
    return copy


class _CopySharding:
    """Sharding of weights, for their float32 copies."""

    def __init__(self, sharding: Sharding, weights: Mapping[Tensor, Tensor]) -> None:
        self._sharding = sharding
        self._weights = weights
        self.rank = sharding.rank
        self.ranks = sharding.ranks

    def shard_of(self, param: Tensor) -> Shard:
        return self._sharding.shard_of(self._weights[param])

    def add_up(self, sums: Mapping[str, Tensor]) -> None:
        self._sharding.add_up(sums)


class Float32Steps(torch.optim.Optimizer):
    """An optimizer over bfloat16 weights that steps float32 copies of them.

    Its groups and state are those of the weights; the remainder that the rounding keeps is one more
    entry of a weight's state. The inner optimizer sees only the copies, which have memory and
    gradients only while they are stepped. So its moments are float32.

    Args:
        inner: Any optimizer over the copies that leaves parameters without gradient alone.
        weights: The weight of each copy.
        rounding: Rounding of stepped weights to bfloat16.
        chunk_bytes: Largest size of float32 weights and gradients at one time.
        sizes: Elements of the full tensor of each copy, if the weights are shards.
    """

    def __init__(
        self,
        inner: torch.optim.Optimizer,
        weights: Mapping[Tensor, Tensor],
        rounding: Rounding,
        *,
        chunk_bytes: int,
        sizes: Mapping[Tensor, int] | None = None,
    ) -> None:
        self._inner = inner
        self._sizes = sizes
        self._weights = weights
        self._rounding = rounding
        # State of a group (Prodigy's distance) is updated once per step, from all its parameters.
        whole = bool(getattr(inner, "group_state", ()))
        self._chunk_elements = None if whole else max(1, chunk_bytes // _BYTES_PER_ELEMENT)
        self._copies = [list(group["params"]) for group in inner.param_groups]
        self._trained: list[tuple[Tensor, Tensor, dict[str, Tensor]]] = []
        groups = [
            {**group, "params": [weights[copy] for copy in copies]}
            for group, copies in zip(inner.param_groups, self._copies, strict=True)
        ]
        super().__init__(groups, inner.defaults)
        for copy, entry in inner.state.items():
            self.state[weights[copy]] = entry
        # A weight has no state or all of it: a load must know which entries to expect.
        with (
            torch.no_grad(),
            self._widened([[c for c in cs if c in inner.state] for cs in self._copies]),
        ):
            pass

    def __getattr__(self, name: str) -> Any:
        # Callers ask an optimizer for `group_state` and the like.
        return getattr(self.__dict__["_inner"], name)

    @overload
    def step(self, closure: None = None) -> None: ...
    @overload
    def step(self, closure: Callable[[], float]) -> float: ...
    @torch.no_grad()
    @override
    def step(self, closure: Callable[[], float] | None = None) -> float | None:
        # A closure would compute the loss of the unstepped weights.
        if closure is not None:
            raise ValueError("bf16_pure steps copies of the weights, on which no closure can run")
        self._rounding.begin_step()
        chunks = list(self._chunks())
        # Optimizers may keep lists of parameters of their own: only the gradients of a chunk's
        # parameters may be there, or float32 weights would take a step in each chunk.
        uncopied = [weight for copy, weight in self._weights.items() if copy is weight]
        kept = {weight: weight.grad for weight in uncopied if weight.grad is not None}
        try:
            for chunk in chunks:
                members = {copy for copies in chunk for copy in copies}
                for weight, grad in kept.items():
                    weight.grad = grad if weight in members else None
                with self._widened(chunk):
                    self._inner.step()
        finally:
            for weight, grad in kept.items():
                weight.grad = grad
        return None

    @torch.no_grad()
    def eval(self) -> None:
        """Switch to the inner optimizer's weights for evaluation, if it has any."""
        # The inner optimizer interpolates back, which rounds: keep the trained weights instead.
        if hasattr(self._inner, "eval") and not self._trained:
            for group in self.param_groups:
                for weight in group["params"]:
                    kept = {key: value.clone() for key, value in self._kept(weight).items()}
                    self._trained.append((weight, weight.clone(), kept))
            with self._widened(self._copies):
                self._inner.eval()

    @torch.no_grad()
    def train(self) -> None:
        if hasattr(self._inner, "train"):
            with self._widened(self._copies):
                self._inner.train()
            for weight, value, kept in self._trained:
                weight.copy_(value)
                entry = self.state.pop(weight, {})
                rest = {k: v for k, v in entry.items() if k not in self._rounding.state_keys}
                if entry := rest | kept:
                    self.state[weight] = entry
            self._trained = []

    @override
    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        for copy, weight in self._weights.items():
            if weight not in self.state:
                self._inner.state.pop(copy, None)
        inner = self._inner
        inner.__setstate__({"state": inner.state, "param_groups": inner.param_groups})

    def _chunks(self) -> Iterator[list[list[Tensor]]]:
        # Sharded: a step of the inner optimizer may be collective, so that all ranks need the same
        # chunks. They follow from full sizes, with weights that have no gradient on this rank.
        chunk: list[list[Tensor]] = [[] for _ in self._copies]
        elements = 0
        limit = self._chunk_elements
        for index, copies in enumerate(self._copies):
            for copy in copies:
                has_gradient = self._weights[copy].grad is not None
                if self._sizes is None and not has_gradient:
                    continue
                size = copy.numel() if self._sizes is None else self._sizes[copy]
                if elements and limit is not None and elements + size > limit:
                    yield chunk
                    chunk, elements = [[] for _ in self._copies], 0
                elements += size
                # An empty shard may belong to a tensor that another rank has a gradient of.
                if has_gradient or not copy.numel():
                    chunk[index].append(copy)
        yield chunk

    @contextmanager
    def _widened(self, chunk: Sequence[Sequence[Tensor]]) -> Iterator[None]:
        # Options of groups both ways: the engine sets the learning rate outside, and the inner
        # optimizer updates state of its groups.
        inner_groups = self._inner.param_groups
        for group, inner_group, copies in zip(self.param_groups, inner_groups, chunk, strict=True):
            inner_group.update({**group, "params": copies})
        kept = {copy: self._widen(copy) for copies in chunk for copy in copies}
        try:
            yield
        finally:
            for copy, remainder in kept.items():
                self._narrow(copy, remainder)
            for group, inner_group, copies in zip(
                self.param_groups, inner_groups, self._copies, strict=True
            ):
                inner_group["params"] = copies
                group.update({**inner_group, "params": group["params"]})

    def _widen(self, copy: Tensor) -> dict[str, Tensor]:
        weight = self._weights[copy]
        kept = self._kept(weight)
        entry = {key: value for key, value in self.state.get(weight, {}).items() if key not in kept}
        # An optimizer does not initialise an entry that exists, even an empty one.
        if entry:
            self._inner.state[copy] = entry
        if copy is not weight:
            resize(copy, copy.numel())
            self._rounding.widen(weight, copy, kept)
            copy.grad = None if weight.grad is None else weight.grad.float()
        return kept

    def _narrow(self, copy: Tensor, kept: dict[str, Tensor]) -> None:
        weight = self._weights[copy]
        if copy is not weight:
            self._rounding.narrow(copy.detach(), weight, kept)
            copy.grad = None
            resize(copy, 0)
        if entry := self._inner.state.get(copy, {}) | kept:
            self.state[weight] = entry

    def _kept(self, weight: Tensor) -> dict[str, Tensor]:
        entry = self.state.get(weight, {})
        return {key: entry[key] for key in self._rounding.state_keys if key in entry}
