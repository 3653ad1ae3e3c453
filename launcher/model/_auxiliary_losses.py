"""Losses that a transformers model adds to that of its head."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from torch import Tensor, nn

from launcher.errors import DataError

if TYPE_CHECKING:
    from collections.abc import Mapping

_WEIGHTS = ("router_aux_loss_coef", "aux_loss_coef")


def auxiliary_losses(module: nn.Module, outputs: Any) -> Mapping[str, Tensor]:
    """Return the load-balancing loss of routers and the z-loss, weighted as transformers does it.

    The first needs `output_router_logits`, the second a `z_loss_coefficient` in config.json. Both
    are means over all tokens of a micro-batch, padding too.

    Raises:
        DataError: The model has a loss of unknown weight.
    """
    found: dict[str, Tensor] = {}
    router_loss = getattr(outputs, "aux_loss", None)
    if isinstance(router_loss, Tensor):
        found["router_aux_loss"] = _router_weight(module) * router_loss
    weight = getattr(module, "z_loss_coefficient", 0)
    if weight > 0:
        # Bamba adds it only next to a loss of its own.
        found["z_loss"] = weight * outputs.logits.float().logsumexp(dim=-1).pow(2).mean()
    return found


def _router_weight(module: nn.Module) -> float:
    model: Any = module
    sources = (module, model.config, model.config.get_text_config())
    found = (getattr(source, name, None) for source in sources for name in _WEIGHTS)
    weight: float | None = next((value for value in found if value is not None), None)
    if weight is None:
        raise DataError(
            f"{type(module).__name__} returns an auxiliary loss, but its config has no weight for "
            f"it ({', '.join(_WEIGHTS)}); set output_router_logits to false in config.json"
        )
    return weight
