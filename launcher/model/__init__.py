"""Networks and their tokenizers; one module per kind.

A kind is a `ModelOption`: it has the limits of the network (`limits`), builds it for a task's head
(`build`), and makes its tokenizer (`build_tokenizer`). Nothing here knows how the network is
trained, sharded or cast; nothing is ever downloaded, unpickled, or run from a model's folder.

To add one: `launcher/model/<kind>.py` with one public subclass of `ModelOption`, and a preset
`conf/model/<kind>.yaml` that gives every field a value. A new size of a known kind is a YAML file
alone.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import nn

    from launcher.contracts import DType, Head, ModelOption

_log = logging.getLogger("trainctl.model")


def build_module(option: ModelOption, head: Head, seed: int) -> nn.Module:
    """Build a network on the CPU, draw the weights that no file has, and check it.

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
    option.check_module(module, head)
    return module


def cast_parameters(module: nn.Module, dtype: DType) -> None:
    """Cast all parameters in place; buffers keep their format.

    Parameters stay as they are, with a warning, if the format cannot hold some finite value.
    """
    import torch

    # Buffers stay: router biases and running means lose too much in 16 bits.
    wanted: torch.dtype = getattr(torch, dtype)
    for name, parameter in module.named_parameters():
        largest = parameter.detach().abs().nan_to_num(posinf=0).max() if parameter.numel() else 0
        if largest > torch.finfo(wanted).max:
            _log.warning("%s does not fit into %s: exported as trained", name, dtype)
            return
    for parameter in module.parameters():
        parameter.data = parameter.data.to(wanted)
