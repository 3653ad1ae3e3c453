"""Optimizers of other packages, with state that can be saved by name."""
