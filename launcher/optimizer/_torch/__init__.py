"""Torch's optimizers, and optimizers written in torch operations."""
