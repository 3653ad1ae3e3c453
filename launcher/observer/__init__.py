"""Observers that a run has in addition to logging and checkpoints.

An observer sees a `StepReport` after every step, on every rank, and may end the run normally by
returning a `Stop`. What it must remember over a resume it returns from `memory()`; a checkpoint
holds it, and `RunContext.start.observers` gives it back. It reads a tensor of the report only when
it needs to: every read makes the host wait for the device.

To add a kind: `launcher/observer/<kind>.py` with one public `ObserverOption`, whose `observers`
makes the live observers, and `conf/observer/<kind>.yaml`. A package adds one by entry points
(CONTRIBUTING.md). Options of other groups may contribute observers, too.
"""
