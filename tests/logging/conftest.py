import logging
from collections.abc import Iterator
from pathlib import Path

import pytest

from launcher.contracts import LogContext
from launcher.logging import _console
from launcher.run_dir import RunDir


@pytest.fixture
def context(tmp_path: Path) -> LogContext:
    summary = [("model", "llama, 246,240 parameters"), ("data", "stdlib, 1,234 samples")]
    return LogContext(RunDir(tmp_path), start_step=0, max_steps=100, summary=summary)


@pytest.fixture
def fresh_console() -> Iterator[None]:
    """A console made for the test's own standard output, and no handler left behind."""
    handlers = list(logging.getLogger().handlers)
    _console.console.cache_clear()
    yield
    _console.console.cache_clear()
    logging.getLogger().handlers[:] = handlers
