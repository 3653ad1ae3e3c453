"""A column that the task reads and the data lacks is found before anything starts."""

from __future__ import annotations

from pathlib import Path

import pytest

from launcher.config.columns import check_first_records
from launcher.config.load import load_config
from launcher.errors import DataError


@pytest.mark.parametrize(
    ("column", "message"),
    [
        ("text", r"d.jsonl: no column text, there are sentence, n; name .* task.columns.text=NAME"),
        ("sentense", r"no column sentense, .*; did you mean 'sentence'\? task.columns.text=NAME"),
        ("n", r"d.jsonl: the column n must be text, but is 5 \(number\)"),
    ],
)
def test_a_missing_column_is_found_from_the_first_record(
    tmp_path: Path, column: str, message: str
) -> None:
    path = tmp_path / "d.jsonl"
    path.write_text('{"sentence": "a", "n": 5}\nnot JSON, which only the run reads\n')
    words = ["data=jsonl", f"data.files={path}", f"task.columns.text={column}"]
    with pytest.raises(DataError, match=message):
        check_first_records(load_config(words).config)


def test_a_right_column_passes(tmp_path: Path) -> None:
    path = tmp_path / "d.csv"
    path.write_text("sentence,n\nx,1\n")
    words = ["data=csv", f"data.files={path}", "task.columns.text=sentence"]
    check_first_records(load_config(words).config)
