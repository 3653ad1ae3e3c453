"""`trainctl verify` as a user runs it."""

from __future__ import annotations

import json
from typing import Any

from launcher.errors import NotTheSame
from tests.conftest import Console, toy_words

DIFFERENT = NotTheSame.exit_status


def verified(trainctl: Console, *words: str, status: int = 0) -> tuple[dict[str, Any], str, str]:
    out, err = trainctl("verify", *toy_words("--json=found.json", *words), status=status)
    return json.loads((trainctl.folder / "found.json").read_text()), out, err


def cells(found: dict[str, Any], **wanted: object) -> list[dict[str, Any]]:
    return [
        cell for cell in found["cells"] if all(cell[key] == value for key, value in wanted.items())
    ]


def test_ddp_is_equal_and_what_cannot_be_is_refused(trainctl: Console) -> None:
    found, out, _ = verified(
        trainctl, "--engines=ddp,single", "--ranks=2", "--accumulation=1,2,3", "--steps=5"
    )
    assert found["ok"]
    [reference], [floor] = cells(found, role="reference"), cells(found, role="floor")
    assert (reference["engine"], reference["accumulation"]) == ("single", 1)
    assert (floor["accumulation"], floor["status"]) == (2, "equal")
    assert len(found["reference"]["losses"]) == 5
    assert [cell["accumulation"] for cell in cells(found, status="equal", engine="ddp")] == [1, 2]
    for cell in cells(found, status="equal", engine="ddp"):
        assert 0 < cell["deviation"]["weights"] < 1e-5
    [uneven] = cells(found, engine="ddp", accumulation=3)
    assert uneven["reason"] == "a global batch of 4 is no multiple of 2 data ranks × accumulation 3"
    assert all("one process" in cell["reason"] for cell in cells(found, engine="single", ranks=2))
    assert {cell["status"] for cell in cells(found, engine="single", ranks=2)} == {"refused"}
    assert all(cell["engine"] in out for cell in found["cells"])
    assert not list((trainctl.folder / "runs").rglob("work-*"))
    out, _ = trainctl.toy("parallelism=ddp", "launch.processes=2")
    assert "sameness   certified: ddp on 2 ranks trains as one process does (5 steps, 20" in out


def test_an_engine_that_differs_is_named_with_step_and_status(trainctl: Console) -> None:
    found, out, err = verified(
        trainctl,
        *("--engines=toy_averaged,ddp", "--accumulation=1", "--shrink", "--dtype=float64"),
        *("--html=found.html", "-o", "certificate"),
        status=DIFFERENT,
    )
    assert found["number_format"] == "float64"
    page = (trainctl.folder / "found.html").read_text()
    assert "toy_averaged, 2 ranks, accumulation 1" in page
    assert "<a " not in page
    assert json.loads((trainctl.folder / "certificate" / "SAMENESS.json").read_text()) == found
    assert not found["ok"]
    [wrong] = cells(found, engine="toy_averaged")
    assert (wrong["status"], wrong["difference"]["step"]) == ("different", 1)
    assert wrong["difference"]["quantity"] in {"loss", "norm"}
    [right] = cells(found, engine="ddp")
    assert right["status"] == "equal"
    assert "toy_averaged" in out
    assert "1 of 4 cells do not train as the reference does" in err
    assert "toy_averaged, 2 ranks, accumulation 1: different: step 1: " in err


def test_a_crash_is_a_cell_and_the_others_are_still_compared(trainctl: Console) -> None:
    found, _, err = verified(
        trainctl, "--engines=toy_crash,ddp", "--accumulation=1,2", "--steps=2", status=DIFFERENT
    )
    crashed = cells(found, engine="toy_crash")
    assert [cell["status"] for cell in crashed] == ["crashed", "crashed"]
    assert all("ZeroDivisionError: a toy crash" in cell["reason"] for cell in crashed)
    assert [cell["status"] for cell in cells(found, engine="ddp")] == ["equal", "equal"]
    assert "toy_crash, 2 ranks, accumulation 2: crashed: " in err


def test_mistakes(trainctl: Console) -> None:
    _, err = trainctl("verify", *toy_words("--engines=dpd"), status=2)
    assert "did you mean 'ddp'" in err
    _, err = trainctl("verify", *toy_words("--ranks=2,two"), status=2)
    assert "--ranks needs whole numbers" in err
    _, err = trainctl(
        "verify", *toy_words("--engines=single", "--accumulation=1"), status=DIFFERENT
    )
    assert "no cell was compared" in err
