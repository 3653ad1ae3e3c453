"""Activations between forward and backward pass: kept, recomputed, or moved to the host's memory.

A kind is an `ActivationOption`: it changes the blocks of a network (`launcher.blocks`) before they
are compiled and the engine takes them. Names of parameters, losses and gradients stay as they are.

To add one: `launcher/activation/<kind>.py` with one public subclass of `ActivationOption`, and a
preset `conf/activation/<kind>.yaml` that gives every field a value.
"""
