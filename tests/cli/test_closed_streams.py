"""Commands whose standard streams were closed by the caller, as by `trainctl run >&-`."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from tests.conftest import ROOT


@pytest.mark.parametrize("closed", [[1], [0, 1, 2]])
def test_a_closed_stream_is_no_error(closed: list[int]) -> None:
    status = subprocess.run(
        [sys.executable, "-P", "-m", "launcher", "version"],
        check=False,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        preexec_fn=lambda: os.closerange(closed[0], closed[-1] + 1),
    ).returncode
    assert status == 0
