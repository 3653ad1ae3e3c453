"""Engines: everything distributed, and everything about devices, lives here and nowhere else.

An option says which engine; `build` gives the `Engine` of `launcher.contracts`. An engine shards
and moves the module first and builds the optimizer afterwards, from the parameters that the module
then has. No other room may ask which engine runs. To add one: `launcher/parallelism/<kind>.py` with
a `ParallelismOption`, and `conf/parallelism/<kind>.yaml`; the contract tests then compare it with
`single`.
"""
