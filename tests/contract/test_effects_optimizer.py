"""Every option of every optimizer changes what it computes."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from typing import Any

import pytest
import torch
from torch import nn

from launcher.contracts import OptimizerOption, OptimizerTarget, Option
from launcher.errors import ConfigError
from launcher.optimizer import param_groups
from launcher.optimizer._low_bit.options import LowBit
from tests.contract.witness import (
    CHECK,
    Hint,
    option_of,
    preset,
    presets,
    replaced,
    without_witness,
)

# 64 × 64 elements: where 8-bit state begins.
DIM = 64
STEPS = 6


class Network(nn.Module):
    """A table, blocks of matrices and vectors, a head."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(4, DIM)
        self.blocks = nn.ModuleList(
            nn.ModuleDict({"q_proj": nn.Linear(DIM, DIM), "norm": nn.LayerNorm(DIM)})
            for _ in range(2)
        )
        self.head = nn.Linear(DIM, 4, bias=False)


def run_steps(
    option: Option, dtype: torch.dtype = torch.float32
) -> tuple[list[torch.Tensor], torch.optim.Optimizer]:
    """Parameters after each of some updates with gradients of changing size."""
    assert isinstance(option, OptimizerOption)
    torch.manual_seed(0)
    module = Network().to(dtype)
    optimizer = option.build(OptimizerTarget(module, "cpu"))
    generator = torch.Generator().manual_seed(1)
    mean = {p: torch.randn(p.shape, generator=generator) for p in module.parameters()}
    seen = []
    for step in range(STEPS):
        size = (3.0, 1.0, 0.01, 2.0, 0.5, 1.0)[step]
        for param in module.parameters():
            if param.requires_grad:
                noise = torch.randn(param.shape, generator=generator)
                param.grad = (size * (mean[param] + noise)).to(dtype)
        for group in optimizer.param_groups:
            if option.lr is not None:
                group["lr"] = option.lr * group["lr_scale"]
        optimizer.step()
        seen += [param.detach().clone() for param in module.parameters()]
    return seen, optimizer


def trajectory(option: Option) -> Any:
    return run_steps(option)[0]


def state(option: Option) -> Any:
    """Shapes and types of the state, and the settings of the groups."""
    optimizer = run_steps(option)[1]
    shapes = [
        {key: (getattr(v, "dtype", None), getattr(v, "shape", None)) for key, v in values.items()}
        for values in optimizer.state.values()
    ]
    groups = [{k: v for k, v in g.items() if k != "params"} for g in optimizer.param_groups]
    return repr(shapes), repr(groups), getattr(optimizer, "_kernel_flags", None)


def rate(option: Option) -> Any:
    """The rates that schedules are given, and the optimizer's own."""
    assert isinstance(option, OptimizerOption)
    return option.peak_lr, option.own_lr(0)


def sixteen_bits(option: Option) -> Any:
    return run_steps(option, torch.bfloat16)[0]


def plan(option: Option) -> Any:
    """The class and arguments for a library that is not installed, and the size of the state."""
    assert isinstance(option, LowBit)
    module = Network()
    target = OptimizerTarget(module, "cpu")
    groups = [(len(group.pop("params")), group) for group in param_groups(target, option)]
    sizes = option.state_bytes(dict(module.named_parameters()))
    made = (option.classes, option.libraries, option.arguments(), option.unsupported_on("cpu"))
    return repr((made, sizes, option.lr, option.weight_decay, groups))


def check(option: Option) -> Any:
    """Return the problems of an option before a run starts on a CPU."""
    assert isinstance(option, OptimizerOption)
    option.preflight()
    option.build(OptimizerTarget(Network(), "cpu"))
    return option.unsupported_on("cpu")


OBSERVE = {
    "": trajectory,
    "state": state,
    "rate": rate,
    "sixteen_bits": sixteen_bits,
    CHECK: check,
}
# Settings that the user must give, or that are read from the model's config.
GIVEN: dict[str, dict[str, Any]] = {"adam_mini": {"head_dim": 16}}
OWN_RATE = {"lr": None, "relative_step": True}
HINTS = {
    "groups.no_decay_types": Hint(([], ["vector"]), where={"weight_decay": 0.5}),
    "groups.decay": Hint((["norm"],), where={"weight_decay": 0.5}),
    "groups.no_decay": Hint((["q_proj"],), where={"weight_decay": 0.5}),
    "groups.frozen": Hint((["embed"],)),
    "groups.overrides": Hint(([{"pattern": "norm", "weight_decay": 0.5}],)),
    "adafactor:groups.layer_decay": Hint(where={"lr": 1e-3}),
    "adafactor:relative_step": Hint(where={"lr": None, "relative_step": None}, observe="rate"),
    "adafactor:warmup_init": Hint(where=OWN_RATE),
    "adafactor:eps": Hint(where={"scale_parameter": True}),
    # Always 0, so that the names of its groups alone say which would decay.
    "adam_8bit:groups.no_decay_types": Hint(([],), observe="state"),
    "adam_8bit:groups.decay": Hint((["norm"],), observe="state"),
    "adam_8bit:groups.no_decay": Hint((["q_proj"],), observe="state"),
    "adam_8bit:groups.overrides": Hint(([{"pattern": "norm", "lr_scale": 0.5}],)),
    "adam_8bit:weight_decay": Hint((0.1,), observe=CHECK),
    "decouple": Hint(where={"weight_decay": 0.5}),
    "implementation": Hint(observe="state"),
    # What only a GPU, or a package that is not installed here, can do.
    "capturable": Hint(observe=CHECK),
    "paged": Hint(observe=CHECK),
    "library": Hint(observe=CHECK),
    "adam_8bit:block_size": Hint(observe=CHECK),
    "adamw_8bit:block_size": Hint(observe=CHECK),
    "keep_32bit": Hint((["q_proj"],)),
    "kahan": Hint(observe="sixteen_bits"),
    "kahan_sum": Hint(observe="sixteen_bits"),
    "max_lr": Hint((10.0,), where={"decouple_lr": True}),
    "query_key": Hint(([],)),
    "matrices": Hint((["embed"],)),
    "not_matrices": Hint(([r"blocks\.1\.q_proj"],)),
    "max_precondition_dim": Hint((8,)),
    # Larger ones would be merged into a vector of a large basis.
    "merge_dims": Hint(where={"max_precondition_dim": DIM * 4}),
    "precondition_frequency": Hint((1,)),
    # Its groups share one learning rate.
    "prodigy:groups.layer_decay": Hint((0.5,), observe=CHECK),
    "safeguard_warmup": Hint(where={"lr": 0.5, "d_coef": 100.0}),
    "growth_rate": Hint((1.0001,), where={"d_coef": 100.0}),
    "dampening": Hint(where={"nesterov": False}),
    "slice_p": Hint((2,), where={"d_coef": 100.0}),
}


# The plan of presets that cannot be built everywhere: on CUDA only, or with an extra.
PLANNED = {
    **{key: replace(hint, observe="") for key, hint in HINTS.items()},
    "library": Hint(("torchao",), where={"paged": False}),
}


@pytest.mark.parametrize("name", presets("optimizer"))
def test_every_leaf_changes_the_updates(name: str) -> None:
    values = replaced(preset("optimizer", name), GIVEN.get(name, {}))
    try:
        option = option_of("optimizer", values)
        option.preflight()
        run_steps(option)
    except ConfigError as error:
        if "needs the package" in str(error) or "on CUDA only" in str(error):
            make = partial(option_of, "optimizer")
            assert without_witness(make, values, {"": plan}, PLANNED) == []
            return
        raise
    assert without_witness(partial(option_of, "optimizer"), values, OBSERVE, HINTS) == []
