"""A small network of the same architecture, from the config.json of a large one."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

_LAYERS = 2
_HEAD_DIM = 16
# What architectures call their numbers of layers.
_LAYER_KEYS = (
    "num_hidden_layers",
    "n_layer",
    "num_layers",
    "num_decoder_layers",
    "encoder_layers",
    "decoder_layers",
)
# By the key of the model's width: the keys of the number of heads, of the width of the feed-forward
# layer, and of the width of a head.
_WIDTHS = {
    "hidden_size": ("num_attention_heads", "intermediate_size", "head_dim"),
    "n_embd": ("n_head", "n_inner", None),
    "d_model": ("num_heads", "d_ff", "d_kv"),
}
# A network with one of these keys has further sizes that must fit its widths: it gets fewer layers,
# and keeps its widths.
_LINKED = ("embedding_size", "qk_nope_head_dim", "mamba_d_state", "rope_scaling", "vision_config")


def shrunk_config(values: Mapping[str, Any]) -> dict[str, Any]:
    """Return the config of a network with two layers and small widths."""
    small = dict(values)
    for key in _LAYER_KEYS:
        if isinstance(layers := values.get(key), int) and layers > _LAYERS:
            small[key] = _LAYERS
            for name, value in values.items():
                # A list with one entry per layer, such as `layer_types`.
                if isinstance(value, list) and len(value) == layers:
                    small[name] = value[:_LAYERS]
    if not any(values.get(key) for key in _LINKED):
        _narrow(small)
    return small


def _narrow(values: dict[str, Any]) -> None:
    for width, (heads, inner, head_dim) in _WIDTHS.items():
        if not (isinstance(values.get(width), int) and isinstance(values.get(heads), int)):
            continue
        # Grouped-query attention stays grouped: its key and value heads are another code path.
        groups = 1
        kv_heads = values.get("num_key_value_heads")
        if isinstance(kv_heads, int) and kv_heads and values[heads] % kv_heads == 0:
            groups = min(values[heads] // kv_heads, 2)
            values["num_key_value_heads"] = min(kv_heads, 2)
        count = min(values[heads], 2 * groups)
        values[heads] = count
        values[width] = min(values[width], count * _HEAD_DIM)
        if isinstance(values.get(inner), int):
            values[inner] = min(values[inner], 4 * _HEAD_DIM)
        if head_dim is not None and isinstance(values.get(head_dim), int):
            values[head_dim] = min(values[head_dim], _HEAD_DIM)
