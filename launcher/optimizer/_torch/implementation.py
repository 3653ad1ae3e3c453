"""Choose torch's fused, foreach or for-loop implementation."""

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


class FusedOption(OptimizerOption):
    """An optimizer of torch's that has a fused kernel on some devices."""

    fused_on: ClassVar[frozenset[str]] = _FUSED
    """Kinds of device for which torch has the kernel."""
    fuses_sharded: ClassVar[bool] = True
    """True where the kernel takes sharded (DTensor) parameters."""
    fuses_16_bit: ClassVar[bool] = True
    """True where the CPU's kernel is right for bf16 and fp16 parameters."""

    implementation: Literal["auto", "fused", "foreach", "loop"]
    """`auto` takes the first of fused, foreach and for-loop that the device has, and logs it."""

    @override
    def unsupported_on(self, device_type: str) -> Mapping[str, str]:
        found = super().unsupported_on(device_type)
        if self.implementation != "fused" or device_type in self.fused_on:
            return found
        return {**found, "implementation": f"{device_type} has no fused {self.kind}; use auto"}

    def kernel_flags(self, groups: Sequence[dict[str, Any]], device_type: str) -> dict[str, bool]:
        """Return the `fused` and `foreach` arguments."""
        return choose(
            self.implementation,
            groups,
            device_type,
            kind=self.kind,
            fused=self.fused_on,
            fuses_sharded=self.fuses_sharded,
            fuses_16_bit=self.fuses_16_bit,
        )


class ForeachOption(OptimizerOption):
    """An optimizer without a fused kernel."""

    implementation: Literal["auto", "foreach", "loop"]
    """`auto` takes foreach on GPUs and the for-loop elsewhere, and logs it."""

    def use_foreach(self, groups: Sequence[dict[str, Any]], device_type: str) -> bool:
        """Return the `foreach` argument."""
        flags = choose(self.implementation, groups, device_type, kind=self.kind, fused=frozenset())
        return flags["foreach"]


def choose(
    asked: Literal["auto", "fused", "foreach", "loop"],
    groups: Sequence[dict[str, Any]],
    device_type: str,
    *,
    kind: str,
    fused: frozenset[str] = _FUSED,
    fuses_sharded: bool = True,
    fuses_16_bit: bool = True,
) -> dict[str, bool]:
    """Return the `fused` and `foreach` arguments of a torch optimizer, and log the reason.

    Raises:
        ConfigError: `fused` is configured where it does not exist.
    """
    obstacle = _not_fusible(
        groups, device_type, fused, fuses_sharded=fuses_sharded, fuses_16_bit=fuses_16_bit
    )
    if asked == "fused" and obstacle:
        message = f"fused {kind} does not work with {obstacle}; use auto"
        raise ConfigError([Problem("optimizer.implementation", message)])
    if asked != "auto":
        chosen, reason = asked, "as configured"
    elif not obstacle:
        chosen, reason = "fused", f"one kernel per group on {device_type}"
    # On other devices torch's foreach functions loop over the tensors.
    elif device_type in _FOREACH:
        chosen, reason = "foreach", f"fused does not work with {obstacle}"
    else:
        chosen, reason = (
            "loop",
            f"fused does not work with {obstacle}, foreach is not faster on {device_type}",
        )
    _log.info("%s: %s implementation (%s)", kind, chosen, reason)
    return {"fused": chosen == "fused", "foreach": chosen == "foreach"}


def _not_fusible(
    groups: Sequence[dict[str, Any]],
    device_type: str,
    fused: frozenset[str],
    *,
    fuses_sharded: bool,
    fuses_16_bit: bool,
) -> str | None:
    import torch
    from torch import nn

    params: list[torch.Tensor] = [param for group in groups for param in group["params"]]
    if not fused:
        return "any device"
    if device_type not in fused:
        return f"device {device_type}"
    wrong = set() if fuses_16_bit or device_type != "cpu" else {torch.bfloat16, torch.float16}
    if odd := {str(p.dtype) for p in params if not p.is_floating_point() or p.dtype in wrong}:
        return f"parameters of {', '.join(sorted(odd))}"
    if not fuses_sharded and any(type(p) is not nn.Parameter for p in params):
        return "sharded (DTensor) parameters"
    # The kernels run over memory from the first element: they would write into the gaps.
    if not all(_fills_its_memory(p) for p in params):
        return "parameters with gaps in memory"
    return None


def _fills_its_memory(tensor: torch.Tensor) -> bool:
    # A transposed tensor fills its memory too: sorted strides are those of a contiguous one.
    if tensor.is_contiguous():
        return True
    expected = 1
    for stride, size in sorted(zip(tensor.stride(), tensor.shape, strict=True)):
        if size == 1:
            continue
        if stride != expected:
            return tensor.numel() == 0
        expected *= size
    return True
