import pytest

from launcher.contracts import Row
from launcher.logging import _lines


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0, "0:00"), (42.4, "0:42"), (61, "1:01"), (3723, "1:02:03"), (183_845, "2 d 3:04:05")],
)
def test_clock(seconds: float, text: str) -> None:
    assert _lines.clock(seconds) == text


def test_eta_follows_the_last_rows_only() -> None:
    pace = _lines.Pace(0, 1000)
    assert pace.eta({"step": 10, "elapsed_s": 100.0}) == _lines.clock(9900)
    texts = [pace.eta({"step": step, "elapsed_s": 100.0 + step}) for step in range(11, 40)]
    assert texts[-1] == _lines.clock(1000 - 39)


def test_eta_of_a_resumed_run_counts_its_own_steps() -> None:
    pace = _lines.Pace(500, 1000)
    assert pace.eta({"step": 510, "elapsed_s": 10.0}) == _lines.clock(490)


@pytest.mark.parametrize(
    "row", [{"step": 0, "elapsed_s": 1.0}, {"step": 3}, {"step": 3, "loss": 1}]
)
def test_eta_says_nothing_when_it_cannot_know(row: Row) -> None:
    assert _lines.Pace(0, 10).eta(row) == ""


def test_a_training_line() -> None:
    row = {"step": 7, "loss": 2.34561, "lr": 3e-3, "grad_norm": 0.9512, "tokens_per_s": 41234.4}
    assert _lines.joined(_lines.training(row)) == (
        "loss 2.3456  lr 3.00e-03  grad_norm 0.951  41,234 tok/s"
    )
    assert _lines.position(row, 800) == "step   7/800"


def test_a_number_that_there_is_not_is_said_so() -> None:
    line = _lines.joined(_lines.training({"step": 1, "loss": None, "lr": None, "skipped": 2}))
    assert line == "loss n/a  lr n/a  grad_norm n/a  n/a tok/s  skipped 2"


def test_scores_are_what_the_task_called_them() -> None:
    row = {"step": 1, "loss": 1.0, "eval_loss": 2.5, "eval_bits_per_byte": 3.60674}
    assert _lines.joined(_lines.scores(row)) == "eval_loss 2.5000  eval_bits_per_byte 3.6067"
