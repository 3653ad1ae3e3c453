"""Rewrites the golden files of tests/golden: `python scripts/regold.py`.

The resolved config of every recipe is composed again: run it after a reviewed change of conf/ or
recipes/, and read the diff. The tables of reference values come from other libraries in fixed
versions (`meta` in each table); they are written again as they are, one case per line, so that a
case that is added or corrected by hand shows as one line of the diff.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from launcher.config.load import load_config
from launcher.config.paths import RECIPES

GOLDEN = Path(__file__).resolve().parents[1] / "tests" / "golden"
CONFIGS = GOLDEN / "configs"
LOCAL = ["model.path=MODEL", "data.files=TEXT"]
NEEDED = {"text_finetune": LOCAL, "lora_finetune": LOCAL}
"""Settings that a recipe leaves to the user."""


def resolved() -> dict[str, str]:
    """The config of the default job and of every recipe, as config.json holds it."""
    recipes = {path.stem: [f"recipe={path.stem}"] for path in sorted(RECIPES.glob("*.yaml"))}
    words = {"default": [], **recipes}
    return {
        name: load_config([*w, *NEEDED.get(name, [])]).config.to_json() for name, w in words.items()
    }


def one_case_per_line(table: dict[str, Any]) -> str:
    """Return a table as JSON: a line for each element of its lists, and for each other value."""
    entries = []
    for name, value in table.items():
        if isinstance(value, list):
            lines = ",\n".join(json.dumps(case) for case in value)
            entries.append(f"{json.dumps(name)}: [\n{lines}\n]")
        else:
            entries.append(f"{json.dumps(name)}: {json.dumps(value)}")
    return "{\n" + ",\n".join(entries) + "\n}\n"


def main() -> None:
    """Write them all, and remove the configs whose recipe is gone."""
    CONFIGS.mkdir(exist_ok=True)
    configs = resolved()
    for path in CONFIGS.glob("*.json"):
        if path.stem not in configs:
            path.unlink()
    for name, text in configs.items():
        (CONFIGS / f"{name}.json").write_text(text, encoding="utf-8")
    for path in GOLDEN.glob("*.json"):
        table = json.loads(path.read_text(encoding="utf-8"))
        path.write_text(one_case_per_line(table), encoding="utf-8")


if __name__ == "__main__":
    main()
