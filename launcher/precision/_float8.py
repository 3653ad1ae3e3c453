"""Bfloat16 autocast over a module whose linear layers multiply in float8."""

from __future__ import annotations

import logging
import re
from collections.abc import Sequence

import torch
from torch import nn
from typing_extensions import override

from launcher.errors import ConfigError, Problem
from launcher.precision._autocast import Autocast

_log = logging.getLogger("trainctl.precision")

_MULTIPLE = 16
"""Float8 kernels take matrices whose sides are multiples of this."""


class Float8(Autocast):
    """See `fp8`.

    Args:
        device_type: `cuda`; others only where torch emulates the products.
        recipe: torchao's name of how values are scaled.
        skip: Patterns of layers that are left alone.
    """

    def __init__(self, device_type: str, recipe: str, skip: Sequence[str]) -> None:
        super().__init__(device_type, None, torch.bfloat16)
        self._recipe = recipe
        self._skip = tuple(skip)

    @override
    def prepare(self, module: nn.Module) -> None:
        """Replace linear layers in place; parameters and their names stay.

        Raises:
            ConfigError: A pattern matches no linear layer, or no layer can be replaced.
        """
        from torchao.float8 import Float8LinearConfig, convert_to_float8_training

        super().prepare(module)
        chosen = self._chosen(module)
        convert_to_float8_training(
            module,
            module_filter_fn=lambda _, name: name in chosen,
            config=Float8LinearConfig.from_recipe_name(self._recipe),
        )
        _log.info("float8 in %d linear layers", len(chosen))

    def _chosen(self, module: nn.Module) -> set[str]:
        linear = {
            name: part for name, part in module.named_modules() if isinstance(part, nn.Linear)
        }
        for place, pattern in enumerate(self._skip):
            if not any(re.search(pattern, name) for name in linear):
                key = f"precision.skip[{place}]"
                raise ConfigError([Problem(key, f"{pattern!r} matches no linear layer")])
        chosen = {
            name
            for name, part in linear.items()
            if part.in_features % _MULTIPLE == 0
            and part.out_features % _MULTIPLE == 0
            and not any(re.search(pattern, name) for pattern in self._skip)
        }
        if not chosen:
            message = (
                f"fp8 finds no linear layer that is not skipped and has sides of multiples of "
                f"{_MULTIPLE}; write precision=bf16"
            )
            raise ConfigError([Problem("precision.kind", message)])
        return chosen
