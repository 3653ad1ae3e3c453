"""Adapters: small added weights are trained, and the network's own are frozen.

A kind is an `AdapterOption`: `adapt` changes the network in place before an engine takes it, and
`export` writes the adapter, the network with the adapter merged into it, or both. Checkpoints have
the trained tensors only.

To add one: `launcher/adapter/<kind>.py` with one public subclass of `AdapterOption`, and a preset
`conf/adapter/<kind>.yaml` that gives every field a value.
"""
