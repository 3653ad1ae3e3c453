"""The resolved config of every recipe is what it was when it was last reviewed."""

from scripts.regold import GOLDEN, resolved


def test_every_recipe_resolves_to_its_golden_config() -> None:
    golden = {path.stem: path.read_text("utf-8") for path in GOLDEN.glob("*.json")}
    assert resolved() == golden, "run scripts/regold.py and review the diff"
