"""Libraries that only some sources need."""

from __future__ import annotations

from importlib import import_module
from pathlib import Path
from typing import Any

from launcher.errors import DataError


def pyarrow(module: str, path: Path) -> Any:
    """Import a module of pyarrow; raise DataError if it is not installed."""
    try:
        return import_module(module)
    except ImportError:
        raise DataError(f"{path}: needs pyarrow to be read: pip install 'trainctl[data]'") from None
