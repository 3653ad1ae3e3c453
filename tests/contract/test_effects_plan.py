"""Every leaf of scheduler and accumulation has an effect, as in `test_effects.py`."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any

import pytest

from launcher.accumulation.auto import Auto
from launcher.contracts import (
    AccumulationOption,
    Horizon,
    SchedulerOption,
)
from launcher.launch._memory import memory_of
from tests.contract.witness import (
    Hint,
    option_of,
    preset,
    presets,
    without_witness,
)


def rates(option: SchedulerOption) -> Any:
    """The learning rates of a run whose score gets better, then worse, twice."""
    lrs: list[float | None] = []
    for epoch in (30.0, 50.0):
        schedule = option.build(0.1, Horizon(100, 8, 1024, epoch))
        memory: Mapping[str, float] = {}
        for step in range(100):
            lrs.append(schedule.lr(step, memory))
            if step % 2:
                score = abs(step % 50 - 12) / 12 + 1 + 0.03 * (step % 3)
                scores = {"eval_loss": score, "eval_other": 3 - score}
                memory = schedule.observe(memory, scores, step + 1)
    return lrs


SCHEDULE_HINTS = {
    "warmup_power": Hint(where={".warmup_steps": 9}),
    "warmup_type": Hint(where={".warmup_steps": 9}),
    "metric": Hint(("eval_other",)),
    "min_lr_ratio": Hint((0.5,), where={".min_lr": None}),
    "min_lr": Hint((0.03,), where={".min_lr_ratio": None}),
    "reduce_on_plateau:min_lr": Hint((0.05,)),
    "chained:parts.1.min_lr": Hint((0.09,)),
    "greedy:min_lr": Hint((0.09,)),
    "lr_end": Hint((0.03,), where={".lr_end_ratio": None}),
    "lr_end_ratio": Hint((0.3,), where={".lr_end": None}),
    "patience": Hint((0, 2)),
    "cooldown": Hint((5,), where={".patience": 1}),
    "eps": Hint((1.0,), where={".patience": 1}),
    "factor": Hint((0.3,), where={".patience": 1}),
    "constant:factor": Hint((0.3,)),
    "sequence:stages.1.schedule.factor": Hint((0.3,)),
    "gamma": Hint((0.5,)),
    "cyclic:gamma": Hint((0.9,), where={"mode": "exp_range"}),
    "cyclic:mode": Hint(("triangular2",)),
    "num_cycles": Hint((1.5, 3)),
    "warmup_stable_decay:num_cycles": Hint((1.5,), where={"decay_type": "cosine"}),
    "stable_steps": Hint((20,)),
    "decay_start": Hint((50,)),
    "milestones": Hint((["30%"],)),
    "total_iters": Hint((5,)),
    "T_max": Hint((30,)),
    "timescale": Hint((50,)),
    "shift": Hint((100,)),
    "step_size_down": Hint((30,)),
    "warmup_lr_rate": Hint((0.5,)),
    "threshold": Hint((0.5,), where={".patience": 1}),
    "threshold_mode": Hint(where={".patience": 1, ".threshold": 0.1}),
    "greedy:max_lr": Hint((0.11,), where={"patience": 1}),
    "warmup_evaluations": Hint((5,), where={"patience": 1}),
    "window_size": Hint((3,), where={"smooth": True, "patience": 1}),
    "smooth": Hint(where={"patience": 1}),
    "reset_start": Hint((1,), where={"patience": 0, "min_lr": 0.09}),
    "stages.0.steps": Hint(("20%",)),
    "stages.1.steps": Hint(("20%",)),
    "stages.2.steps": Hint((3,)),
}


@pytest.mark.parametrize("name", presets("scheduler"))
def test_every_leaf_changes_the_learning_rate(name: str) -> None:
    values = preset("scheduler", name)
    make = partial(option_of, "scheduler")
    assert without_witness(make, values, {"": rates}, SCHEDULE_HINTS) == []


def batches(option: AccumulationOption) -> Any:
    """The batch equation for several ranks, and what a search for the micro-batch may take."""
    plans = [repr(option.plan(seq_len=16, ranks=ranks)) for ranks in (1, 2)]
    if not isinstance(option, Auto):
        return plans
    limit = None if option.memory_limit_gib is None else memory_of("cpu", option).limit
    return plans, option.candidates(seq_len=16, ranks=1), limit


ACCUMULATION_HINTS = {
    "auto:samples_per_step": Hint((16,)),
    "auto:tokens_per_step": Hint((512,), where={"samples_per_step": None, "tokens_per_step": 256}),
    "max_micro_batch_size": Hint((2,)),
    "memory_limit_gib": Hint((2.0,), where={"memory_limit_gib": 1.0}),
    "memory_margin": Hint((0.2,), where={"memory_limit_gib": 1.0}),
}


@pytest.mark.parametrize("name", presets("accumulation"))
def test_every_leaf_changes_the_batch(name: str) -> None:
    make = partial(option_of, "accumulation")
    values = preset("accumulation", name)
    assert without_witness(make, values, {"": batches}, ACCUMULATION_HINTS) == []
