"""Limits on gradients, applied in one documented order without waiting for the device."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from launcher.contracts import Clipping

# As in torch.nn.utils.clip_grad_norm_: a gradient of zeros is divided by this, not by zero.
_EPS = 1e-6


def clip_(params: Sequence[nn.Parameter], limits: Clipping, norm: Tensor) -> None:
    """Limit gradients in place: each parameter's norm, then the norm of all, then each element.

    Args:
        params: Parameters; those without gradient are left out.
        limits: What is limited.
        norm: 2-norm of all gradients as they are. Shape ().
    """
    grads = [p.grad for p in params if p.grad is not None]
    if limits.max_norm_per_parameter is not None:
        clip_each_norm_(grads, limits.max_norm_per_parameter)
        if limits.max_norm is not None:
            norm = nn.utils.get_total_norm(grads)
    if limits.max_norm is not None:
        nn.utils.clip_grads_with_norm_(params, limits.max_norm, norm)
    if limits.max_value is not None:
        nn.utils.clip_grad_value_(params, limits.max_value)


def clip_each_norm_(grads: Sequence[Tensor], max_norm: float) -> None:
    """Scale every gradient whose own 2-norm is above a limit down to it, in place.

    Args:
        grads: Gradients of any devices and formats.
        max_norm: The limit.

    Source: Keras' `clipnorm`, with the denominator of torch's clip_grad_norm_.
    """
    by_kind: dict[tuple[torch.device, torch.dtype], list[Tensor]] = {}
    for grad in grads:
        by_kind.setdefault((grad.device, grad.dtype), []).append(grad)
    norms_of = torch._foreach_norm  # noqa: SLF001 - what clip_grad_norm_ itself calls
    for alike in by_kind.values():
        # In float32: a bfloat16 norm has hardly a digit left.
        norms = torch.stack(norms_of(alike, 2, dtype=torch.float32))
        factors = (max_norm / (norms + _EPS)).clamp_(max=1.0)
        torch._foreach_mul_(alike, list(factors.unbind()))
