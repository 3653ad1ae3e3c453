"""Prodigy whose whole state can be saved by name, and which does not print."""

from __future__ import annotations

import contextlib
import io
from typing import Any

from prodigyopt import Prodigy


class PortableProdigy(Prodigy):
    # The distance estimate is one for all parameters, and kept in the groups.
    group_state = ("d", "d_max", "d_numerator", "k")

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        # The library prints on construction, where stdout may be a table or JSON.
        with contextlib.redirect_stdout(io.StringIO()):
            super().__init__(*args, **kwargs)
