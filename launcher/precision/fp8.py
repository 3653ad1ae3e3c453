"""Matrix products in eight bits through torchao, where the hardware has them."""

from __future__ import annotations

from collections.abc import Mapping
from importlib.util import find_spec
from typing import TYPE_CHECKING, ClassVar, Literal

from typing_extensions import override

from launcher.contracts import Pattern, PrecisionOption
from launcher.errors import ConfigError, Problem

if TYPE_CHECKING:
    from launcher.contracts import Precision


class Fp8(PrecisionOption):
    """Linear layers multiply in float8, all else is as in bf16; on CUDA from Ada and Hopper on.

    Weights stay in float32 and are scaled and cast at each use, so checkpoints are those of bf16.
    It pays for large layers only, and only in compiled modules.
    """

    devices: ClassVar[frozenset[str]] = frozenset({"cuda"})

    kind: Literal["fp8"]
    extra: ClassVar[str | None] = "fp8"

    recipe: Literal["tensorwise", "rowwise", "rowwise_with_gw_hp"]
    """One scale per tensor (fastest), per row (more exact), or per row with weight gradients in
    bfloat16 (most exact)."""
    skip: tuple[Pattern, ...]
    """Patterns of linear layers that stay in bfloat16; each must match the name of at least one."""

    @override
    def unsupported_on(self, device_type: str) -> Mapping[str, str]:
        found = super().unsupported_on(device_type)
        return {key: f"{reason}; write precision=bf16" for key, reason in found.items()}

    @override
    def refuses_shards(self) -> str:
        return "its linear layers scale whole matrices; write precision=bf16"

    @override
    def preflight(self) -> None:
        if find_spec("torchao") is None:
            message = "fp8 needs the package torchao; install it: pip install 'trainctl[fp8]'"
            raise ConfigError([Problem("precision.kind", message)])

    @override
    def build(self, device_type: str) -> Precision:
        from launcher.precision._options import require_cuda

        # Hopper is the first to multiply with a scale per row.
        capability = (8, 9) if self.recipe == "tensorwise" else (9, 0)
        require_cuda(self.kind, device_type, capability, "bf16")
        # Memory is estimated on the meta device, with or without the extra. Elsewhere once more: an
        # engine may be built without the launcher's checks.
        if device_type != "meta":
            self.preflight()
        from launcher.precision._autocast import Float8

        return Float8(device_type, self.recipe, self.skip)
