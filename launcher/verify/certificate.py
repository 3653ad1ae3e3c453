"""The certificate of a config: SAMENESS.json, where it is, and what has changed since."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from launcher.config.schema import RunConfig

CERTIFICATE = "SAMENESS.json"
"""Name of the file."""


def folder_of(config: RunConfig) -> Path:
    """Return the folder where the certificate of a config is written and looked for."""
    return (Path(config.run_root).expanduser() / "sameness" / config.name).absolute()
