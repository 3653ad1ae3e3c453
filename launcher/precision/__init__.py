"""Number formats of parameters, computation and reductions.

This package holds the formats, their device requirements, loss scaling, and the rounding of weights
in sixteen bits. It is independent of ranks (parallelism) and of task and model.

An engine uses a format through `contracts.Precision`, which documents how.

To add a format: a module `launcher/precision/<kind>.py` with one PrecisionOption, whose `build`
refuses a device that cannot do it before anything else happens, and `conf/precision/<kind>.yaml`.
"""
