"""Every leaf of the options that change the network has an effect."""

from __future__ import annotations

from functools import partial
from typing import Any

import pytest
import torch

from tests.contract.witness import Hint, option_of, preset, presets, without_witness
from tests.levers import Operations, counting_saved_bytes
from tests.networks import small_llama

IDS = torch.arange(64).view(2, 32)


def computed(option: Any) -> Any:
    """The operations of a step, what is kept for its backward pass, and where."""
    torch.manual_seed(0)
    network = small_llama(num_hidden_layers=4)
    option.apply(network)
    with Operations() as operations:
        with counting_saved_bytes() as saved:
            loss = network(input_ids=IDS, labels=IDS, use_cache=False).loss
        loss.backward()
    hosts = [getattr(layer, "host", None) for layer in network.model.layers]
    moved = [None if host is None else vars(host)["pin_memory"] for host in hosts]
    return operations.counts, sum(saved.values()), moved


ACTIVATION_HINTS = {
    "save": Hint((["aten.mm"], ["attention"])),
    "min_bytes": Hint((0, 10**9)),
    "blocks": Hint((["layers.1"],)),
}


@pytest.mark.parametrize("name", sorted({*presets("activation")} - {"none"}))
def test_every_leaf_changes_what_is_kept(name: str) -> None:
    make = partial(option_of, "activation")
    found = without_witness(make, preset("activation", name), {"": computed}, ACTIVATION_HINTS)
    assert found == []
