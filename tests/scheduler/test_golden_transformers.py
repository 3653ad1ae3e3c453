import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from launcher.contracts import Horizon, Schedule
from launcher.scheduler._curves import Curve, Ramp
from launcher.scheduler.greedy import Greedy, GreedyClimb
from launcher.scheduler.reduce_on_plateau import Plateau, ReduceOnPlateau
from launcher.scheduler.warmup_stable_decay import WarmupStableDecay

TABLES = json.loads((Path(__file__).parents[1] / "golden" / "lr_golden.json").read_text())
CASES = [case for case in TABLES["cases"] if case["source"] == "transformers.get_scheduler"]
WATCHING = ("reduce_lr_on_plateau", "ReduceLROnPlateau", "greedy")

Case = dict[str, Any]
Preset = Callable[..., Any]


def option_of(case: Case, preset: Preset) -> Any:
    """The case in our words."""
    name, kwargs = case["name"], case["kwargs"]
    special = dict(kwargs["scheduler_specific_kwargs"] or {})
    match name:
        case "cosine_with_min_lr" | "cosine_warmup_with_min_lr":
            special["min_lr_ratio"] = special.pop("min_lr_rate", None)
        case "warmup_stable_decay":
            special |= {
                "decay_steps": special.pop("num_decay_steps"),
                "stable_steps": special.pop("num_stable_steps", None),
                "decay_type": special.get("decay_type", "cosine"),
            }
        case "cosine_with_restarts":
            special = {"num_cycles": 1} | special
    warmup = kwargs.get("num_warmup_steps") or 0
    return preset(name, **{"warmup_steps": warmup, **special})


def schedule_of(case: Case, option: Any) -> Schedule:
    """The schedule; the formula alone where the reference takes lengths that do not fit the run."""
    peak, warmup = peaks(case)[0], option.warmup_steps
    steps = case["kwargs"]["num_training_steps"] or case["n_steps"] + 1
    horizon = Horizon(steps, 16, 2048, 62.5)
    if warmup <= steps and "negative" not in case.get("note", ""):
        built: Schedule = option.build(peak, horizon)
        return built
    with pytest.raises(ValueError, match=f"{warmup}.*{steps}"):
        option.build(peak, horizon)
    if isinstance(option, WarmupStableDecay):
        decay = int(option.decay_steps)
        after = option.level_then_down(peak, steps - warmup - decay, decay)
        return Ramp(Curve(peak, option.ramp(peak, warmup)), warmup, after)
    joined: Schedule = option.joined(peak, warmup, horizon)
    return joined


def peaks(case: Case) -> list[float]:
    base = case["base_lr"]
    return base if isinstance(base, list) else [base]


def rates(case: Case) -> list[list[float]]:
    return case["lrs"] if case["groups"] > 1 else [case["lrs"]]


@pytest.mark.parametrize(
    "case", [c for c in CASES if c["name"] not in WATCHING], ids=lambda case: case["id"]
)
def test_every_rate_is_that_of_get_scheduler(case: Case, preset: Preset) -> None:
    schedule = schedule_of(case, option_of(case, preset))
    for peak, wanted in zip(peaks(case), rates(case), strict=True):
        # Groups share one factor: the engine multiplies by the group's rate over the peak.
        scale = peak / peaks(case)[0]
        got = [(schedule.lr(step, {}) or 0) * scale for step in range(len(wanted))]
        assert got == pytest.approx(wanted, rel=0, abs=1e-12)


@pytest.mark.parametrize(
    "case", [c for c in TABLES["cases"] if c["name"] in WATCHING], ids=lambda case: case["id"]
)
def test_every_rate_after_every_score_is_the_references(case: Case, preset: Preset) -> None:
    name = "greedy" if case["name"] == "greedy" else "reduce_on_plateau"
    kwargs = dict(case["kwargs"]["scheduler_specific_kwargs"])
    floors = kwargs.pop("min_lr", 1e-3 if name == "greedy" else 0.0)
    if "warmup" in kwargs:
        kwargs["warmup_evaluations"] = kwargs.pop("warmup")
    for group, (peak, wanted) in enumerate(zip(peaks(case), rates(case), strict=True)):
        floor = floors[group] if isinstance(floors, list) else floors
        option = preset(name, metric="score", min_lr=floor, **kwargs)
        schedule = watching(option, peak)
        memory: dict[str, float] = {}
        got = [schedule.lr(0, memory)]
        for step, score in enumerate(case["metrics"], start=1):
            memory = json.loads(json.dumps(schedule.observe(memory, {"score": score}, step)))
            got.append(schedule.lr(step, memory))
        assert got == pytest.approx(wanted, rel=0, abs=1e-12)


def watching(option: ReduceOnPlateau | Greedy, peak: float) -> Schedule:
    """The schedule; without the check that refuses GreedyLR's own floor above the peak."""
    if option.min_lr <= peak:
        return option.build(peak, Horizon(100, 16, 2048, 62.5))
    with pytest.raises(ValueError, match="min_lr must not be above"):
        option.build(peak, Horizon(100, 16, 2048, 62.5))
    return GreedyClimb(peak, option) if isinstance(option, Greedy) else Plateau(peak, option)


REFUSED: dict[str, tuple[str, dict[str, Any]]] = {
    "SchedulerType.LINEAR requires `num_warmup_steps`": ("linear", {"warmup_steps": None}),
    "SchedulerType.CONSTANT_WITH": ("constant_with_warmup", {"warmup_steps": None}),
    "SchedulerType.INVERSE_SQRT": ("inverse_sqrt", {"warmup_steps": None}),
    "Only one of min_lr": ("cosine_with_min_lr", {"min_lr": 1e-4, "min_lr_ratio": 0.1}),
    "lr_end (1e-07)": ("polynomial", {"lr_end": 1e-3}),
    "get_wsd_schedule() missing": ("warmup_stable_decay", {"decay_steps": None}),
    "Unknown decay type: exp": ("warmup_stable_decay", {"decay_type": "exp"}),
}
DEFINED: dict[str, tuple[str, dict[str, Any], float]] = {
    # A warm-up as long as the run: the end value follows.
    "division by zero": ("polynomial", {"warmup_steps": 10}, 1e-7),
    # No floor given is a floor of 0.
    "One of min_lr": ("cosine_with_min_lr", {"min_lr_ratio": None}, 0.0),
    # One step too many: the last rate stays.
    "Tried to step 21 times": ("one_cycle", {}, 1e-3 / 25 / 1e4),
}
# A run always has a length here, and the config refuses unknown kinds.
UNKNOWN_HERE = ("num_training_steps", "nope")


@pytest.mark.parametrize("message", REFUSED)
def test_what_the_reference_refuses_is_refused(message: str, preset: Preset) -> None:
    name, changes = REFUSED[message]
    with pytest.raises(ValueError, match=r"decay_type|warmup_steps|min_lr|lr_end|decay_steps"):
        preset(name, **changes).build(1e-3, Horizon(10, 16, 2048, 62.5))


@pytest.mark.parametrize("message", DEFINED)
def test_what_breaks_the_reference_is_defined(message: str, preset: Preset) -> None:
    name, changes, wanted = DEFINED[message]
    schedule = preset(name, **changes).build(1e-3, Horizon(10, 16, 2048, 62.5))
    assert schedule.lr(10, {}) == pytest.approx(wanted, rel=0, abs=1e-12)


def test_every_error_of_the_reference_is_accounted_for() -> None:
    known = (*REFUSED, *DEFINED, *UNKNOWN_HERE)
    messages = [error["message"] for error in TABLES["errors"]]
    assert [message for message in messages if not any(k in message for k in known)] == []
