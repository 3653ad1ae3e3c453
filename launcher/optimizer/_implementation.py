"""How optimizers made of torch's operations walk: one kernel, lists, or tensor by tensor."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from typing_extensions import override

from launcher.contracts import OptimizerOption
from launcher.errors import ConfigError, Problem

if TYPE_CHECKING:
    import torch

_log = logging.getLogger("trainctl.optimizer")

# What torch's optimizers accept; torch has no public name for either list.
_FUSED = frozenset({"cpu", "cuda", "mps", "xpu", "hpu", "mtia"})
_FOREACH = frozenset({"cuda", "xpu", "mtia"})


class InTorch(OptimizerOption):
    """An optimizer of torch's that has a fused kernel on some devices."""

    fused_on: ClassVar[frozenset[str]] = _FUSED
    """Kinds of device for which torch has the kernel."""
    fuses_sharded: ClassVar[bool] = True
    """Whether the kernel takes sharded (DTensor) parameters."""

    implementation: Literal["auto", "fused", "foreach", "loop"]
    """`auto` takes what the device has, fused first, and says so in the log."""

    @override
    def unsupported_on(self, device_type: str) -> Mapping[str, str]:
        found = super().unsupported_on(device_type)
        if self.implementation != "fused" or device_type in self.fused_on:
            return found
        return {**found, "implementation": f"{device_type} has no fused {self.kind}; use auto"}

    def walk(self, groups: Sequence[dict[str, Any]], device_type: str) -> dict[str, bool]:
        """The `fused` and `foreach` arguments; see `choose`."""
        return choose(
            self.implementation,
            groups,
            device_type,
            kind=self.kind,
            fused=self.fused_on,
            fuses_sharded=self.fuses_sharded,
        )


class Unfused(OptimizerOption):
    """An optimizer without a fused kernel: it walks over lists, or tensor by tensor."""

    implementation: Literal["auto", "foreach", "loop"]
    """`auto` takes foreach where it pays, and says so in the log."""

    def in_lists(self, groups: Sequence[dict[str, Any]], device_type: str) -> bool:
        """The `foreach` argument; see `choose`."""
        walk = choose(self.implementation, groups, device_type, kind=self.kind, fused=frozenset())
        return walk["foreach"]


def choose(
    asked: Literal["auto", "fused", "foreach", "loop"],
    groups: Sequence[dict[str, Any]],
    device_type: str,
    *,
    kind: str,
    fused: frozenset[str] = _FUSED,
    fuses_sharded: bool = True,
) -> dict[str, bool]:
    """The `fused` and `foreach` arguments of a torch optimizer; says which was chosen, and why.

    Args:
        asked: What the config says; `auto` takes the first of fused, foreach, loop that the device
            has.
        groups: The parameter groups that the optimizer will take.
        device_type: Where the parameters are.
        kind: The optimizer's kind, for messages.
        fused: Kinds of devices for which torch has a fused kernel of this optimizer.
        fuses_sharded: Whether torch's fused kernel of this optimizer takes sharded (DTensor)
            parameters.

    Raises:
        ConfigError: `fused` is asked for where it does not exist.
    """
    hindrance = _not_fusible(groups, device_type, fused, fuses_sharded=fuses_sharded)
    if asked == "fused" and hindrance:
        message = f"fused {kind} does not work with {hindrance}; use auto"
        raise ConfigError([Problem("optimizer.implementation", message)])
    if asked != "auto":
        chosen, reason = asked, "as configured"
    elif not hindrance:
        chosen, reason = "fused", f"one kernel per group on {device_type}"
    elif device_type in _FOREACH:
        chosen, reason = "foreach", f"fused does not work with {hindrance}"
    else:
        chosen, reason = (
            "loop",
            f"fused does not work with {hindrance}, lists do not pay on {device_type}",
        )
    _log.info("%s: %s implementation (%s)", kind, chosen, reason)
    return {"fused": chosen == "fused", "foreach": chosen == "foreach"}


def _not_fusible(
    groups: Sequence[dict[str, Any]],
    device_type: str,
    fused: frozenset[str],
    *,
    fuses_sharded: bool,
) -> str | None:
    """What keeps the fused kernel from taking these parameters; None when nothing does."""
    from torch import nn

    params: list[torch.Tensor] = [param for group in groups for param in group["params"]]
    if not fused:
        return "any device"
    if device_type not in fused:
        return f"device {device_type}"
    if odd := {str(p.dtype) for p in params if not p.is_floating_point()}:
        return f"parameters of {', '.join(sorted(odd))}"
    if not fuses_sharded and any(type(p) is not nn.Parameter for p in params):
        return "sharded (DTensor) parameters"
    return None
