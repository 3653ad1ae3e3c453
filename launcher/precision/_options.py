"""Common code of the options: the format of evaluations, and device requirements."""

from __future__ import annotations

import logging
from typing import Literal

from typing_extensions import override

from launcher.contracts import PrecisionOption
from launcher.errors import LaunchError

_log = logging.getLogger("trainctl.precision")

FullEval = Literal["bf16", "fp16"]


class FullEvalOption(PrecisionOption):
    """A precision whose evaluations may use another number format."""

    full_eval: FullEval | None
    """Number format of weights and activations in evaluations; null: as in training."""

    @override
    def refuses_shards(self) -> str | None:
        if self.full_eval is None:
            return None
        return "full_eval rounds a copy of the whole parameters; write precision.full_eval=null"


def require_cuda(kind: str, device_type: str, capability: tuple[int, int], instead: str) -> None:
    """Raise LaunchError unless the device is CUDA's with a compute capability (major, minor)."""
    if device_type == "meta":
        return  # memory is estimated there: nothing is computed
    advice = f"write precision={instead}"
    needed = f"a CUDA device of compute capability {capability[0]}.{capability[1]} or newer"
    if device_type != "cuda":
        raise LaunchError(f"precision={kind} needs {needed}, this is {device_type}: {advice}")
    import torch

    found = torch.cuda.get_device_capability()
    if found < capability:
        name = torch.cuda.get_device_name()
        raise LaunchError(
            f"precision={kind} needs {needed}, {name} has {found[0]}.{found[1]}: {advice}"
        )


def warn_if_emulated(format_: Literal["bf16", "fp16"], device_type: str) -> None:
    """Warn if the device emulates a format, which is several times slower."""
    import torch

    if device_type == "cuda" and format_ == "bf16":
        # By default torch counts emulation as support.
        native = torch.cuda.is_bf16_supported(including_emulation=False)
    elif device_type == "cpu" and torch._C._has_mkldnn:  # noqa: SLF001 - is_available() is untyped
        native = getattr(torch.ops.mkldnn, f"_is_mkldnn_{format_}_supported")()
    else:
        return
    if not native:
        _log.warning(
            "this %s has no instructions for %s and emulates them: precision=fp32 may be faster",
            device_type,
            format_,
        )


def set_tf32(*, allowed: bool) -> None:
    """Let CUDA round the inputs of float32 matrix products and convolutions to TF32, or not."""
    import torch

    # Set both: torch allows TF32 in convolutions by default, but not in matrix products.
    torch.set_float32_matmul_precision("high" if allowed else "highest")
    torch.backends.cudnn.allow_tf32 = allowed
