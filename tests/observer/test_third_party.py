from __future__ import annotations

import json

import pytest

from tests.conftest import Console

TWO_RANKS = ("parallelism=ddp", "launch.processes=2")


@pytest.mark.parametrize("words", [(), TWO_RANKS], ids=["single", "ddp"])
def test_an_added_observer_stops_every_rank_after_the_same_step(
    trainctl: Console, words: tuple[str, ...]
) -> None:
    out, _ = trainctl.toy("observer=toy", *words)
    assert "stopped after step 5: the toy says so" in out
    run_dir = trainctl.run_dir()
    for rank in range(2 if words else 1):
        seen = (run_dir / f"seen-{rank}.txt").read_text().splitlines()
        assert seen == ["1", "2", "3", "4", "5", "closed after 5"]
    assert json.loads((run_dir / "result.json").read_text())["stopped"] == "the toy says so"
    assert [row["step"] for row in trainctl.rows(run_dir)] == [1, 2, 3, 4, 5]
    # Its memory comes back with the state.
    trainctl("resume", str(run_dir), "observer.stop_after=7")
    seen = (run_dir / "seen-0.txt").read_text().splitlines()
    assert seen[6:] == ["6", "7", "closed after 7"]


def test_an_observer_is_closed_after_an_error(trainctl: Console) -> None:
    trainctl.toy("observer=toy", "task.poison=0", "observer.stop_after=12", status=10)
    *_, last = (trainctl.run_dir() / "seen-0.txt").read_text().splitlines()
    assert last.startswith("closed after")


def test_a_setting_that_nothing_read_is_named(trainctl: Console) -> None:
    _, err = trainctl.toy("observer=toy", "observer.unread=1")
    key, origin = "observer.unread", "command line: observer.unread=1"
    warning = f"trainctl: warning: {key} had no effect in this run ({origin})\n"
    assert err.count(warning) == 1
    result = json.loads((trainctl.run_dir() / "result.json").read_text())
    assert result["without_effect"] == {key: origin}
