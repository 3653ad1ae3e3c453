import json
from collections.abc import Callable, Mapping
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from launcher.contracts import Horizon

TABLES = json.loads((Path(__file__).parents[1] / "golden" / "lr_golden.json").read_text())
CASES = [
    case
    for case in TABLES["cases"]
    if case["source"] == "torch.optim.lr_scheduler" and "metrics" not in case
]

Case = dict[str, Any]
Values = dict[str, Any]
Preset = Callable[..., Any]


# torch's name → our preset, and the values that torch has as defaults.
SAME: dict[str, tuple[str, Values]] = {
    "CosineAnnealingLR": ("cosine_annealing", {}),
    "CosineAnnealingWarmRestarts": ("cosine_warm_restarts", {"T_mult": 1}),
    "CyclicLR": ("cyclic", {"min_lr_ratio": None}),
    "LinearLR": ("linear_ramp", {"start_factor": 1 / 3, "end_factor": 1.0, "total_iters": 5}),
    "PolynomialLR": ("polynomial", {"warmup_steps": 0, "lr_end": 0.0}),
    "StepLR": ("step", {}),
    "MultiStepLR": ("multistep", {}),
    "ExponentialLR": ("exponential", {"decay_steps": 1}),
    "OneCycleLR": ("one_cycle", {}),
}
RENAMED = {"eta_min": "min_lr", "base_lr": "min_lr"}
# The peak is the optimizer's rate, the length the run's.
ELSEWHERE = {"max_lr", "total_steps", "epochs", "steps_per_epoch"}


def ours(name: str, kwargs: Mapping[str, Any], preset: Preset) -> Any:
    """One of torch's schedulers in our words."""
    match name:
        case "ConstantLR":
            length = kwargs.get("total_iters", 5)
            held = preset("constant", factor=kwargs.get("factor", 1 / 3))
            stages = [(length, held)] if length else []
            return sequence([*stages, (None, preset("constant"))], preset)
        case "SequentialLR":
            lengths = [end - start for start, end in pairwise([0, *kwargs["milestones"]])]
            schedules = [ours(inner, kw, preset) for inner, kw in kwargs["schedulers"]]
            return sequence(list(zip([*lengths, None], schedules, strict=True)), preset)
        case "ChainedScheduler":
            parts = [ours(inner, kw, preset) for inner, kw in kwargs["schedulers"]]
            dumped = [part.model_dump(mode="json") for part in parts]
            return preset("chained", warmup_steps=0, parts=dumped)
    same, defaults = SAME[name]
    values = {RENAMED.get(key, key): kwargs[key] for key in kwargs if key not in ELSEWHERE}
    if name == "PolynomialLR":
        values.pop("total_iters", None)
    return preset(same, **(defaults | values))


def sequence(stages: list[tuple[int | None, Any]], preset: Preset) -> Any:
    dumped = [
        {"steps": steps, "schedule": schedule.model_dump(mode="json")} for steps, schedule in stages
    ]
    return preset("sequence", stages=dumped)


def run_length(case: Case) -> int:
    kwargs = case["kwargs"]
    if case["name"] == "PolynomialLR":
        return int(kwargs.get("total_iters", 5))
    if case["name"] == "OneCycleLR":
        return int(kwargs.get("total_steps") or kwargs["epochs"] * kwargs["steps_per_epoch"])
    return int(case["n_steps"]) + 1


@pytest.mark.parametrize("case", CASES, ids=lambda case: case["id"])
def test_every_rate_is_that_of_lr_scheduler(case: Case, preset: Preset) -> None:
    option = ours(case["name"], case["kwargs"], preset)
    steps = run_length(case)
    several = case["groups"] > 1
    for group in range(case["groups"]):
        peak = case["base_lr"][group] if several else case["base_lr"]
        wanted = case["lrs"][group] if several else case["lrs"]
        # Torch has one absolute floor for all groups: each is a run of its own here.
        schedule = option.build(peak, Horizon(steps, 16, 2048, 62.5))
        got = [schedule.lr(step, {}) for step in range(len(wanted))]
        if case["name"] == "OneCycleLR" and len(wanted) > steps:
            # Torch extrapolates one step past the end, below 0 with straight lines. The formula
            # does too, the schedule keeps its last rate.
            assert got[steps] == got[steps - 1]
            got[steps] = option.cycle(peak, steps).lr(steps, {})
        assert got == pytest.approx(wanted, rel=0, abs=1e-12)
