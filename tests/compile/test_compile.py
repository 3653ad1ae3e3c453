"""Compilation of the network."""

from __future__ import annotations

from tests.contract.witness import option_of, preset
from tests.networks import small_llama


def test_off_compiles_nothing() -> None:
    network = small_llama()
    option = option_of("compile", preset("compile", "off"))
    option.apply(network)  # type: ignore[attr-defined] # of the group's class
    assert all(module._compiled_call_impl is None for module in network.modules())
