"""State of a rank from /proc."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from launcher.launch._processes import process_state, waits_for_disk

# posix_spawn suspends the thread uninterruptibly until the child, which waits for the pipe, runs.
_THREAD_WAITS = """
import os, sys, threading
action = (os.POSIX_SPAWN_OPEN, 0, sys.argv[1], os.O_RDONLY, 0)
spawn = lambda: os.posix_spawn("/bin/true", ["true"], {}, file_actions=[action])
threading.Thread(target=spawn).start()
"""


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_a_thread_that_waits_for_the_disk_is_seen(tmp_path: Path) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    assert not waits_for_disk(os.getpid())
    process = subprocess.Popen([sys.executable, "-c", _THREAD_WAITS, str(pipe)])
    deadline = time.monotonic() + 60
    # The main thread sleeps meanwhile.
    while not (waits_for_disk(process.pid) and (process_state(process.pid) or "?")[0] == "S"):
        assert time.monotonic() < deadline
        time.sleep(0.01)
    pipe.open("w").close()
    assert process.wait(60) == 0
    assert not waits_for_disk(process.pid)
