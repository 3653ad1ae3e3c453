"""Names of parameters do not show what the module is wrapped into."""

from __future__ import annotations

import pytest

from launcher.contracts import canonical_name


@pytest.mark.parametrize(
    "name",
    [
        "module.layers.0.weight",
        "_orig_mod.layers.0.weight",
        "module._orig_mod.layers.0.weight",
        "_orig_mod.module.layers.0.weight",
        "layers._orig_mod.0._checkpoint_wrapped_module.weight",
        "_fsdp_wrapped_module.layers.0._fsdp_wrapped_module._orig_mod.weight",
        "module.module.layers.0.weight",
    ],
)
def test_wrappers_are_removed(name: str) -> None:
    assert canonical_name(name) == "layers.0.weight"


@pytest.mark.parametrize("name", ["layers.module.0.weight", "my_orig_mod.weight", "modules.weight"])
def test_other_names_stay(name: str) -> None:
    assert canonical_name(name) == name
