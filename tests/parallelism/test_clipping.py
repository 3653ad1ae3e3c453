"""Limits on gradients against a plain reference, in the documented order."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn

from launcher.contracts import Clipping
from launcher.parallelism._clipping import clip_, total_norm

SHAPES = [(7, 5), (3,), (), (4, 2, 3), (64, 64)]

LIMITS = [
    Clipping(None, None),
    Clipping(None, None, 0.5),
    Clipping(0.7, None, 0.5),
    Clipping(None, 0.01, 0.5),
    Clipping(0.7, 0.01, 0.5),
    Clipping(0.7, 0.01),
    Clipping(100.0, None, 100.0),
]


def params_with_grads(dtype: torch.dtype = torch.float32) -> list[nn.Parameter]:
    """Gradients of very different sizes, a gradient of zeros, and a parameter without any."""
    generator = torch.Generator().manual_seed(3)
    params = []
    for place, shape in enumerate(SHAPES):
        param = nn.Parameter(torch.zeros(shape, dtype=dtype))
        param.grad = (torch.randn(shape, generator=generator) * 10.0 ** (place - 3)).to(dtype)
        params.append(param)
    zeros = nn.Parameter(torch.zeros(2))
    zeros.grad = torch.zeros(2)
    return [*params, zeros, nn.Parameter(torch.zeros(2))]


def total(grads: list[Tensor]) -> float:
    return math.sqrt(sum(g.double().square().sum().item() for g in grads))


def reference(grads: list[Tensor], limits: Clipping) -> list[Tensor]:
    grads = [g.double() for g in grads]
    if (each := limits.max_norm_per_parameter) is not None:
        grads = [g * min(1.0, each / (total([g]) + 1e-6)) for g in grads]
    if limits.max_norm is not None:
        factor = min(1.0, limits.max_norm / (total(grads) + 1e-6))
        grads = [g * factor for g in grads]
    if (value := limits.max_value) is not None:
        grads = [g.clamp(-value, value) for g in grads]
    return grads


def clipped(params: list[nn.Parameter], limits: Clipping) -> tuple[list[Tensor], list[Tensor]]:
    """Gradients before and after."""
    before = [p.grad.clone() for p in params if p.grad is not None]
    clip_(params, limits, nn.utils.get_total_norm(before))
    return before, [p.grad for p in params if p.grad is not None]


@pytest.mark.parametrize("limits", LIMITS)
def test_clipping_is_the_plain_reference(limits: Clipping) -> None:
    before, after = clipped(params_with_grads(), limits)
    for ours, expected in zip(after, reference(before, limits), strict=True):
        torch.testing.assert_close(ours.double(), expected, atol=1e-9, rtol=1e-5)


@pytest.mark.parametrize("limits", LIMITS)
def test_every_limit_holds_in_the_end(limits: Clipping) -> None:
    _, after = clipped(params_with_grads(), limits)
    slack = 1 + 1e-5
    if limits.max_norm is not None:
        assert total(after) <= limits.max_norm * slack
    if limits.max_norm_per_parameter is not None:
        assert max(total([g]) for g in after) <= limits.max_norm_per_parameter * slack
    if limits.max_value is not None:
        assert max(g.abs().max().item() for g in after) <= limits.max_value * slack


def test_one_exploding_parameter_does_not_shrink_the_others() -> None:
    calm, wild = nn.Parameter(torch.zeros(4)), nn.Parameter(torch.zeros(4))
    calm.grad, wild.grad = torch.full((4,), 0.1), torch.full((4,), 1e6)
    clipped([calm, wild], Clipping(2.0, None, 1.0))
    assert torch.equal(calm.grad, torch.full((4,), 0.1))
    torch.testing.assert_close(wild.grad, torch.full((4,), 0.5))


def test_formats_may_mix() -> None:
    params = params_with_grads() + params_with_grads(torch.bfloat16)
    limits = Clipping(0.7, None, 0.5)
    before, after = clipped(params, limits)
    assert [g.dtype for g in after] == [g.dtype for g in before]
    for ours, expected in zip(after, reference(before, limits), strict=True):
        torch.testing.assert_close(ours.double(), expected, atol=1e-6, rtol=2e-2)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32, torch.float64])
def test_norms_have_the_digits_of_float32_whatever_the_format(dtype: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(0)
    params = [nn.Parameter(torch.zeros(n, 37, dtype=dtype)) for n in (5, 300, 41)]
    for param in params:
        param.grad = torch.randn(param.shape, generator=generator, dtype=torch.float64).to(dtype)
    grads = [param.grad for param in params if param.grad is not None]
    exact = torch.cat([grad.double().flatten() for grad in grads]).norm().item()
    norm = total_norm(grads)
    assert norm.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    assert norm.item() == pytest.approx(exact, rel=1e-5)
    clip_(params, Clipping(1.0, None, 0.75), norm)
    clipped = torch.cat([grad.double().flatten() for grad in grads]).norm().item()
    assert clipped == pytest.approx(1.0, rel=1e-3)
