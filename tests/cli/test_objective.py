from __future__ import annotations

import pytest

from launcher.cli.run import minimised
from launcher.config.load import load_config


@pytest.mark.parametrize(("mode", "sign"), [("min", 1), ("max", -1)])
def test_a_sweeper_minimises_the_objective(mode: str, sign: int) -> None:
    config = load_config(["objective=eval_perplexity", f"objective_mode={mode}"]).config
    assert minimised(config, {"eval_loss": 1.0, "eval_perplexity": 2.5}) == sign * 2.5
    assert minimised(config, {}) is None
    assert minimised(config, {"eval_perplexity": float("nan")}) is None
