"""What the 8-bit optimizers share: which library, which block size, and what stays in 32 bits."""

from __future__ import annotations

import re
from importlib.util import find_spec
from typing import TYPE_CHECKING, ClassVar, Literal

from pydantic import Field
from typing_extensions import override

from launcher.contracts import OptimizerOption, Pattern
from launcher.errors import ConfigError, Problem
from launcher.optimizer._extras import require
from launcher.optimizer._fields import Beta

if TYPE_CHECKING:
    from collections.abc import Mapping

    import torch
    from torch import Tensor, nn

# bitsandbytes' kernels are compiled for it.
_BITSANDBYTES_BLOCK = 256


class EightBitAdam(OptimizerOption):
    """Adam with moments in 8 bits, quantised in blocks.

    Source: Dettmers et al. 2021, arXiv:2110.02861.
    """

    group_options: ClassVar[frozenset[str]] = OptimizerOption.group_options | {"betas", "eps"}
    paged: ClassVar[bool] = False
    """Let the state move to the host's memory when the device is full."""
    decoupled: ClassVar[bool] = True
    """AdamW rather than Adam."""

    lr: float = Field(gt=0)
    """Peak learning rate; the schedule scales it."""
    betas: tuple[Beta, Beta]
    """Decay of the running mean of gradients and of their squares."""
    eps: float = Field(ge=0)
    """Added to the root of the second moment."""
    library: Literal["auto", "bitsandbytes", "torchao"]
    """`auto` prefers bitsandbytes on CUDA and torchao elsewhere, and takes what is installed; the
    log says which."""
    block_size: int = Field(ge=32)
    """Elements that share one scale. bitsandbytes knows 256 only."""
    min_8bit_size: int = Field(ge=0)
    """Smaller parameters keep 32-bit moments, in elements."""
    keep_32bit: tuple[Pattern, ...]
    """Patterns of parameters that keep 32-bit moments whatever their size; embeddings want it."""

    @override
    def preflight(self) -> None:
        """See that a library is installed that the kind can use."""
        if self.library == "auto" and not self.paged and find_spec("torchao"):
            return
        require(
            "torchao" if self.library == "torchao" else "bitsandbytes", extra="8bit", kind=self.kind
        )

    def _library(self, device_type: str) -> str:
        """The library as configured, or the first installed one in the device's order."""
        if self.library != "auto":
            return self.library
        if self.paged:
            return "bitsandbytes"
        best = ("bitsandbytes", "torchao")
        order = best if device_type == "cuda" else best[::-1]
        return next((library for library in order if find_spec(library)), order[0])

    @override
    def build(self, module: nn.Module, device_type: str) -> torch.optim.Optimizer:
        """The library's optimizer; says in the log which library and why."""
        import logging

        from launcher.optimizer._param_groups import param_groups, parameters

        library = self._library(device_type)
        self._check(library, device_type)
        groups = param_groups(module, self)
        found = list(parameters(module))
        if missing := [
            Problem("optimizer.keep_32bit", f"{pattern!r} matches no parameter")
            for pattern in self.keep_32bit
            if not any(parameter.matched_by(pattern) for parameter in found)
        ]:
            raise ConfigError(missing)
        kept = {p.param for p in found if any(self._keeps(x, p.param) for x in p.names)}
        reason = f"chosen for {device_type}" if self.library == "auto" else "as configured"
        logging.getLogger("trainctl.optimizer").info(
            "%s: %s (%s); %d of %d parameters keep 32-bit moments",
            self.kind,
            library,
            reason,
            len(kept),
            len(found),
        )
        if library == "bitsandbytes":
            # While it is imported it regrets, at times, a 4-bit product that no optimizer asks for.
            logging.getLogger("bitsandbytes.backends.cpu.ops").setLevel(logging.ERROR)
            from launcher.optimizer._eight_bit_bitsandbytes import bitsandbytes_adam

            return bitsandbytes_adam(groups, self, kept)
        from launcher.optimizer._eight_bit_torchao import torchao_adam

        return torchao_adam(groups, self, kept)

    def state_bytes(self, params: Mapping[str, Tensor]) -> dict[str, int]:
        """Bytes of the moments of some parameters: codes, scales, and what stays in 32 bits."""
        whole = [p.numel() for name, p in params.items() if self._keeps(name, p)]
        coded = [p.numel() for name, p in params.items() if not self._keeps(name, p)]
        scales = sum(-(-size // self.block_size) for size in coded)
        sizes = {
            "moments in 8 bits": 2 * sum(coded),
            "their scales": 2 * 4 * scales,
            "moments in 32 bits": 2 * 4 * sum(whole),
        }
        return {key: size for key, size in sizes.items() if size}

    def _keeps(self, name: str, param: Tensor) -> bool:
        """Whether a parameter's moments stay in 32 bits."""
        small = param.numel() < self.min_8bit_size
        return small or any(re.search(pattern, name) for pattern in self.keep_32bit)

    def _check(self, library: str, device_type: str) -> None:
        require(library, extra="8bit", kind=self.kind)
        # On the meta device nothing is stepped: parameters are only counted and listed.
        if self.paged and (library != "bitsandbytes" or device_type not in {"cuda", "meta"}):
            message = f"{self.kind} pages with bitsandbytes on CUDA only; use adamw_8bit"
            raise ConfigError([Problem("optimizer.kind", message)])
        if library == "bitsandbytes" and self.block_size != _BITSANDBYTES_BLOCK:
            message = (
                f"bitsandbytes' blocks have {_BITSANDBYTES_BLOCK} elements; set that, or torchao"
            )
            raise ConfigError([Problem("optimizer.block_size", message)])
