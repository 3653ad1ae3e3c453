"""The engine of one process."""

from __future__ import annotations

from launcher.parallelism._torch_engine import TorchEngine


class SingleEngine(TorchEngine):
    """Forward, backward and update on one device: what every other engine must reproduce."""
