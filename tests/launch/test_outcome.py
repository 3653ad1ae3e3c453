"""The result that the launcher reads from what rank 0 recorded."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest

from launcher.contracts import TrainState
from launcher.launch._begin import print_result
from launcher.launch._outcome import completed, outcome, write_result
from launcher.launch._record import record_completed
from launcher.run_dir import RunDir
from launcher.training.runner import Outcome


def test_a_score_that_is_not_finite_is_printed_as_nan(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run_dir = RunDir(tmp_path)
    scores = {"eval_loss": 1541.0, "eval_perplexity": math.inf}
    assert record_completed(run_dir, 0, Outcome(TrainState(step=8), scores, {}, None)) == 0
    result = outcome(run_dir, [])
    print_result(result, run_dir, can_resume=True)
    printed = capsys.readouterr().out
    assert "held out: eval_loss 1541, eval_perplexity nan\n" in printed
    assert printed.endswith(f"train longer with: trainctl resume {tmp_path} max_steps=16\n")
    print_result(result, run_dir, can_resume=False)
    assert "train longer" not in capsys.readouterr().out
    write_result(run_dir, result, 1.0)
    assert json.loads(run_dir.result.read_text())["scores"]["eval_perplexity"] is None
    again = completed(run_dir)
    assert again is not None
    assert math.isnan(again.scores["eval_perplexity"])
