"""Optimizers with 8-bit and 4-bit state."""
