"""Losses that a transformers model adds to that of its head."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from torch import Tensor, nn

from launcher.errors import DataError

if TYPE_CHECKING:
    from collections.abc import Mapping

_WEIGHTS = ("router_aux_loss_coef", "aux_loss_coef")


def auxiliary_losses(module: nn.Module, outputs: Any) -> Mapping[str, Tensor]:
    """Return the load-balancing loss of the router, weighted as transformers weights it.

    It is there if `output_router_logits` is true in config.json. It counts all tokens of a
    micro-batch, padding too.

    Raises:
        DataError: The model has a loss of unknown weight.
    """
    loss = getattr(outputs, "aux_loss", None)
    if not isinstance(loss, Tensor):
        return {}
    model: Any = module
    sources = (module, model.config, model.config.get_text_config())
    found = (getattr(source, name, None) for source in sources for name in _WEIGHTS)
    weight = next((value for value in found if value is not None), None)
    if weight is None:
        raise DataError(
            f"{type(module).__name__} returns an auxiliary loss, but its config has no weight for "
            f"it ({', '.join(_WEIGHTS)}); set output_router_logits to false in config.json"
        )
    return {"router_aux_loss": weight * loss}
