"""Rewrites the resolved config of every recipe in tests/golden/configs: `python scripts/regold.py`.

Run it after a reviewed change of conf/ or recipes/, and read the diff: a refactor leaves it empty.
"""

from __future__ import annotations

from pathlib import Path

from launcher.config.door import checked
from launcher.config.paths import RECIPES

GOLDEN = Path(__file__).resolve().parents[1] / "tests" / "golden" / "configs"
NEEDED = {"text_finetune": ["model.path=MODEL", "data.files=TEXT"]}
"""What a recipe leaves to the user."""


def resolved() -> dict[str, str]:
    """The config of the default job and of every recipe, as config.json holds it."""
    recipes = {path.stem: [f"recipe={path.stem}"] for path in sorted(RECIPES.glob("*.yaml"))}
    words = {"default": [], **recipes}
    return {
        name: checked([*w, *NEEDED.get(name, [])]).config.to_json() for name, w in words.items()
    }


def main() -> None:
    """Write them all, and remove those whose recipe is gone."""
    GOLDEN.mkdir(exist_ok=True)
    configs = resolved()
    for path in GOLDEN.glob("*.json"):
        if path.stem not in configs:
            path.unlink()
    for name, text in configs.items():
        (GOLDEN / f"{name}.json").write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
