"""Data sources: records, and which of them are held out; one module per kind.

A kind is a `DataOption`: its `build` reads records (mappings of columns, by index) and splits them
in the same way on every rank and machine, independent of tokens and batches. Errors have the file,
the line and the byte.

To add one: `launcher/data/<kind>.py` with one public subclass of `DataOption`, and a preset
`conf/data/<kind>.yaml` that gives every field a value.
"""
