from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import yaml
from pydantic import ValidationError

from launcher.checkpoint.none import NoCheckpoints
from launcher.contracts import World

if TYPE_CHECKING:
    from tests.checkpoint.conftest import Bench

PRESET = yaml.safe_load(
    (Path(__file__).parents[2] / "conf" / "checkpoint" / "none.yaml").read_text("utf-8")
)


def test_it_leaves_no_trace(bench: Bench) -> None:
    option = NoCheckpoints.model_validate_json(json.dumps(PRESET))
    store = option.build(bench.run_dir, World(0, 1, 0, "cpu"))
    store.save(bench.snapshot(1))
    store.poll()
    store.wait()
    store.close()
    assert store.load(bench.snapshot(0).engine) is None
    assert not list(bench.run_dir.path.iterdir())


@pytest.mark.parametrize("cadence", ["every_steps", "every_minutes"])
def test_a_cadence_is_refused(cadence: str) -> None:
    with pytest.raises(ValidationError, match=cadence):
        NoCheckpoints.model_validate_json(json.dumps({**PRESET, cadence: 5}))
