"""Order of the samples, and their division into micro-batches: less padding, the same training.

A kind is a `BatchingOption`: a pure function of seed, epoch and the lengths of the samples. What is
in a micro-batch never changes the gradient of a window, because losses are summed over its targets;
what is in a window does.

To add one: `launcher/batching/<kind>.py` with one public subclass of `BatchingOption`, and a preset
`conf/batching/<kind>.yaml` that gives every field a value.
"""
