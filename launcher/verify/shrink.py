"""A config that verifies in seconds: a small model and batch, short samples, few records."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

from launcher.config import derive, rules
from launcher.config.schema import RunConfig
from launcher.errors import LaunchError

SEQ_LEN = 32
"""Longest sample, in tokens."""
SAMPLES = 16
"""Largest global batch, if the cells do not need a larger one to divide it evenly."""
MAX_RECORDS = 64
"""Most records of each part of the data."""


def shrunk(config: RunConfig, steps: int, folder: Path) -> RunConfig:
    """Return a config with the same optimizer, schedule, precision and kind of model and data."""
    seq_len = min(config.task.seq_len, SEQ_LEN)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        model = config.model.shrunk(folder, seq_len)
    except OSError as error:
        raise LaunchError(f"cannot write to {folder}: {error.strerror}") from error
    task = config.task.model_copy(update={"seq_len": seq_len})
    small = config.model_copy(update={"model": model, "task": task})
    # The schedule spans four times the compared steps. With the original length they would all lie
    # in the warm-up, where the learning rate is so low that a wrong update is hard to see.
    short = small.model_copy(update={"max_steps": 4 * steps})
    # A warm-up given as a number of steps may be longer than that.
    return small if rules.broken(short) else short


def samples_per_step(config: RunConfig, ranks: Sequence[int], accumulations: Sequence[int]) -> int:
    """Return a global batch near the config's that every number of ranks and cut divides."""
    unit = math.lcm(*(size * cut for size in ranks for cut in accumulations))
    wanted = min(derive.batch_plan(config).samples_per_step, SAMPLES)
    return max(1, wanted // unit) * unit
