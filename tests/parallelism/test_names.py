"""Names in states and groups are those of the plain module, whatever wraps its parts."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.distributed.algorithms._checkpoint.checkpoint_wrapper import checkpoint_wrapper

from launcher.contracts import canonical_name
from tests.parallelism.test_single import Toy, engine, optimizer_option, ragged, window


def wrapped() -> nn.Module:
    module = Toy()
    module.hidden = checkpoint_wrapper(module.hidden)  # type: ignore[assignment]
    compiled = torch.compile(module.norm, backend="eager")
    assert isinstance(compiled, nn.Module)
    module.norm = compiled  # type: ignore[assignment]
    return module


# Dynamo itself looks at gradients of tensors that have none.
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor:UserWarning")
@pytest.mark.parametrize("kind", ["adamw", "sgd"])
def test_wrappers_leave_no_trace_in_a_state(kind: str) -> None:
    states = []
    for module in (Toy(), wrapped()):
        live = engine(module, optimizer=optimizer_option(kind))
        ids, labels = ragged(1, 4)[0]
        live.forward_backward(window(ids, labels, 4))
        live.update(1e-2)
        states.append(live.state().keys())
    assert states[0] == states[1]


@pytest.mark.parametrize(
    ("name", "canonical"),
    [
        ("module.embed.weight", "embed.weight"),
        ("module._orig_mod.blocks.0._checkpoint_wrapped_module.w", "blocks.0.w"),
        ("blocks.0._orig_mod.module.w", "blocks.0.module.w"),
        ("my_orig_mod.w", "my_orig_mod.w"),
    ],
)
def test_names(name: str, canonical: str) -> None:
    assert canonical_name(name) == canonical
