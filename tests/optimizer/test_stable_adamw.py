"""StableAdamW computes the updates of torch-optimi, and compensates rounding."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from pydantic import ValidationError
from torch import nn

from launcher.contracts import OptimizerOption, OptimizerTarget
from launcher.optimizer._blockwise import per_tensor
from launcher.optimizer._blockwise.stable_adamw import StableAdamWOptimizer

OPTIONS: dict[str, Any] = {"lr": 1e-2, "betas": (0.9, 0.99), "eps": 1e-6, "weight_decay": 1e-2}
DECOUPLED: dict[str, Any] = {"lr": 1e-3, "decouple_lr": True, "weight_decay": 1e-4, "max_lr": 1e-2}
CASES: list[tuple[str, dict[str, Any]]] = [
    ("stableadamw", {}),
    ("stableadamw_b999_wd", {"betas": (0.9, 0.999), "weight_decay": 0.1, "eps": 1e-8}),
    ("stableadamw_decouple", DECOUPLED),
    ("stableadamw_nokahan", {"kahan": False}),
]


@pytest.fixture(params=["gathered", "cut", "fused"])
def pieces(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Common buckets; every tensor alone in blocks of few elements; torch's kernel for each."""
    if request.param == "cut":
        monkeypatch.setattr(per_tensor, "group_by_shape", lambda params, **_: [[p] for p in params])
        monkeypatch.setattr(per_tensor, "block_elements", lambda _: 5)
    if request.param == "fused":
        defaults = StableAdamWOptimizer.__init__.__kwdefaults__ or {}
        monkeypatch.setitem(defaults, "small_elements", 0)
    return str(request.param)


@pytest.mark.usefixtures("pieces")
@pytest.mark.parametrize("dtype", ["float64", "float32"])
@pytest.mark.parametrize(("case", "changes"), CASES)
def test_golden(
    assert_golden: Callable[..., Any], case: str, changes: dict[str, Any], dtype: str
) -> None:
    options = {**OPTIONS, **changes, "groups": {"no_decay_types": []}}
    assert_golden(f"{case}/{dtype}", "stable_adamw", **options)


@pytest.mark.usefixtures("pieces")
@pytest.mark.parametrize("case", ["stableadamw", "stableadamw_nokahan"])
def test_golden_in_bfloat16(assert_golden: Callable[..., Any], case: str) -> None:
    changes = dict(CASES)[case]
    options = {**OPTIONS, **changes, "groups": {"no_decay_types": []}}
    assert_golden(f"{case}/bfloat16", "stable_adamw", **options)


@pytest.mark.parametrize("elements", [16, 1 << 16])
@pytest.mark.parametrize("kahan", [True, False])
def test_small_updates_of_bfloat16_weights_add_up(elements: int, *, kahan: bool) -> None:
    """A thousand steps of 1e-4 move a weight of 1 by 0.1, though one is below its rounding."""
    options = {"eps": 1e-12, "weight_decay": 0.0, "decouple_lr": False, "max_lr": None}
    param = nn.Parameter(torch.ones(elements, dtype=torch.bfloat16))
    optimizer = StableAdamWOptimizer([param], **{**OPTIONS, **options, "lr": 1e-4}, kahan=kahan)
    param.grad = torch.ones_like(param)
    for _ in range(1000):
        optimizer.step()
    assert param.float().mean().item() == pytest.approx(0.9 if kahan else 1.0, abs=4e-3)
    assert ("kahan" in optimizer.state[param]) == kahan


def test_gradients_are_left_as_they_are(build_option: Callable[..., OptimizerOption]) -> None:
    module = nn.Sequential(nn.Linear(8, 8), nn.Linear(300, 300))
    optimizer = build_option("stable_adamw").build(OptimizerTarget(module, "cpu"))
    grads = []
    for param in module.parameters():
        param.grad = torch.randn_like(param)
        grads.append(param.grad.clone())
    optimizer.step()
    for param, grad in zip(module.parameters(), grads, strict=True):
        assert param.grad is not None
        assert torch.equal(param.grad, grad)


def test_a_group_decays_by_its_own_peak(build_option: Callable[..., OptimizerOption]) -> None:
    """With decouple_lr, a group of half the learning rate decays as the others do."""
    module = nn.Linear(4, 4)
    groups = {"no_decay_types": [], "overrides": [{"pattern": "bias", "lr_scale": 0.5}]}
    option = build_option(
        "stable_adamw", decouple_lr=True, weight_decay=1e-3, lr=1e-2, groups=groups
    )
    optimizer = option.build(OptimizerTarget(module, "cpu"))
    before = [param.detach().clone() for param in module.parameters()]
    for param in module.parameters():
        param.grad = torch.zeros_like(param)
    for group in optimizer.param_groups:
        group["lr"] = 0.25 * 1e-2 * group["lr_scale"]
    optimizer.step()
    for param, old in zip(module.parameters(), before, strict=True):
        torch.testing.assert_close(param.detach(), old * (1 - 0.25e-3), rtol=1e-6, atol=0)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"max_lr": 1.0}, "max_lr is for decouple_lr only"),
        ({"max_lr": 1e-4, "decouple_lr": True}, r"max_lr 0\.0001 is below lr"),
        ({"eps": 0.0}, "greater than 0"),
    ],
)
def test_contradictions_are_config_errors(
    build_option: Callable[..., OptimizerOption], changes: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValidationError, match=message):
        build_option("stable_adamw", **changes)


def test_a_group_that_comes_later_has_its_own_peak() -> None:
    first, later = nn.Parameter(torch.ones(2)), nn.Parameter(torch.ones(2))
    optimizer = StableAdamWOptimizer(
        [first], **{**OPTIONS, "decouple_lr": True, "max_lr": None, "kahan": False}
    )
    optimizer.add_param_group({"params": [later], "lr": 0.5})
    later.grad = torch.ones(2)
    optimizer.step()
    assert optimizer.param_groups[1]["max_lr"] == 0.5
