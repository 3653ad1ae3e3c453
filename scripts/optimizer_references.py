"""References of the optimizers: the tables and packages that tests/optimizer compares with."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import numpy as np
import torch
from torch import Tensor

from launcher.contracts import OptimizerTarget
from tests.optimizer import (
    test_adafactor,
    test_ademamix,
    test_golden,
    test_lamb,
    test_libraries,
    test_matrices,
)
from tests.optimizer import test_stable_adamw as test_stable
from tests.optimizer.conftest import Problem, cases, option_of


@dataclass(frozen=True)
class Golden:
    """Golden trajectories with which a preset's tests compare.

    Attributes:
        trajectories: Name of the case, without its format, and the changes of the preset.
        dtypes: Formats that the table has.
        prepare: Function that is applied to the built optimizer.
    """

    trajectories: Sequence[tuple[str, dict[str, Any]]]
    dtypes: Sequence[str] = ("float64", "float32")
    prepare: Callable[[torch.optim.Optimizer], object] = field(default=lambda _: None)

    def distance(self, preset: str, dtype: str) -> float | None:
        """Return the maximum 2-norm of the difference after 50 steps; None without such a table."""
        if dtype not in self.dtypes:
            return None
        return max(self._distance_of(preset, f"{case}/{dtype}", c) for case, c in self.trajectories)

    def reference(self) -> str:
        """Return the libraries of these tables."""
        names = (cases()[f"{case}/{self.dtypes[0]}"]["lib"] for case, _ in self.trajectories)
        plain = (re.sub(r"\W*\(.*", "", name).replace("ers4", "ers 4") for name in names)
        return ", ".join(dict.fromkeys(plain))

    def _distance_of(self, preset: str, case_id: str, changes: dict[str, Any]) -> float:
        case = cases()[case_id]
        problem = Problem(case["dtype"], case["params"])
        groups = {"no_decay_types": []} | changes.get("groups", {})
        option = option_of(preset, **{**changes, "groups": groups})
        optimizer = option.build(OptimizerTarget(problem.module, "cpu"))
        self.prepare(optimizer)
        ends = problem.run(optimizer)["50"]
        apart = [ends[name] - np.asarray(values) for name, values in case["at"]["50"].items()]
        return float(np.linalg.norm(np.concatenate([part.reshape(-1) for part in apart])))


@dataclass(frozen=True)
class Live:
    """Some steps compared with the authors' package, or another, as in tests/optimizer.

    Attributes:
        package: The authors'.
        run_steps: Trains both, and returns the parameters of both.
        dtypes: Formats in which both can.
    """

    package: str
    run_steps: Callable[..., tuple[list[Tensor], list[Tensor]]]
    dtypes: Sequence[str] = ("float32",)

    def distance(self, _: str, dtype: str) -> float | None:
        """Return the 2-norm of the difference at the end; None for another format."""
        if dtype not in self.dtypes:
            return None
        chosen = {"dtype": getattr(torch, dtype)} if len(self.dtypes) > 1 else {}
        ours, theirs = self.run_steps(option_of, **chosen)
        apart = [(a - b).double().flatten() for a, b in zip(ours, theirs, strict=True)]
        return float(torch.linalg.vector_norm(torch.cat(apart)))

    def reference(self) -> str:
        """The package, as installed."""
        try:
            return f"{self.package} {version(self.package)}"
        except PackageNotFoundError:
            return self.package


def of_kind(preset: str) -> list[tuple[str, dict[str, Any]]]:
    """Return the cases of test_golden with a preset."""
    return [(case, c) for case, name, c in test_golden.CASES if name == preset]


def plain(*, corrected: bool) -> list[tuple[str, dict[str, Any]]]:
    """AdamW's cases with or without bias correction."""
    return [
        (case, c) for case, c in of_kind("adamw") if c.get("bias_correction", True) == corrected
    ]


def references() -> dict[str, Golden | Live]:
    """Return the reference of each preset that has one."""
    adafactor = [
        (f"hf_adafactor_{c}", test_adafactor.DEFAULTS | o) for c, o in test_adafactor.CASES
    ]
    stable = [(case, test_stable.OPTIONS | o) for case, o in test_stable.CASES]
    # Keras' `decay` is a schedule, which the tests of schedules walk.
    keras = [
        (f"tf_adamweightdecay_{case}", {"lr": 1e-2, "weight_decay": 0.0} | changes)
        for case, changes in test_golden.TENSORFLOW
        if case != "decay"
    ]
    muons = [(case, test_golden.MUON | changes) for case, changes in test_golden.MUONS]
    apollo, mini = (
        partial(test_matrices.apollo_and_its_authors, scaling=s) for s in ("channel", "tensor")
    )
    return {
        **{name: Golden(of_kind(name)) for _, name, _ in test_golden.CASES},
        "adamw": Golden(plain(corrected=True)),
        "adamw_bert": Golden(plain(corrected=False)),
        "adafactor": Golden(adafactor),
        "adafactor_t5": Golden(adafactor[:1]),
        "stable_adamw": Golden(stable),
        "lamb": Golden(
            [("timm_lamb", {"lr": 1e-2})],
            # timm's clips the global norm to 1 itself; here that is the engine's.
            prepare=lambda optimizer: optimizer.register_step_pre_hook(test_lamb.clip),
        ),
        "muon": Golden(muons, ("float32",)),
        "adam_weight_decay": Golden(keras, ("float64",)),
        **{
            name: Live("bitsandbytes", partial(test_libraries.low_bit_and_its_library, preset=name))
            for name in test_libraries.LOW_BIT
            if name != "adamw_4bit"
        },
        "adamw_4bit": Live(
            "torchao",
            partial(test_libraries.low_bit_and_its_library, preset="adamw_4bit", library="torchao"),
        ),
        "ademamix": Live(
            "bitsandbytes", test_ademamix.ademamix_and_bitsandbytes, ("float64", "float32")
        ),
        "galore": Live(
            "galore-torch", test_matrices.galore_and_its_authors, ("float64", "float32")
        ),
        "apollo": Live("apollo-torch", apollo),
        "apollo_mini": Live("apollo-torch", mini),
        "adam_mini": Live("adam-mini", test_matrices.adam_mini_and_its_authors),
    }
