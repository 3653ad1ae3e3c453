"""Size of an optimizer's state, from one step on the meta device: shapes without memory."""

from __future__ import annotations

from collections import Counter

import torch
from torch import Tensor, nn

from launcher.contracts import OptimizerOption, OptimizerTarget
from launcher.optimizer._groups.param_groups import assign

# Elements of a stand-in parameter: state that has fewer bytes is not per element.
_PROXY = 1024


def state_bytes(option: OptimizerOption, module: nn.Module) -> dict[str, int]:
    """Return the bytes of an optimizer's state by its keys (`exp_avg`, …), largest first.

    The module is on the meta device, in the format that the optimizer sees.
    """
    target = OptimizerTarget(module, "meta")
    known = option.state_bytes({a.name: a.param for a in assign(target, option)})
    if known is not None:
        return dict(known)
    optimizer = option.build(target)
    try:
        return _after_a_step(optimizer)
    except (RuntimeError, NotImplementedError):
        # The step reads a number, which the meta device does not have. The state of such optimizers
        # (Prodigy) has the same size per element for every shape.
        trained = sum(p.numel() for g in optimizer.param_groups for p in g["params"])
        return _by_element(option, trained)


def _after_a_step(optimizer: torch.optim.Optimizer) -> dict[str, int]:
    for group in optimizer.param_groups:
        for param in group["params"]:
            param.grad = torch.zeros_like(param)
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    return _sizes(optimizer)


def _by_element(option: OptimizerOption, elements: int) -> dict[str, int]:
    # Without patterns, which would match no parameter of the stand-in.
    plain = option.groups.model_copy(
        update={
            "decay": (),
            "no_decay": (),
            "frozen": (),
            "layer_decay": None,
            "overrides": (),
        }
    )
    proxy = nn.Module()
    proxy.register_parameter("weight", nn.Parameter(torch.ones(_PROXY)))
    sizes = _after_a_step(
        option.model_copy(update={"groups": plain}).build(OptimizerTarget(proxy, "cpu"))
    )
    return {key: size * elements // _PROXY for key, size in sizes.items() if size >= _PROXY}


def _sizes(optimizer: torch.optim.Optimizer) -> dict[str, int]:
    sizes: Counter[str] = Counter()
    for state in optimizer.state.values():
        for key, value in state.items():
            if isinstance(value, Tensor):
                sizes[key] += value.numel() * value.element_size()
    return dict(sizes.most_common())
