"""Options of optimizers with 8-bit and 4-bit moments."""

from __future__ import annotations

import logging
import re
from abc import abstractmethod
from collections.abc import Mapping
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Self

from pydantic import Field, model_validator
from typing_extensions import override

from launcher.contracts import OptimizerTarget, Pattern
from launcher.errors import ConfigError, Problem
from launcher.optimizer._groups.fields import Beta, LearningRate, MixedMoments, Moments

if TYPE_CHECKING:
    import torch
    from torch import Tensor

# Elements that share one scale in bitsandbytes: its kernels are compiled for it.
BITSANDBYTES_BLOCK = 256


class LowBit(LearningRate):
    """An optimizer whose moments have a few bits, quantised in blocks with one scale each."""

    classes: ClassVar[Mapping[str, str]]
    """Name of the class in each library that has the kind, the fastest on CUDA first."""
    moments: ClassVar[int]
    """Numbers in the state per element of a parameter."""
    bits: ClassVar[int]
    """Bits of each of these numbers."""
    extra: ClassVar[str | None] = "8bit"

    keep_32bit: tuple[Pattern, ...]
    """Patterns of parameters that keep 32-bit moments whatever their size, usually embeddings."""

    @property
    @abstractmethod
    def block(self) -> int:
        """Elements that share one scale."""

    @property
    @abstractmethod
    def smallest(self) -> int:
        """Parameters of fewer elements keep 32-bit moments."""

    @property
    def libraries(self) -> tuple[str, ...]:
        """Libraries that may be used, the fastest on CUDA first."""
        return tuple(self.classes)

    @abstractmethod
    def arguments(self) -> dict[str, Any]:
        """Return the arguments of the library's class other than learning rate and decay."""

    @override
    def preflight(self) -> None:
        if not any(find_spec(library) for library in self.libraries):
            raise ConfigError([Problem("optimizer.kind", self._missing(self.libraries[0]))])

    @override
    def refuses_shards(self) -> str:
        # A shard begins within a block: other scales, and a state that fits no other layout.
        return "its moments share scales in blocks of the whole tensor"

    @override
    def build(self, target: OptimizerTarget) -> torch.optim.Optimizer:
        from launcher.optimizer._groups.param_groups import param_groups, parameters

        library = self._library(target.device_type)
        self._check(library, target.device_type)
        groups = param_groups(target, self)
        found = list(parameters(target))
        if missing := [
            Problem("optimizer.keep_32bit", f"{pattern!r} matches no parameter")
            for pattern in self.keep_32bit
            if not any(parameter.matched_by(pattern) for parameter in found)
        ]:
            raise ConfigError(missing)
        kept = {p.param for p in found if any(self._keeps(x, p.param) for x in p.names)}
        logging.getLogger("trainctl.optimizer").info(
            "%s: %s (%s); %d of %d parameters keep 32-bit moments",
            self.kind,
            library,
            self._reason(target.device_type),
            len(kept),
            len(found),
        )
        values = {"lr": self.lr, "weight_decay": self.weight_decay, **self.arguments()}
        if library == "bitsandbytes":
            # Its import may warn of a 4-bit matrix product that no optimizer uses.
            logging.getLogger("bitsandbytes.backends.cpu.ops").setLevel(logging.ERROR)
            from launcher.optimizer._low_bit.bitsandbytes import mixed

            return mixed(self.bitsandbytes_class, groups, kept, values)
        from launcher.optimizer._low_bit.torchao import plain

        return plain(self.classes[library], groups, kept, {**values, "block_size": self.block})

    @override
    def state_bytes(self, params: Mapping[str, Tensor]) -> Mapping[str, int]:
        whole = [p.numel() for name, p in params.items() if self._keeps(name, p)]
        coded = [p.numel() for name, p in params.items() if not self._keeps(name, p)]
        scales = sum(-(-size // self.block) for size in coded)
        sizes = {
            f"moments in {self.bits} bits": self.moments * sum(coded) * self.bits // 8,
            "their scales": self.moments * 4 * scales,
            "moments in 32 bits": self.moments * 4 * sum(whole),
        }
        return {key: size for key, size in sizes.items() if size}

    @property
    def bitsandbytes_class(self) -> str:
        """Name of bitsandbytes' class."""
        return self.classes["bitsandbytes"]

    def _missing(self, library: str) -> str:
        return f"{self.kind} needs the package {library}; install it: pip install 'trainctl[8bit]'"

    def _library(self, device_type: str) -> str:
        # bitsandbytes' kernels are fastest on CUDA; torchao compiles its step on every device.
        order = self.libraries if device_type == "cuda" else self.libraries[::-1]
        return next((library for library in order if find_spec(library)), order[0])

    def _reason(self, device_type: str) -> str:
        if len(self.classes) == 1:
            return "which alone has it"
        return f"chosen for {device_type}" if len(self.libraries) > 1 else "as configured"

    def _keeps(self, name: str, param: Tensor) -> bool:
        # Small parameters and embeddings: they save little, or suffer most from the rounding.
        if param.numel() < self.smallest:
            return True
        # torchao requires whole blocks.
        if self.libraries == ("torchao",) and param.numel() % self.block:
            return True
        return any(re.search(pattern, name) for pattern in self.keep_32bit)

    def _check(self, library: str, device_type: str) -> None:
        if find_spec(library) is None:
            raise ConfigError([Problem("optimizer.kind", self._missing(library))])
        # On the meta device nothing is stepped: parameters are only counted and listed.
        if device_type != "meta" and (reasons := self.unsupported_on(device_type)):
            raise ConfigError([Problem(f"optimizer.{key}", why) for key, why in reasons.items()])
        if library == "bitsandbytes" and self.block != BITSANDBYTES_BLOCK:
            message = (
                f"bitsandbytes' blocks have {BITSANDBYTES_BLOCK} elements; set that, or torchao"
            )
            raise ConfigError([Problem("optimizer.block_size", message)])


class EightBit(LowBit):
    """An optimizer whose moments have 8 bits.

    Source: Dettmers et al. 2021, arXiv:2110.02861.
    """

    bits: ClassVar[int] = 8
    # Where bitsandbytes has kernels. Kinds that torchao has too run on more devices.
    devices: ClassVar[frozenset[str]] = frozenset({"cpu", "cuda"})

    min_8bit_size: int = Field(ge=0, le=2**40)
    """Smaller parameters keep 32-bit moments, in elements."""

    @property
    @override
    def block(self) -> int:
        return BITSANDBYTES_BLOCK

    @property
    @override
    def smallest(self) -> int:
        return self.min_8bit_size


class PagedEightBit(EightBit):
    """An 8-bit optimizer that bitsandbytes also has with paged state.

    Source: Dettmers et al. 2023, arXiv:2305.14314, section 3.
    """

    paged: bool
    """Let the state move to the host's memory when the GPU is full; bitsandbytes on CUDA only."""

    @property
    @override
    def bitsandbytes_class(self) -> str:
        return f"Paged{super().bitsandbytes_class}" if self.paged else super().bitsandbytes_class

    @override
    def unsupported_on(self, device_type: str) -> Mapping[str, str]:
        found = super().unsupported_on(device_type)
        if not self.paged or device_type == "cuda":
            return found
        return {**found, "paged": f"{self.kind} pages on CUDA only; use optimizer={self.kind}"}


class EightBitAdam(PagedEightBit, Moments):
    """Adam with moments in 8 bits."""

    moments: ClassVar[int] = 2
    devices: ClassVar[frozenset[str]] = LowBit.devices

    library: Literal["auto", "bitsandbytes", "torchao"]
    """`auto` prefers bitsandbytes on CUDA and torchao elsewhere, takes what is installed, and logs
    it."""
    block_size: int = Field(ge=32, le=1 << 20)
    """Elements that share one scale. bitsandbytes supports only 256."""

    @model_validator(mode="after")
    def _library_pages(self) -> Self:
        if self.paged and self.library == "torchao":
            raise ValueError("library: must be bitsandbytes for paged state, but is torchao")
        return self

    @property
    @override
    def block(self) -> int:
        return self.block_size

    @property
    @override
    def libraries(self) -> tuple[str, ...]:
        if self.paged:
            return ("bitsandbytes",)
        return tuple(self.classes) if self.library == "auto" else (self.library,)

    @override
    def arguments(self) -> dict[str, Any]:
        return {"betas": self.betas, "eps": self.eps}


class EightBitLion(PagedEightBit):
    """Lion with its momentum in 8 bits."""

    group_options: ClassVar[frozenset[str]] = EightBit.group_options | {"betas"}
    moments: ClassVar[int] = 1

    betas: tuple[Beta, Beta]
    """Weight of the momentum in the update, and decay of the momentum."""

    @override
    def arguments(self) -> dict[str, Any]:
        return {"betas": self.betas}


class EightBitAdEMAMix(PagedEightBit, MixedMoments):
    """AdEMAMix with its three moments in 8 bits."""

    moments: ClassVar[int] = 3

    @override
    def arguments(self) -> dict[str, Any]:
        steps = {"t_alpha": self.t_alpha_beta3, "t_beta3": self.t_alpha_beta3}
        return {"betas": self.betas, "eps": self.eps, "alpha": self.alpha, **steps}
