"""Build a run and execute it.

On every rank, `runner` builds the `parts` of the run from its config, restores the newest
checkpoint, and passes both to an `execution`. `loop` is the training loop. `batches` divides the
data into windows, `evaluation` scores held-out samples, `metrics` builds the rows to log, `saving`
decides when the state is saved.
"""
