"""Networks and the tokenizers they go with; one module per kind.

A kind is a `ModelOption`: it says what the network can take (`limits`), builds it in float32 on the
CPU (`build`), and makes its tokenizer (`build_tokenizer`). Nothing here knows how the network is
trained, sharded or cast; nothing is ever downloaded, unpickled, or run from a model's folder.

To add one: `launcher/model/<kind>.py` with one public subclass of `ModelOption`, and a preset
`conf/model/<kind>.yaml` that gives every field a value. A new size of a known kind is a YAML file
alone.
"""
