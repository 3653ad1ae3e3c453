"""AdEMAMix computes the updates of its authors' algorithm, as in bitsandbytes' torch version."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from launcher.contracts import OptimizerOption, OptimizerTarget
from tests.optimizer.conftest import Problem

Build = Callable[..., OptimizerOption]

OPTIONS: dict[str, Any] = {"lr": 1e-2, "betas": [0.9, 0.99, 0.999], "eps": 1e-8, "alpha": 5.0}
CASES: list[dict[str, Any]] = [
    {"t_alpha_beta3": None, "weight_decay": 0.0},
    {"t_alpha_beta3": 40, "weight_decay": 0.1},
    {"t_alpha_beta3": 40, "weight_decay": 0.1, "implementation": "foreach"},
]


def ademamix_and_bitsandbytes(
    build_option: Build, *, dtype: torch.dtype, changes: dict[str, Any] = CASES[1]
) -> tuple[list[Tensor], list[Tensor]]:
    """Parameters of the golden problem after fifty steps of ours and of bitsandbytes' reference."""
    pytest.importorskip("pytorch_optimizer")
    library = pytest.importorskip("bitsandbytes.optim.ademamix")
    option: Any = build_option("ademamix", **OPTIONS, **changes, groups={"no_decay_types": []})
    ours, theirs = (Problem(str(dtype).removeprefix("torch.")) for _ in range(2))
    values = {
        "lr": option.lr,
        "betas": option.betas,
        "alpha": option.alpha,
        "eps": option.eps,
        "weight_decay": option.weight_decay,
        "t_alpha": option.t_alpha_beta3,
        "t_beta3": option.t_alpha_beta3,
    }
    ours.run(option.build(OptimizerTarget(ours.module, "cpu")))
    # Each alone: within a group the reference lets every parameter shrink the next one's alpha.
    groups = [{"params": [param]} for param in theirs.module.parameters()]
    theirs.run(library._ReferenceAdEMAMix(groups, **values))
    ends = ([p.detach() for p in problem.module.parameters()] for problem in (ours, theirs))
    return next(ends), next(ends)


@pytest.mark.parametrize("changes", CASES)
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-12), (torch.float32, 1e-6)])
def test_trajectory_is_the_references(
    build_option: Build, changes: dict[str, Any], dtype: torch.dtype, tolerance: float
) -> None:
    ours, theirs = ademamix_and_bitsandbytes(build_option, dtype=dtype, changes=changes)
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a, b, rtol=0.0, atol=tolerance)


def test_the_mixture_is_full_after_its_last_step(build_option: Build) -> None:
    """Settings that grow over one step equal constant ones."""
    pytest.importorskip("pytorch_optimizer")
    ends = []
    for steps in (None, 1):
        problem = Problem("float64")
        problem.run(
            build_option("ademamix", **OPTIONS, t_alpha_beta3=steps).build(
                OptimizerTarget(problem.module, "cpu")
            )
        )
        ends.append(problem.values())
    assert all((ends[0][name] == ends[1][name]).all() for name in ends[0])


def test_it_takes_the_runs_length_by_default(build_option: Build) -> None:
    from launcher.config import load

    option: Any = load.load_config(["optimizer=ademamix", "max_steps=70"]).config.optimizer
    assert option.t_alpha_beta3 == 70
