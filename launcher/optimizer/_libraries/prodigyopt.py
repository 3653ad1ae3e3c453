"""Prodigy whose whole state can be saved by name, and which does not print."""

from __future__ import annotations

import contextlib
import io
from typing import Any

from prodigyopt import Prodigy


class PortableProdigy(Prodigy):
    """Prodigyopt's Prodigy; its groups carry the distance estimate."""

    group_state = ("d", "d_max", "d_numerator", "k")
    """State of the groups between steps."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        # The library greets on stdout, where a table or JSON may be expected.
        with contextlib.redirect_stdout(io.StringIO()):
            super().__init__(*args, **kwargs)
