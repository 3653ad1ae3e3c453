"""Conversion of bfloat16 weights to float32 for a step, and back without losing the update."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping

import torch
from torch import Tensor
from typing_extensions import override

# Half of the last bit that a bfloat16 keeps, in units of the last bit of a float32.
_HALF = 0x8000
# A NaN whose lower half is zero.
_NAN = 0x7FC00000
# The same on all ranks, so that copies of a weight stay equal.
_SEED = 0x5EED


class Rounding(ABC):
    """Conversion to float32 and back."""

    # A bfloat16 is the upper half of a float32. The lower half after a step is either kept next to
    # the weight (compensated) or rounded up with a probability (stochastic).

    state_keys: tuple[str, ...] = ()
    """Keys of a weight's optimizer state that this rounding adds."""

    @abstractmethod
    def widen(self, weight: Tensor, wide: Tensor, kept: Mapping[str, Tensor]) -> None:
        """Write the value of a bfloat16 weight to a contiguous float32 of its shape and device."""

    @abstractmethod
    def narrow(self, wide: Tensor, weight: Tensor, kept: dict[str, Tensor]) -> None:
        """Write a float32 value, which it overwrites, to a bfloat16 weight and to `kept`."""

    def begin_step(self) -> None:  # noqa: B027 - optional
        pass

    def state(self) -> Mapping[str, Tensor]:
        return {}

    def load_state(self, state: Mapping[str, Tensor]) -> None:
        if odd := state.keys() ^ self.state().keys():
            raise KeyError(*sorted(odd))


class Compensated(Rounding):
    """Round to nearest and keep the remainder, so that both together are the float32 exactly.

    Source: Kahan summation for weights, Zamirai et al. 2020, arXiv:2010.06192, §3.
    """

    # The paper rounds the remainder to bfloat16; the lower sixteen bits take as much and lose none.
    state_keys = ("low_bits",)

    @override
    def widen(self, weight: Tensor, wide: Tensor, kept: Mapping[str, Tensor]) -> None:
        wide.copy_(weight)
        # There is no remainder before the first step.
        if (low := kept.get("low_bits")) is not None:
            _halves(wide)[0::2].copy_(_local(low).view(-1))
            _bits(wide).sub_(_HALF)

    @override
    def narrow(self, wide: Tensor, weight: Tensor, kept: dict[str, Tensor]) -> None:
        # With half a bit added, the upper half is the nearest bfloat16, and the lower half the
        # remainder plus that half bit, which `widen` subtracts.
        _plain_nans(wide).add_(_HALF)
        halves = _halves(wide)
        if "low_bits" not in kept:
            kept["low_bits"] = torch.empty_like(
                weight, dtype=torch.int16, memory_format=torch.contiguous_format
            )
        _local(kept["low_bits"]).view(-1).copy_(halves[0::2])
        _assign_upper(halves, weight)


class Stochastic(Rounding):
    """Round to a neighbour with a probability that makes the result right on average.

    Source: Gupta et al. 2015, arXiv:1502.02551, §3.1.
    """

    def __init__(self) -> None:
        self._step = 0
        self._generators: dict[torch.device, torch.Generator] = {}

    @override
    def begin_step(self) -> None:
        # Seeded by the step: a resume needs one number instead of the state of each generator.
        self._step += 1
        for generator in self._generators.values():
            generator.manual_seed(_SEED + self._step)

    @override
    def widen(self, weight: Tensor, wide: Tensor, kept: Mapping[str, Tensor]) -> None:
        del kept
        wide.copy_(weight)

    @override
    def narrow(self, wide: Tensor, weight: Tensor, kept: dict[str, Tensor]) -> None:
        del kept
        bits = _plain_nans(wide)
        # Much faster than torch.randint: each 64-bit draw gives two 16-bit numbers.
        draws = torch.empty((bits.numel() + 1) // 2, dtype=torch.int64, device=bits.device)
        draws.random_(-(2**63), None, generator=self._generator(bits.device))
        noise = draws.view(torch.int32)[: bits.numel()]
        # Sixteen random bits carry into the upper half with the probability of the lower half.
        bits.add_(noise.bitwise_and_(0xFFFF))
        _assign_upper(_halves(wide), weight)

    @override
    def state(self) -> Mapping[str, Tensor]:
        return {"rounding_step": torch.tensor(self._step)}

    @override
    def load_state(self, state: Mapping[str, Tensor]) -> None:
        super().load_state(state)
        self._step = int(state["rounding_step"])

    def _generator(self, device: torch.device) -> torch.Generator:
        if device not in self._generators:
            generator = torch.Generator(device)
            self._generators[device] = generator.manual_seed(_SEED + self._step)
        return self._generators[device]


def resize(tensor: Tensor, elements: int) -> None:
    """Allocate memory for a contiguous tensor's elements, or free it."""
    # The storage, not the tensor: whoever holds the tensor must see the new memory.
    local = _local(tensor.detach())
    local.untyped_storage().resize_(elements and local.numel() * local.element_size())


def _local(tensor: Tensor) -> Tensor:
    # Asked by attribute: DTensor is of torch.distributed, which only engines may import.
    to_local = getattr(tensor, "to_local", None)
    return tensor if to_local is None else to_local()


def _bits(wide: Tensor) -> Tensor:
    return _local(wide).view(-1).view(torch.int32)


def _plain_nans(wide: Tensor) -> Tensor:
    # Adding to the lower half would carry a NaN of all ones (CUDA's) over the exponent to -0.0.
    return _bits(wide).masked_fill_(_local(wide).view(-1).isnan(), _NAN)


def _halves(wide: Tensor) -> Tensor:
    # The lower half first: both x86 and Arm are little-endian.
    return _local(wide).view(-1).view(torch.int16)


def _assign_upper(halves: Tensor, weight: Tensor) -> None:
    local = _local(weight.detach())
    local.copy_(halves.view(torch.bfloat16)[1::2].view(local.shape))
