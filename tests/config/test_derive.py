from __future__ import annotations

import json
from typing import Any

import pytest

from launcher.config import derive
from launcher.config.schema import RunConfig


def config(stored: str, **values: Any) -> RunConfig:
    batch = {"kind": "samples", "micro_batch_size": 16, "samples_per_step": 16}
    return RunConfig.from_mapping({**json.loads(stored), "accumulation": batch, **values})


@pytest.mark.parametrize(
    ("max_steps", "max_epochs", "num_samples", "samples", "steps"),
    [
        (800, None, 100, None, 800),
        (None, 1.0, 160, 160, 10),
        (None, 1.0, 161, 161, 11),
        (None, 0.1, 30, 3, 1),  # 0.1 * 30 is a little more than 3
        (None, 0.1, 480, 48, 3),
        (5, 1.0, 160, 160, 5),
        (50, 2.0, 160, 320, 20),
        (None, 1e-9, 160, 1, 1),
        (None, 3.0, 10**15, 3 * 10**15, 187_500_000_000_000),
    ],
)
def test_the_run_ends_at_what_comes_first(
    stored: str,
    max_steps: int | None,
    max_epochs: float | None,
    num_samples: int,
    samples: int | None,
    steps: int,
) -> None:
    one = config(stored, max_steps=max_steps, max_epochs=max_epochs)
    assert derive.batch_plan(one).samples_per_step == 16
    assert derive.max_samples(one, num_samples) == samples
    assert derive.max_steps(one, num_samples) == steps


def test_the_horizon_speaks_every_unit(stored: str) -> None:
    horizon = derive.horizon(config(stored, max_steps=800), 1000)
    assert horizon.max_steps == 800
    assert horizon.samples_per_step == 16
    assert horizon.tokens_per_step == 16 * config(stored).task.seq_len
    assert horizon.steps_per_epoch == 62.5
