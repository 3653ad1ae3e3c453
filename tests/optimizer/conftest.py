"""Options from the packaged YAML, and the problem that every golden trajectory solves."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from torch import nn

from launcher.config import load
from launcher.contracts import OptimizerOption, OptimizerTarget

GOLDEN = Path(__file__).parent.parent / "golden"

SHAPES: dict[str, tuple[int, ...]] = {
    "dense.weight": (6, 4),
    "dense.bias": (4,),
    "scale": (),
    "conv.weight": (3, 2, 4),
}


@cache
def _packaged(preset: str) -> OptimizerOption:
    return load.load_config(
        [f"optimizer={preset}", "scheduler=constant", "max_grad_norm=null"]
    ).config.optimizer


def option_of(preset: str, **changes: Any) -> OptimizerOption:
    """A packaged option with changes."""
    packaged = _packaged(preset)
    values = packaged.model_dump(mode="json")
    groups = values["groups"] | changes.pop("groups", {})
    return type(packaged).model_validate_json(json.dumps(values | changes | {"groups": groups}))


@pytest.fixture
def build_option() -> Callable[..., OptimizerOption]:
    """`build_option("adamw", lr=1e-2, groups={"decay": []})`: a packaged option with changes."""
    return option_of


class Problem:
    """Fifty steps of noisy quadratics with one spike; see the script that made the golden tables.

    Args:
        dtype: Format of parameters and gradients.
        names: Which parameters take part.
    """

    def __init__(self, dtype: str, names: Sequence[str] = tuple(SHAPES)) -> None:
        # numpy has no bfloat16: there the gradient is computed in float32 and rounded.
        self._numpy = np.dtype("float32" if dtype == "bfloat16" else dtype)
        self.module = nn.Module()
        for name in names:
            value = (0.5 * _grid(name, 1.3, 0.2)).astype(self._numpy)
            self._put(name, nn.Parameter(torch.tensor(value).to(getattr(torch, dtype))))

    def _put(self, name: str, param: nn.Parameter) -> None:
        path, _, last = name.rpartition(".")
        if path and not hasattr(self.module, path):
            self.module.add_module(path, nn.Module())
        self.module.get_submodule(path).register_parameter(last, param)

    def set_gradients(self, step: int) -> None:
        """The gradients of one step at the present parameters."""
        for name, param in self.module.named_parameters():
            value = param.detach()
            at = value.float() if value.dtype == torch.bfloat16 else value
            grad = _gradient(name, at.numpy(), step)
            param.grad = torch.tensor(grad).to(param.dtype)

    def values(self) -> dict[str, npt.NDArray[np.float64]]:
        """The parameters, flat."""
        return {
            name: param.detach().double().numpy().reshape(-1).copy()
            for name, param in self.module.named_parameters()
        }

    def run(
        self,
        optimizer: torch.optim.Optimizer,
        schedule: Callable[[int], float] | None = None,
        steps: int = 50,
    ) -> dict[str, dict[str, npt.NDArray[np.float64]]]:
        """Solve it; the parameters after steps 1, 10 and 50."""
        marks = {}
        for step in range(steps):
            for group in optimizer.param_groups:
                if schedule is not None:
                    group["lr"] = schedule(step) * group["lr_scale"]
            self.set_gradients(step)
            optimizer.step()
            if step + 1 in {1, 10, 50}:
                marks[str(step + 1)] = self.values()
        return marks


def _grid(
    name: str, a: float, b: float, function: Callable[..., Any] = np.sin
) -> npt.NDArray[np.float64]:
    size = int(np.prod(SHAPES[name]))
    places = np.arange(size, dtype=np.float64) + 1.0 + 7.0 * list(SHAPES).index(name)
    return np.asarray(function(a * places + b).reshape(SHAPES[name]))


def _gradient(name: str, at: npt.NDArray[Any], step: int) -> npt.NDArray[Any]:
    """Curvature times distance plus noise, forty times as much at step 25, in the dtype of `at`."""
    dtype = at.dtype
    target = (0.3 * _grid(name, 0.9, 1.1)).astype(dtype)
    curvature = (0.6 + 0.4 * _grid(name, 2.1, 0.4)).astype(dtype)
    noise = (0.05 * _grid(name, 1.7, 0.37 * (step + 1), np.cos)).astype(dtype)
    grad = curvature * (at - target) + noise
    return np.asarray((grad * dtype.type(40.0) if step == 25 else grad).astype(dtype))


@pytest.fixture
def problem() -> type[Problem]:
    """The golden problem: `problem("float64")`."""
    return Problem


@cache
def cases() -> dict[str, Mapping[str, Any]]:
    """The golden trajectories, by id."""
    table = json.loads((GOLDEN / "optim_golden.json").read_text())
    return {case["id"]: case for case in table["cases"]}


@pytest.fixture
def assert_golden(
    build_option: Callable[..., OptimizerOption],
) -> Callable[..., torch.optim.Optimizer]:
    """`assert_golden("sgd/float64", "sgd", lr=0.05)` solves the problem and compares all marks."""

    def check(
        case_id: str, preset: str, *, schedule: Callable[[int], float] | None = None, **changes: Any
    ) -> torch.optim.Optimizer:
        case = cases()[case_id]
        option = build_option(preset, **changes)
        dtype = case["dtype"]
        solved = Problem(dtype, case["params"])
        optimizer = option.build(OptimizerTarget(solved.module, "cpu"))
        marks = solved.run(optimizer, schedule)
        tolerance = {"float64": 1e-12, "float32": 1e-6}.get(dtype, case["tol"])
        if case["tol"] > 2e-6:
            tolerance = case["tol"]
        for mark, params in case["at"].items():
            for name, expected in params.items():
                worst = np.abs(marks[mark][name] - np.asarray(expected)).max()
                assert worst <= tolerance, f"{name} after {mark} steps is off by {worst:.2e}"
        if "eval50" in case:
            optimizer.eval()  # type: ignore[attr-defined]
            for name, expected in case["eval50"].items():
                assert np.abs(solved.values()[name] - np.asarray(expected)).max() <= tolerance
        return optimizer

    return check
