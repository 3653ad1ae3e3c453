"""How the learning rate moves over the run: pure functions of the step.

Lengths are resolved once, in `build`.
"""
