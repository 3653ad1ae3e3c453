"""Implementations of attention in transformers."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any, Literal

from typing_extensions import override

from launcher.contracts import ConfigView, ModelOption
from launcher.errors import ConfigError, Problem

if TYPE_CHECKING:
    from launcher.contracts import Head

_NAMES = {"flash": "flash_attention_2", "flex": "flex_attention"}
_FLAGS = {
    "sdpa": "_supports_sdpa",
    "flash": "_supports_flash_attn",
    "flex": "_supports_flex_attn",
}


class TransformersOption(ModelOption):
    """Base class of models that transformers implements."""

    attention: Literal["auto", "eager", "sdpa", "flash", "flex"]
    """Implementation of attention: `sdpa` is torch's scaled_dot_product_attention, `flash` needs
    the package flash-attn, `flex` compiles torch's flex_attention, `eager` holds all scores in
    memory. `auto`: sdpa if the model has it, else eager."""

    @override
    def preflight(self) -> None:
        if self.attention == "flash" and importlib.util.find_spec("flash_attn") is None:
            message = (
                "must not be flash, because the package flash-attn is not installed; write "
                "model.attention=sdpa, which uses torch's own flash kernels"
            )
            raise ConfigError([Problem("model.attention", message)])

    @override
    def problems(self, config: ConfigView) -> Iterator[Problem]:
        yield from super().problems(config)
        precision = config.precision
        if self.attention == "flash" and not {
            precision.autocast_dtype,
            precision.master_dtype,
        } & {"bfloat16", "float16"}:
            yield Problem(
                "model.attention",
                f"flash computes in 16 bits, but precision={precision.kind}; write precision=bf16 "
                "or model.attention=sdpa",
            )

    @override
    def unsupported_on(self, device_type: str) -> Mapping[str, str]:
        found = dict(super().unsupported_on(device_type))
        if device_type != "cuda" and self.attention == "flash":
            found["attention"] = "flash needs cuda; write model.attention=sdpa"
        if device_type != "cuda" and self.attention == "flex":
            found["attention"] = (
                f"flex has no backward pass on {device_type}; write model.attention=sdpa"
            )
        return found


def set_attention(config: Any, head: Head, attention: str) -> None:
    """Set the implementation in a config of transformers.

    Raises:
        ConfigError: The architecture does not have it.
    """
    if attention == "auto":
        return
    from launcher.model._network import auto_class

    found = auto_class(config, head)._model_mapping[type(config)]  # noqa: SLF001 - its only name
    cls = found[0] if isinstance(found, tuple) else found
    supported = ["eager", *(name for name, flag in _FLAGS.items() if getattr(cls, flag, False))]
    if attention not in supported:
        message = (
            f"must be one that {cls.__name__} has in transformers ({', '.join(supported)}), but is "
            f"{attention}"
        )
        raise ConfigError([Problem("model.attention", message)])
    config._attn_implementation = _NAMES.get(attention, attention)  # noqa: SLF001 - likewise


def attention_of(module: Any) -> str | None:
    """Return the implementation that a network uses; None if it is not of transformers."""
    name = getattr(getattr(module, "config", None), "_attn_implementation", None)
    short = {full: own for own, full in _NAMES.items()}
    return None if name is None else short.get(name, name)
