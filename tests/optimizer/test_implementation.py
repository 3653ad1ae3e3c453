"""torch's fused kernels are chosen only where they compute what the for-loop computes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

from launcher.contracts import OptimizerOption, OptimizerTarget
from launcher.errors import ConfigError

Build = Callable[..., OptimizerOption]


class Strided(nn.Module):
    """A parameter that is a part of a larger tensor, and does not fill its memory."""

    def __init__(self, columns: int = 4) -> None:
        super().__init__()
        self.base = torch.ones(6, 8)
        self.weight = nn.Parameter(self.base[:, :columns])


@pytest.mark.parametrize("preset", ["sgd", "adam", "adamw", "adamw_bert", "adagrad", "muon"])
def test_a_parameter_with_gaps_is_updated_alone_and_right(build_option: Build, preset: str) -> None:
    changes: dict[str, Any] = {"matrices": ["weight"]} if preset == "muon" else {}
    if preset == "muon":
        changes = {"matrices": ["dense"]}
    ends = []
    for gaps in (True, False):
        module = Strided(4 if gaps else 8)
        if not gaps:
            module.weight = nn.Parameter(torch.ones(6, 4))
        module.dense = nn.Linear(3, 3, bias=False)
        nn.init.ones_(module.dense.weight)
        optimizer = build_option(preset, lr=0.1, **changes).build(OptimizerTarget(module, "cpu"))
        for step in range(3):
            for param in module.parameters():
                grad = torch.linspace(-1, 1, param.numel()).view(param.shape) + step
                param.grad = torch.empty_strided(param.shape, param.stride()).copy_(grad)
            optimizer.step()
        ends.append(module)
    torch.testing.assert_close(ends[0].weight.detach(), ends[1].weight.detach())
    assert torch.equal(ends[0].base[:, 4:], torch.ones(6, 4))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_sgd_updates_every_element_of_16_bit_parameters(
    build_option: Build, dtype: torch.dtype
) -> None:
    module = nn.Linear(64, 32, bias=False).to(dtype)
    optimizer = build_option("sgd", lr=1.0, nesterov=False).build(OptimizerTarget(module, "cpu"))
    before = module.weight.detach().clone()
    module.weight.grad = torch.ones_like(module.weight)
    optimizer.step()
    assert torch.equal(module.weight.detach(), before - 1)


def test_fused_is_refused_where_it_would_be_wrong(build_option: Build) -> None:
    with pytest.raises(ConfigError, match="parameters with gaps in memory; use auto"):
        build_option("adamw", implementation="fused").build(OptimizerTarget(Strided(), "cpu"))
    module = nn.Linear(4, 4).to(torch.bfloat16)
    with pytest.raises(ConfigError, match=r"parameters of torch\.bfloat16; use auto"):
        build_option("sgd", implementation="fused").build(OptimizerTarget(module, "cpu"))
