from __future__ import annotations

from signal import Signals

import pytest

from launcher.launch._signals import STOPPING
from launcher.training.requests import RankRequests, stop_signal


@pytest.mark.parametrize("number", STOPPING)
def test_the_signal_that_ends_a_run_is_the_one_that_came(number: Signals) -> None:
    assert stop_signal(RankRequests(lambda: number, None)()) is number
