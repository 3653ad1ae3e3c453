"""What optimizers with moments in a few bits share: which library, and what stays in 32 bits."""

from __future__ import annotations

import re
from abc import abstractmethod
from collections.abc import Mapping
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any, ClassVar

from pydantic import Field
from typing_extensions import override

from launcher.contracts import OptimizerOption, OptimizerTarget, Pattern
from launcher.errors import ConfigError, Problem
from launcher.optimizer._extras import require

if TYPE_CHECKING:
    import torch
    from torch import Tensor

BITSANDBYTES_BLOCK = 256
"""Elements that share one scale in bitsandbytes: its kernels are compiled for it."""


class LowBit(OptimizerOption):
    """An optimizer whose moments have a few bits, quantised in blocks with one scale each."""

    classes: ClassVar[Mapping[str, str]]
    """Libraries that have the kind, the best on CUDA first, and what their class is called."""
    moments: ClassVar[int]
    """How many numbers are kept for each of a parameter's elements."""
    bits: ClassVar[int]
    """Of each of them."""
    paged: ClassVar[bool] = False
    """Let the state move to the host's memory when the device is full."""

    lr: float = Field(gt=0)
    """Peak learning rate; the schedule scales it."""
    keep_32bit: tuple[Pattern, ...]
    """Patterns of parameters that keep 32-bit moments whatever their size; embeddings want it."""

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
        """Those that may be taken, the best on CUDA first."""
        return tuple(self.classes)

    @abstractmethod
    def arguments(self) -> dict[str, Any]:
        """What the library's class is constructed with, beside parameters and learning rate."""

    @override
    def preflight(self) -> None:
        """See that a library is installed that the kind can use."""
        if not any(find_spec(library) for library in self.libraries):
            require(self.libraries[0], extra="8bit", kind=self.kind)

    @override
    def refuses_shards(self) -> str:
        # A shard begins within a block: other scales, and a state that fits no other layout.
        return "its moments share scales in blocks of the whole tensor"

    @override
    def build(self, target: OptimizerTarget) -> torch.optim.Optimizer:
        """The library's optimizer; says in the log which library and why."""
        import logging

        from launcher.optimizer._param_groups import param_groups, parameters

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
            # While it is imported it regrets, at times, a 4-bit product that no optimizer asks for.
            logging.getLogger("bitsandbytes.backends.cpu.ops").setLevel(logging.ERROR)
            from launcher.optimizer._low_bit_bitsandbytes import mixed

            return mixed(self.classes[library], groups, kept, values)
        from launcher.optimizer._low_bit_torchao import plain

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

    def _library(self, device_type: str) -> str:
        """The first installed one in the device's order."""
        order = self.libraries if device_type == "cuda" else self.libraries[::-1]
        return next((library for library in order if find_spec(library)), order[0])

    def _reason(self, device_type: str) -> str:
        if len(self.classes) == 1:
            return "which alone has it"
        return f"chosen for {device_type}" if len(self.libraries) > 1 else "as configured"

    def _keeps(self, name: str, param: Tensor) -> bool:
        """Whether a parameter's moments stay in 32 bits."""
        if param.numel() < self.smallest:
            return True
        # torchao has no broken blocks.
        if self.libraries == ("torchao",) and param.numel() % self.block:
            return True
        return any(re.search(pattern, name) for pattern in self.keep_32bit)

    def _check(self, library: str, device_type: str) -> None:
        require(library, extra="8bit", kind=self.kind)
        # On the meta device nothing is stepped: parameters are only counted and listed.
        if self.paged and device_type not in {"cuda", "meta"}:
            message = f"{self.kind} pages on CUDA only; use {self.kind.removeprefix('paged_')}"
            raise ConfigError([Problem("optimizer.kind", message)])
        if library == "bitsandbytes" and self.block != BITSANDBYTES_BLOCK:
            message = (
                f"bitsandbytes' blocks have {BITSANDBYTES_BLOCK} elements; set that, or torchao"
            )
            raise ConfigError([Problem("optimizer.block_size", message)])
