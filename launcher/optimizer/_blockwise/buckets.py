"""Parameters that an optimizer steps together, and the state they share."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from launcher.contracts import Shard

# Tensors of up to this many elements share buckets; a larger one takes the time of its elements,
# not of its calls.
SMALL_ELEMENTS = 1 << 15
# Elements of a bucket of several tensors: gathered tensors must fit the cache.
BUCKET_ELEMENTS = 1 << 18


@dataclass(frozen=True, slots=True, eq=False)
class Bucket:
    """Parameters of one shape, dtype and device, with their state stacked.

    Attributes:
        params: At least one.
        steps: Updates that each of them has had. Shape (params,), int64, on the CPU.
        state: By key; the first dim is the parameter.
        shard: Of the only parameter; None for whole tensors.
    """

    params: Sequence[Tensor]
    steps: Tensor
    state: Mapping[str, Tensor]
    shard: Shard | None = None

    @property
    def shape(self) -> torch.Size:
        return self.params[0].shape

    @property
    def numel(self) -> int:
        return self.params[0].numel()

    @property
    def whole_numel(self) -> int:
        return self.numel if self.shard is None else self.shard.whole_numel

    @property
    def num_params(self) -> int:
        return len(self.params)

    @property
    def device(self) -> torch.device:
        return self.params[0].device

    def entries(self, index: int) -> dict[str, Tensor]:
        """Return one parameter's state, as views, for the optimizer's `state`."""
        return {"step": self.steps[index], **{k: v[index] for k, v in self.state.items()}}

    def advance(self, members: Collection[int]) -> Iterator[Part]:
        """Count a step of the parameters with gradients; yield those that are at the same step.

        Args:
            members: `id` of each parameter that is in the group now.
        """
        # Normally this bucket itself; a parameter without gradient in some steps falls behind, and
        # bias correction and decay rates depend on the step.
        present = [
            index
            for index, param in enumerate(self.params)
            if param.grad is not None and id(param) in members
        ]
        if not present:
            return
        if len(present) == len(self.params):
            self.steps.add_(1)
            steps = self.steps.tolist()
            if steps.count(steps[0]) == len(steps):
                yield Part(self, steps[0], lambda: None)
                return
        else:
            self.steps[present] += 1
            steps = self.steps.tolist()
        for step in sorted({steps[i] for i in present}):
            chosen = [i for i in present if steps[i] == step]
            part = Bucket(
                [self.params[i] for i in chosen],
                self.steps[chosen],
                {key: value[chosen] for key, value in self.state.items()},
            )
            yield Part(part, step, partial(self._take, part, chosen))

    def _take(self, part: Bucket, places: list[int]) -> None:
        for key, value in part.state.items():
            self.state[key][places] = value


@dataclass(frozen=True, slots=True)
class Part:
    """Parameters of a bucket that are at the same step, counted from 1.

    Their state is a copy, unless they are the whole bucket; `finish` writes it back.
    """

    bucket: Bucket
    step: int
    finish: Callable[[], None]


def group_by_shape(
    params: Iterable[Tensor],
    *,
    small: int,
    limit: int,
) -> list[list[Tensor]]:
    """Group parameters of up to `small` elements by shape, dtype and device, larger ones alone.

    Buckets of several parameters have at most `limit` elements.
    """
    found: dict[tuple[object, ...], list[Tensor]] = {}
    buckets: list[list[Tensor]] = []
    for param in params:
        if param.numel() > small:
            buckets.append([param])
        else:
            key = (param.shape, param.dtype, param.device)
            found.setdefault(key, []).append(param)
    for same in found.values():
        size = max(1, limit // max(1, same[0].numel()))
        buckets += [same[start : start + size] for start in range(0, len(same), size)]
    return buckets
