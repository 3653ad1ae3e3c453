"""Limits on gradients, applied in one documented order without waiting for the device."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor, nn

from launcher.contracts import UNSHARDED, Clipping, Sharding

# As in torch.nn.utils.clip_grad_norm_: a gradient of zeros is divided by this, not by zero.
_EPS = 1e-6


def clip_(
    params: Sequence[nn.Parameter],
    limits: Clipping,
    norm: Tensor,
    sharding: Sharding = UNSHARDED,
) -> None:
    """Limit gradients in place, in the order that `Clipping` documents.

    `norm` is the 2-norm of all gradients before any limit, shape ().
    """
    if limits.max_norm_per_parameter is not None:
        if sharding.ranks > 1:
            _clip_each_whole_norm_(params, limits.max_norm_per_parameter, sharding)
        else:
            clip_each_norm_(_gradients(params), limits.max_norm_per_parameter)
        if limits.max_norm is not None:
            # The given norm is that of the gradients before they were scaled here.
            norm = gradient_norm(params, sharding)
    if limits.max_norm is not None:
        # It multiplies by a factor clamped to 1 instead of comparing: no read from the device.
        nn.utils.clip_grads_with_norm_(params, limits.max_norm, norm)
    if limits.max_value is not None:
        nn.utils.clip_grad_value_(params, limits.max_value)


def gradient_norm(params: Sequence[nn.Parameter], sharding: Sharding = UNSHARDED) -> Tensor:
    """Return the 2-norm of the gradients of full tensors: shape (), float32 or wider.

    Collective if they are sharded: every rank passes as many parameters in the same order.
    """
    if sharding.ranks > 1:
        norm: Tensor = torch.linalg.vector_norm(_whole_norms(params, sharding))
        return norm
    return total_norm(_gradients(params))


def clip_each_norm_(grads: Sequence[Tensor], max_norm: float) -> None:
    """Scale every gradient whose own 2-norm is above a limit down to it, in place."""
    # Keras' `clipnorm`, with the denominator of torch's clip_grad_norm_; torch itself has no limit
    # per parameter.
    for same_kind in _by_kind(grads):
        factors = (max_norm / (torch.stack(_norms(same_kind)) + _EPS)).clamp_(max=1.0)
        torch._foreach_mul_(same_kind, list(factors.unbind()))


def total_norm(grads: Sequence[Tensor]) -> Tensor:
    """Return the 2-norm of all gradients: shape (), float32 or wider, on the first one's device."""
    # Not torch.nn.utils.get_total_norm, which computes in the gradients' own format.
    norms = [
        norm.to(grads[0].device) for same_kind in _by_kind(grads) for norm in _norms(same_kind)
    ]
    return torch.linalg.vector_norm(torch.stack(norms)) if norms else torch.zeros(())


def _gradients(params: Sequence[nn.Parameter]) -> list[Tensor]:
    return [param.grad for param in params if param.grad is not None]


def _whole_norms(params: Sequence[nn.Parameter], sharding: Sharding) -> Tensor:
    # One collective for all parameters: one per parameter would cost its latency each time.
    squares = torch.zeros(
        len(params), dtype=torch.promote_types(params[0].dtype, torch.float32)
    ).to(params[0].device)
    for place, param in enumerate(params):
        # Zero where another rank counts the element, so that the sum over ranks counts it once.
        if param.grad is not None and param.grad.numel() and sharding.shard_of(param).counted:
            [norm] = _norms([param.grad])
            squares[place] = norm.square()
    sharding.add_up({"gradient squares": squares})
    return squares.sqrt_()


def _clip_each_whole_norm_(
    params: Sequence[nn.Parameter], max_norm: float, sharding: Sharding
) -> None:
    factors = (max_norm / (_whole_norms(params, sharding) + _EPS)).clamp_(max=1.0)
    for param, factor in zip(params, factors.unbind(), strict=True):
        if param.grad is not None:
            param.grad.mul_(factor)


def _norms(same_kind: list[Tensor]) -> list[Tensor]:
    # At least in float32: a bfloat16 norm has hardly a digit left.
    dtype = torch.promote_types(same_kind[0].dtype, torch.float32)
    norms_of = torch._foreach_norm  # noqa: SLF001 - what clip_grad_norm_ itself calls
    return list(norms_of(same_kind, 2, dtype=dtype))


def _by_kind(grads: Sequence[Tensor]) -> Iterable[list[Tensor]]:
    # A foreach kernel takes tensors of one device and dtype.
    found: dict[tuple[torch.device, torch.dtype], list[Tensor]] = {}
    for grad in grads:
        found.setdefault((grad.device, grad.dtype), []).append(grad)
    return found.values()
