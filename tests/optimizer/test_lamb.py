"""LAMB computes the same updates as timm."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from launcher.contracts import OptimizerOption, OptimizerTarget
from launcher.optimizer._blockwise import per_tensor

GOLDEN = Path(__file__).parent.parent / "golden" / "optim_golden.json"


@pytest.mark.parametrize("blocks", ["gathered", "cut"])
@pytest.mark.parametrize(("dtype", "tolerance"), [("float64", 1e-12), ("float32", 1e-6)])
def test_golden(
    build_option: Callable[..., OptimizerOption],
    problem: type[Any],
    monkeypatch: pytest.MonkeyPatch,
    dtype: str,
    tolerance: float,
    blocks: str,
) -> None:
    if blocks == "cut":
        monkeypatch.setattr(per_tensor, "group_by_shape", lambda params, **_: [[p] for p in params])
        monkeypatch.setattr(per_tensor, "block_elements", lambda _: 5)
    [case] = [c for c in json.loads(GOLDEN.read_text())["cases"] if c["id"] == f"timm_lamb/{dtype}"]
    solved = problem(dtype)
    option = build_option("lamb", lr=1e-2, groups={"no_decay_types": []})
    optimizer = option.build(OptimizerTarget(solved.module, "cpu"))
    # timm's clips the global norm to 1 itself; here that is the engine's.
    optimizer.register_step_pre_hook(clip)
    for mark, params in solved.run(optimizer).items():
        for name, values in params.items():
            assert abs(values - case["at"][mark][name]).max() <= tolerance


def clip(optimizer: torch.optim.Optimizer, *_: Any) -> None:
    """Divide all gradients by their common norm, where it is above 1."""
    grads = [param.grad for group in optimizer.param_groups for param in group["params"]]
    norm = torch.nn.utils.get_total_norm(grads).clamp(min=1.0)
    for grad in grads:
        grad.div_(norm)


def step(
    build_option: Callable[..., OptimizerOption], weight: float, grad: float, **changes: Any
) -> float:
    """Return the change by one step at learning rate 0.1 of a tensor of equal weights."""
    module = nn.Module()
    module.register_parameter("weight", nn.Parameter(torch.full((4, 4), weight)))
    optimizer = build_option("lamb", lr=0.1, eps=1e-12, **changes).build(
        OptimizerTarget(module, "cpu")
    )
    [param] = module.parameters()
    param.grad = torch.full_like(param, grad)
    optimizer.step()
    return weight - param.mean().item()


@pytest.mark.parametrize(
    ("weight", "grad", "changes", "expected"),
    [
        # The first corrected update is ±1 everywhere; its norm becomes that of the weights.
        (0.5, 3.0, {"weight_decay": 1e-9}, 0.05),
        (5.0, 3.0, {"weight_decay": 1e-9}, 0.5),
        (5.0, 3.0, {"weight_decay": 1e-9, "trust_clip": True}, 0.1),
        (5.0, 3.0, {"weight_decay": 0.0}, 0.1),
        (5.0, 3.0, {"weight_decay": 0.0, "always_adapt": True}, 0.5),
        (0.0, 3.0, {"weight_decay": 0.0, "always_adapt": True}, 0.1),
        (2.0, 0.0, {"weight_decay": 0.0, "always_adapt": True}, 0.0),
        # Uncorrected: 0.1 / √0.001, or without averaging 1 / √0.001.
        (5.0, 3.0, {"weight_decay": 0.0, "bias_correction": False}, 0.1 * 0.1 / 0.001**0.5),
        (5.0, 3.0, {"weight_decay": 0.0, "grad_averaging": False}, 0.1 * 10),
    ],
)
def test_options(
    build_option: Callable[..., OptimizerOption],
    weight: float,
    grad: float,
    changes: dict[str, Any],
    expected: float,
) -> None:
    assert step(build_option, weight, grad, **changes) == pytest.approx(expected, rel=1e-5)
