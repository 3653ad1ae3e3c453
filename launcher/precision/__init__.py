"""Number formats of parameters, computation and reductions, with loss scaling and rounding.

An engine uses a format through `contracts.Precision`. A format is independent of ranks, task and
model.

To add one: `launcher/precision/<kind>.py` with a PrecisionOption, whose `build` first refuses
devices that lack the format, and `conf/precision/<kind>.yaml`.
"""
