"""Building a run and executing it.

`runner` is what every rank does: it builds the `parts` of the run from its config, restores the
newest checkpoint, and hands both to an `execution`. `loop` is the training loop; it knows no kind
of anything. `batches` cuts the data into windows, `evaluation` scores held-out samples, `metrics`
builds the rows that are logged, `saving` decides when the state is saved.
"""
