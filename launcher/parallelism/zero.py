"""ZeRO: ranks share optimizer state, gradients and parameters in flat partitions (DeepSpeed)."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from pydantic import Field
from typing_extensions import override

from launcher.contracts import ConfigView, Engine, EngineParts, Layout, Placement, StateBytes
from launcher.errors import DataError, LaunchError, Problem
from launcher.parallelism import _zero_json
from launcher.parallelism._several_ranks import SeveralRanks

if TYPE_CHECKING:
    from torch import nn

# Its weights are float32.
_ITEMSIZE = 4


class Zero(SeveralRanks):
    """ZeRO: each rank updates a part of the weights, and keeps only what that needs (DeepSpeed).

    DeepSpeed moves gradients and weights between ranks; norm, clipping and the optimizer are those
    of a run on one process, and see whole tensors.

    Source: Rajbhandari et al. 2019, arXiv:1910.02054.
    """

    on_one_rank: ClassVar[str] = "one rank shares nothing"

    kind: Literal["zero"]
    stage: Literal[1, 2, 3]
    """Sharded over the ranks: 1 the optimizer's state, 2 also gradients, 3 also parameters."""
    offload_optimizer: bool
    """Keep optimizer state and the weights that it updates in the host's memory, and update them
    there."""
    offload_params: bool
    """Keep the parameters of stage 3 in the host's memory between forward passes."""
    nvme_path: str | None = Field(min_length=1)
    """Folder on an NVMe drive that holds the offloaded parameters instead of the host's memory, or
    null. Needs libaio, and DeepSpeed compiles its access to it."""
    pin_memory: bool
    """Page-lock that memory, so that copies to the GPU overlap with its work."""
    overlap_comm: bool
    """Reduce gradients while the backward pass computes others; needs a second buffer."""
    reduce_bucket_elements: int = Field(gt=0, le=10**11)
    """Number of gradients that are reduced in one collective."""
    gather_bucket_elements: int = Field(gt=0, le=10**11)
    """Number of weights that are gathered in one collective after an update (stages 1 and 2)."""
    prefetch_elements: int = Field(ge=0, le=10**11)
    """Number of parameters that are gathered ahead of their layer (stage 3)."""
    persistence_elements: int = Field(ge=0, le=10**11)
    """Parameters with fewer elements are not sharded (stage 3)."""
    live_elements: int = Field(ge=0, le=10**13)
    """Largest number of gathered parameters at a time (stage 3)."""
    config_file: str | None
    """File of a DeepSpeed config (JSON) with further settings; null for none. Its values for
    optimizer, precision, clipping and batch sizes must equal trainctl's, or be `auto`."""

    @property
    @override
    def master_dtypes(self) -> Collection[str]:
        # DeepSpeed keeps a float32 copy of weights in any other format.
        return {"float32"}

    @override
    def layout(self, ranks: int) -> Layout:
        return Layout(dp_shard=ranks)

    @override
    def problems(self, config: ConfigView) -> Iterator[Problem]:
        yield from super().problems(config)
        if self.stage == 3 and (field := config.task.loss_in_head) and config.launch.ranks > 1:
            yield Problem(
                f"task.{field}",
                "must be null under stage 3, in which DeepSpeed replaces the outputs of layers; "
                "leave it out, or write parallelism=zero2 or parallelism=fsdp",
            )
        if self.stage == 3 and config.ema.replaces_weights and config.launch.ranks > 1:
            yield Problem(
                "ema.kind",
                "averages do not reach the parameters that stage 3 keeps whole; write "
                "parallelism=zero2 or parallelism=fsdp",
            )
        if self.offload_params and self.stage != 3:
            yield Problem(
                "parallelism.offload_params",
                f"needs stage 3, but parallelism.stage is {self.stage}, in which every rank "
                "computes with its own whole parameters; write parallelism.stage=3",
            )
        if self.offload_params and not self.offload_optimizer:
            yield Problem(
                "parallelism.offload_params",
                "needs parallelism.offload_optimizer=true: DeepSpeed updates offloaded parameters "
                "in the host's memory",
            )
        if self.nvme_path is not None and not self.offload_params:
            yield Problem(
                "parallelism.nvme_path",
                "needs parallelism.offload_params=true: only offloaded parameters are kept there",
            )

        if self.config_file is not None:
            # The file must not add keys to what it is compared with.
            alone = self.model_copy(update={"config_file": None})
            generated = alone.deepspeed_config(self.reduce_bucket_elements)
            try:
                yield from _zero_json.problems(self.config_file, generated, self._origins(), config)
            except DataError:
                return  # preflight reports it

    @override
    def placement(self, state: StateBytes, ranks: int) -> Placement:
        whole = super().placement(state, ranks)
        if ranks == 1:
            return whole
        optimizer = -(-whole.optimizer // ranks)
        # The flat partition that a rank updates is a copy of its part of the trained weights.
        partition = -(-state.trained // ranks)
        weights = whole.weights if self.stage < 3 else -(-whole.weights // ranks)
        gradients = whole.gradients if self.stage == 1 else -(-whole.gradients // ranks)
        bucket = min(self.reduce_bucket_elements * _ITEMSIZE, state.gradients)
        buffers = bucket * (2 if self.overlap_comm else 1)
        if self.stage == 3:
            gathered = (self.live_elements + self.prefetch_elements) * _ITEMSIZE
            buffers += min(gathered, state.others + 2 * state.block)
        else:
            buffers += min(self.gather_bucket_elements * _ITEMSIZE, state.trained)
        host: dict[str, int] = {}
        if self.offload_optimizer:
            host = {"optimizer": optimizer + partition, "gradients": gradients}
            optimizer = partition = 0
        if self.offload_params:
            host["weights"], weights = weights, 0
        passes = 3 if self.stage == 3 else 2
        return Placement(
            weights=weights,
            gradients=gradients,
            optimizer=optimizer + partition,
            communication=buffers,
            host=host,
            sent=passes * state.trained * (ranks - 1) // ranks,
        )

    @override
    def preflight(self) -> None:
        if self.nvme_path is not None:
            check_nvme(self.nvme_path)
        if self.config_file is not None:
            _zero_json.read(self.config_file)

    def _origins(self) -> Mapping[str, str]:
        """Return the setting behind each key of DeepSpeed's config."""
        names = {
            "stage": "stage",
            "overlap_comm": "overlap_comm",
            "reduce_bucket_size": "reduce_bucket_elements",
            "allgather_bucket_size": "gather_bucket_elements",
            "stage3_prefetch_bucket_size": "prefetch_elements",
            "stage3_param_persistence_threshold": "persistence_elements",
            "stage3_max_live_parameters": "live_elements",
            "offload_optimizer.device": "offload_optimizer",
            "offload_optimizer.pin_memory": "pin_memory",
            "offload_param.device": "offload_params",
            "offload_param.pin_memory": "pin_memory",
            "offload_param.nvme_path": "nvme_path",
        }
        return {f"zero_optimization.{k}": f"parallelism.{v}" for k, v in names.items()}

    @override
    def not_applicable(self, config: ConfigView) -> Mapping[str, str]:
        found = dict(super().not_applicable(config))
        if config.launch.ranks == 1:
            return found
        if self.stage == 3:
            found["gather_bucket_elements"] = "stage 3 gathers weights layer by layer"
        else:
            for field in ("prefetch_elements", "persistence_elements", "live_elements"):
                found[field] = "only stage 3 gathers parameters layer by layer"
        if not (self.offload_optimizer or self.offload_params):
            found["pin_memory"] = "nothing is offloaded"
        if not self.offload_params:
            found["nvme_path"] = "no parameter is offloaded"
        return found

    def deepspeed_config(self, num_trained: int) -> dict[str, Any]:
        """Return DeepSpeed's config; what trainctl does itself is switched off.

        Args:
            num_trained: Number of trained elements: no buffer need be larger.
        """
        offload: dict[str, Any] = {"device": "cpu", "pin_memory": self.pin_memory}
        zero = {
            "stage": self.stage,
            "overlap_comm": self.overlap_comm,
            "reduce_bucket_size": min(self.reduce_bucket_elements, max(2, num_trained)),
            **({"offload_optimizer": offload} if self.offload_optimizer else {}),
            **({"offload_param": offload | self._nvme()} if self.offload_params else {}),
        }
        if self.stage != 3:
            zero["allgather_bucket_size"] = self.gather_bucket_elements
        else:
            zero |= {
                "stage3_prefetch_bucket_size": self.prefetch_elements,
                "stage3_param_persistence_threshold": self.persistence_elements,
                "stage3_max_live_parameters": self.live_elements,
                # One step of the optimizer for all parameters, not one for each gigabyte.
                "sub_group_size": 10**15,
            }
        tuned = {} if self.config_file is None else _zero_json.tuning(self.config_file)
        return tuned | {
            "train_micro_batch_size_per_gpu": 1,
            "gradient_accumulation_steps": 1,
            # Left out, it would be 1.0.
            "gradient_clipping": 0.0,
            "zero_allow_untested_optimizer": True,
            "zero_force_ds_cpu_optimizer": False,
            "steps_per_print": None,
            "zero_optimization": tuned.get("zero_optimization", {}) | zero,
        }

    def _nvme(self) -> dict[str, str]:
        return {} if self.nvme_path is None else {"device": "nvme", "nvme_path": self.nvme_path}

    @override
    def parameter_bytes(self, module: nn.Module, ranks: int) -> Sequence[int]:
        if self.stage < 3:
            return super().parameter_bytes(module, ranks)
        # DeepSpeed pads each parameter to equal parts.
        each = sum(-(-param.numel() // ranks) * param.itemsize for param in module.parameters())
        return [each] * ranks

    @override
    def build_distributed(self, parts: EngineParts) -> Engine:
        from launcher.parallelism._zero_engine import ZeroEngine

        return ZeroEngine(parts, self)


def check_nvme(path: str) -> None:
    """Check that parameters can be kept in a folder.

    Raises:
        LaunchError: The folder, or the library that writes to it, is not there.
    """
    from ctypes.util import find_library

    if not Path(path).is_dir():
        raise LaunchError(f"parallelism.nvme_path={path}: no such folder")
    if find_library("aio") is None:
        raise LaunchError(
            f"parallelism.nvme_path={path}: DeepSpeed reads and writes it with libaio, which is not"
            " installed; install the package libaio-dev or libaio-devel, or write "
            "parallelism.nvme_path=null"
        )
