"""Compilation of the network by torch.compile.

A kind is a `CompileOption`: it compiles the blocks of a network (`launcher.blocks`) or all of it,
after the activations' option and before the engine. Names of parameters stay as they are.

To add one: `launcher/compile/<kind>.py` with one public subclass of `CompileOption`, and a preset
`conf/compile/<kind>.yaml` that gives every field a value.
"""
