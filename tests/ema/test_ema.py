"""Moving average of the weights."""

from __future__ import annotations

from typing import cast

from launcher.contracts import EmaOption
from tests.contract.witness import option_of, preset


def test_off_keeps_no_average() -> None:
    option = cast("EmaOption", option_of("ema", preset("ema", "off")))
    assert option.build({}) is None
