"""Building a run and executing it.

`loop` is the training loop and knows no kind of anything; `state` is what is true between two
steps; `runner` puts a run together from its config, in order, and is the only module here that
knows the config. The others are its parts: `batches` cuts the data into windows, `evaluation`
scores held-out data, `observers` watch the steps.
"""
