"""Networks and the tokenizers they go with; one module per kind.

A kind is a `ModelOption`: it says what the network can take (`limits`), builds it for a task's head
(`build`), and makes its tokenizer (`build_tokenizer`). Nothing here knows how the network is
trained, sharded or cast; nothing is ever downloaded, unpickled, or run from a model's folder.

To add one: `launcher/model/<kind>.py` with one public subclass of `ModelOption`, and a preset
`conf/model/<kind>.yaml` that gives every field a value. A new size of a known kind is a YAML file
alone.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import nn

    from launcher.contracts import Head, ModelOption


def build_module(option: ModelOption, head: Head, seed: int) -> nn.Module:
    """Build a network on the CPU and draw the weights that no file gives.

    Args:
        option: The network.
        head: Its output layer.
        seed: Seed of the weights: each is drawn from (seed, name).

    Raises:
        DataError: The files do not hold such a network.
    """
    from launcher.model._initial_weights import initialize_weights

    module = option.build(head, "cpu")
    initialize_weights(module, seed)
    return module
