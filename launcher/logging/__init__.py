"""Sinks of metrics: files and the console.

A sink writes one row per logged step (`contracts.Row`). `training.metrics` decides which steps are
logged and builds their rows.

Rules for every sink: when `write` returns, the row survives a kill of the process; a resumed run
leaves no row of a step that it has not done; a missing number is left out or `null`, never NaN.

To add a sink for everyone: a module here and a field in `standard.py`. To add another set of sinks:
`launcher/logging/<kind>.py` with a LoggingOption, and `conf/logging/<kind>.yaml`.
"""
