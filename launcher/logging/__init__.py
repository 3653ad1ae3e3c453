"""Sinks of metrics: files that survive a kill, and the console.

A sink takes one row per logged step (`contracts.Row`). `training.metrics` decides when a step is
logged and builds its row; nothing here reads a tensor.

Rules that every sink keeps: a row is in the file, for a process that is killed the next moment,
when `write` returns; a resumed run leaves no row of a step that it has not done; a missing
number is left out or `null`, never NaN.

Adding a sink for everyone: a module here, a field in `standard.py`. Adding another set of sinks: a
module `launcher/logging/<kind>.py` with one LoggingOption, and `conf/logging/<kind>.yaml`.
"""
