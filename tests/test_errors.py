"""An error that crosses a process boundary is the error that it was."""

from __future__ import annotations

import json

import pytest

from launcher.errors import (
    ConfigError,
    DataError,
    Hang,
    NonFinite,
    Problem,
    RankFailed,
    TrainctlError,
    record,
    revive,
)


@pytest.mark.parametrize(
    "error",
    [
        DataError("corpus.jsonl:7: must be a string"),
        NonFinite("the loss is nan", [3, 17]),
        Hang("rank 1 is missing", [1]),
        RankFailed("rank 1 was killed by SIGKILL", 137),
        ConfigError(
            [Problem("optimizer.lr", "must be positive", "command line"), Problem("", "x")]
        ),
    ],
    ids=lambda error: type(error).__name__,
)
def test_an_error_is_revived_with_its_attributes(error: TrainctlError) -> None:
    error.add_note("resume with: trainctl resume RUN")
    revived = revive(json.loads(json.dumps(record(error))))
    assert type(revived) is type(error)
    assert str(revived) == str(error)
    assert vars(revived) == vars(error)
    assert revived.exit_status == error.exit_status


def test_an_unknown_error_keeps_its_text_and_status() -> None:
    values = record(DataError("line 3")) | {"error": "TheirError", "exit_status": 41}
    revived = revive(values)
    assert isinstance(revived, RankFailed)
    assert str(revived) == "TheirError: line 3"
    assert revived.exit_status == 41
