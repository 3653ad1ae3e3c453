"""Exponential moving average of the weights, for evaluations and exports.

A kind is an `EmaOption`: its `build` returns the average of the tensors that the optimizer updates,
which are shards under some engines. The engine updates, saves and exchanges it.

To add one: `launcher/ema/<kind>.py` with one public subclass of `EmaOption`, and a preset
`conf/ema/<kind>.yaml` that gives every field a value.
"""
