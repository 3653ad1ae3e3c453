import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from launcher.contracts import Horizon

GOLDEN = Path(__file__).parents[1] / "golden"
FORMULA = [
    case
    for case in json.loads((GOLDEN / "lr_golden.json").read_text())["cases"]
    if case["name"] == "tf_warmup_polynomial"
]
REAL = json.loads((GOLDEN / "tf_golden.json").read_text())["lr"]

Case = dict[str, Any]
Preset = Callable[..., Any]


def rates(kwargs: Case, peak: float, count: int, preset: Preset) -> list[float]:
    option = preset(
        "tf_polynomial",
        warmup_steps=kwargs["num_warmup_steps"],
        warmup_power=kwargs.get("warmup_power", 1.0),
        power=kwargs.get("power", 1.0),
        lr_end_ratio=kwargs.get("min_lr_ratio", 0.0),
    )
    schedule = option.build(peak, Horizon(kwargs["num_train_steps"], 16, 2048, 62.5))
    return [schedule.lr(step, {}) for step in range(count)]


@pytest.mark.parametrize("case", FORMULA, ids=lambda case: case["id"])
def test_warm_up_of_any_power_and_polynomial(case: Case, preset: Preset) -> None:
    got = rates(case["kwargs"], case["base_lr"], len(case["lrs"]), preset)
    assert got == pytest.approx(case["lrs"], rel=0, abs=1e-12)


@pytest.mark.parametrize("case", REAL, ids=str)
def test_tensorflow_itself_rounds_to_the_same_floats(case: Case, preset: Preset) -> None:
    got = rates(case["kwargs"], case["init_lr"], len(case["lrs_float32"]), preset)
    # TensorFlow computes in float32: a few of its roundings, relative to the peak, lie between.
    tolerance = 4 * float(np.finfo(np.float32).eps) * case["init_lr"]
    assert got == pytest.approx(case["lrs_float32"], rel=0, abs=tolerance)
