"""Observers that a run has in addition to logging and checkpoints.

An observer sees a `StepReport` after every step, on every rank, and may end the run normally by
returning a `Stop`. Options of other groups may contribute observers, too.

To add a kind: `launcher/observer/<kind>.py` with one public `ObserverOption`, and
`conf/observer/<kind>.yaml`.
"""
