"""docs/optimizers.md has every preset, and counts state right where the answer is known."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from launcher.contracts import OptimizerOption
from scripts.optimizers_table import COMMAND, PRESETS, TABLE, bytes_per_parameter

SMALL = {"layers": 1, "dim": 64, "vocab": 512}


def test_every_preset_has_a_row() -> None:
    rows = [line for line in TABLE.read_text("utf-8").splitlines() if line.startswith("| ")]
    named = {row.split("|")[1].strip() for row in rows} - {"preset"}
    assert named == set(PRESETS), f"run `{COMMAND}`"


@pytest.mark.parametrize(
    ("preset", "changes", "dtype", "expected"),
    [
        ("adamw", {}, torch.float32, 8.0),
        ("adamw", {}, torch.bfloat16, 4.0),
        ("sgd", {}, torch.float32, 4.0),
        ("sgd", {"momentum": 0.0, "nesterov": False}, torch.float32, 0.0),
    ],
)
def test_state_is_counted_whole(
    build_option: Callable[..., OptimizerOption],
    preset: str,
    changes: dict[str, Any],
    dtype: torch.dtype,
    expected: float,
) -> None:
    counted = bytes_per_parameter(build_option(preset, **changes), dtype, **SMALL)
    # Next to the moments there is a step count of four bytes per tensor.
    assert counted == pytest.approx(expected, abs=1e-3)
