"""Formats with float32 parameters: float32 throughout, autocast with its loss scale, float8."""

from __future__ import annotations

import logging
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from typing_extensions import override

from launcher.contracts import Precision
from launcher.errors import ConfigError, NonFinite, Problem
from launcher.precision._options import FullEval

_log = logging.getLogger("trainctl.precision")

# Float8 kernels take matrices whose sides are multiples of this.
_MULTIPLE = 16


class Float32(Precision):
    """Float32 throughout, except in evaluations with another format."""

    def __init__(self, device_type: str, full_eval: FullEval | None) -> None:
        self._device_type = device_type
        self._full_eval = full_eval

    @property
    @override
    def param_dtype(self) -> torch.dtype:
        return torch.float32

    @override
    def autocast(self) -> AbstractContextManager[Any]:
        return nullcontext()

    @override
    def evaluation(self, module: nn.Module) -> AbstractContextManager[Any]:
        if self._full_eval is None:
            return self.autocast()
        return rounded_parameters(module, self._device_type, dtype_of(self._full_eval))


class Float64(Float32):
    """Float64 throughout."""

    @property
    @override
    def param_dtype(self) -> torch.dtype:
        return torch.float64


class Autocast(Float32):
    """Float32 parameters; torch's autocast computes matrix products in `dtype`."""

    def __init__(self, device_type: str, full_eval: FullEval | None, dtype: torch.dtype) -> None:
        super().__init__(device_type, full_eval)
        self._dtype = dtype

    @override
    def autocast(self) -> AbstractContextManager[Any]:
        return torch.autocast(self._device_type, dtype=self._dtype)


class ScaledAutocast(Autocast):
    """Autocast to float16, with a loss scale that keeps gradients within its small range."""

    def __init__(
        self, device_type: str, full_eval: FullEval | None, loss_scale: DynamicLossScale
    ) -> None:
        super().__init__(device_type, full_eval, torch.float16)
        # Gradients below 6e-8 are zero in float16: the scale lifts them into its range.
        self.loss_scale: DynamicLossScale = loss_scale

    @override
    def state(self) -> Mapping[str, Tensor]:
        return self.loss_scale.state()

    @override
    def load_state(self, state: Mapping[str, Tensor]) -> None:
        self.loss_scale.load_state(state)


class DynamicLossScale:
    """Loss scale that doubles after `growth_interval` updates and halves at each overflow.

    Source: Micikevicius et al. 2018, arXiv:1710.03740, §3.2.
    """

    # Not torch's GradScaler: it decides on each rank whether to skip the update, and knows no
    # minimum below which a run ends.

    def __init__(self, *, init_scale: float, growth_interval: int, min_scale: float) -> None:
        self.value = init_scale
        self._growth_interval = growth_interval
        self._min_scale = min_scale
        self._good_updates = 0

    def scale(self, loss: Tensor) -> Tensor:
        return loss * self.value

    def unscale(self, grads: Sequence[Tensor]) -> None:
        # Exact, because the factor is a power of two.
        if grads:
            torch._foreach_mul_(list(grads), 1.0 / self.value)

    def update(self, *, overflowed: bool) -> None:
        """Halve, or count towards doubling; raise NonFinite below the minimum."""
        if not overflowed:
            self._good_updates += 1
            if self._good_updates >= self._growth_interval:
                self._good_updates = 0
                # Beyond this the scaled loss itself, a float32, could overflow.
                self.value = min(self.value * 2, 2.0**64)
            return
        self._good_updates = 0
        # At a small scale gradients overflow because they are wrong, not because they are scaled.
        if self.value <= self._min_scale:
            raise NonFinite(
                f"gradients overflow at the least loss scale, {self._min_scale:g}: the model "
                "diverges, or computes numbers beyond 65504; write precision=bf16, or lower the "
                "learning rate"
            )
        self.value = max(self.value / 2, self._min_scale)

    def state(self) -> Mapping[str, Tensor]:
        # Tensors, because checkpoints hold nothing that needs pickle.
        return {
            "loss_scale": torch.tensor(self.value, dtype=torch.float64),
            "good_updates": torch.tensor(self._good_updates),
        }

    def load_state(self, state: Mapping[str, Tensor]) -> None:
        if odd := state.keys() ^ self.state().keys():
            raise KeyError(*sorted(odd))
        self.value = float(state["loss_scale"])
        self._good_updates = int(state["good_updates"])


class Float8(Autocast):
    """Autocast to bfloat16, with linear layers in float8 by torchao's `recipe`."""

    def __init__(self, device_type: str, recipe: str, skip: Sequence[str]) -> None:
        super().__init__(device_type, None, torch.bfloat16)
        self._recipe = recipe
        self._skip = tuple(skip)

    @override
    def prepare(self, module: nn.Module) -> None:
        # Imported here: the other formats of this module do not need the extra.
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
            # A misspelt pattern would leave no trace but the float8 rounding of its layer.
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


def dtype_of(format_: FullEval) -> torch.dtype:
    return {"bf16": torch.bfloat16, "fp16": torch.float16}[format_]


@contextmanager
def rounded_parameters(module: nn.Module, device_type: str, dtype: torch.dtype) -> Iterator[None]:
    """Run the module with rounded copies of its parameters.

    Not for sharded parameters, which the engine itself replaces in the module.
    """

    def rounded(param: nn.Parameter) -> nn.Parameter:
        if not param.is_floating_point():
            return param
        return nn.Parameter(param.detach().to(dtype), requires_grad=False)

    # Autocast covers inputs and buffers, which stay in other formats.
    with replaced_parameters(module, rounded), torch.autocast(device_type, dtype=dtype):
        yield


@contextmanager
def replaced_parameters(
    module: nn.Module, make: Callable[[nn.Parameter], nn.Parameter]
) -> Iterator[dict[nn.Parameter, nn.Parameter]]:
    """Replace a module's parameters until the context ends; yield replacements by parameter."""
    made: dict[nn.Parameter, nn.Parameter] = {}
    places: list[tuple[nn.Module, str, nn.Parameter]] = []
    try:
        for part in module.modules():
            for name, param in list(part.named_parameters(recurse=False)):
                # Once per parameter: tied weights must stay tied.
                if param not in made:
                    made[param] = make(param)
                places.append((part, name, param))
                setattr(part, name, made[param])
        yield made
    finally:
        for part, name, param in places:
            setattr(part, name, param)
