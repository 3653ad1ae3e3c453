"""What is learned from documents: samples, loss, scores; one module per kind.

A kind is a `TaskOption`: its `build` makes the live `Task`, which cuts documents into samples,
computes the summed loss of a micro-batch, turns held-out losses into scores, and exports the model.
It knows nothing of engines, devices or optimizers.

To add one: `launcher/task/<kind>.py` with one public subclass of `TaskOption`, and a preset
`conf/task/<kind>.yaml` that gives every field a value.
"""
