"""Golden files: configs are what they were when last reviewed, and diffs can be read."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from scripts.regold import CONFIGS, GOLDEN, one_case_per_line, resolved


def test_every_recipe_resolves_to_its_golden_config() -> None:
    golden = {path.stem: path.read_text("utf-8") for path in CONFIGS.glob("*.json")}
    assert resolved() == golden, "run scripts/regold.py and review the diff"


@pytest.mark.parametrize("path", sorted(GOLDEN.glob("*.json")), ids=lambda path: path.stem)
def test_tables_have_one_case_per_line(path: Path) -> None:
    text = path.read_text("utf-8")
    assert text == one_case_per_line(json.loads(text)), "run scripts/regold.py"
