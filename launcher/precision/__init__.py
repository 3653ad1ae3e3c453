"""Which number formats parameters, computation and reductions use.

What lives here: the formats, what they ask of a device, and what makes them safe: loss scaling, and
the rounding of weights that are kept in sixteen bits. What may not: anything that depends on how
many ranks there are (parallelism), or on what is computed (task, model).

A format reaches the engine as a `contracts.Precision`; how an engine uses it is written there.

Adding a format: a module `launcher/precision/<kind>.py` with one PrecisionOption, whose `build`
refuses a device that cannot do it before anything else happens, and `conf/precision/<kind>.yaml`.
"""
