"""Observers that a run has in addition to logging and checkpoints.

An observer sees a `StepReport` after every step, on every rank, and may end the run normally by
returning a `Stop`. `memory()` returns the numbers that a resumed run needs; a checkpoint holds
them, and `RunContext.start.observers` has them again. It reads a tensor of the report only when it
needs to: every read makes the host wait for the device.

To add a kind: `launcher/observer/<kind>.py` with one public `ObserverOption`, whose `observers`
makes the live observers, and `conf/observer/<kind>.yaml`. A package adds one by entry points
(CONTRIBUTING.md). Options of other groups may contribute observers, too.
"""
