"""Hugging Face Accelerate: DDP, FSDP2 or DeepSpeed as a file of `accelerate config` sets them."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from typing_extensions import override

from launcher.contracts import ConfigView, Engine, EngineParts, Layout
from launcher.errors import DataError, Problem
from launcher.parallelism import _accelerate_file as file
from launcher.parallelism._several_ranks import SeveralRanks
from launcher.parallelism.ddp import DDP
from launcher.parallelism.fsdp import FSDP
from launcher.parallelism.zero import Zero

if TYPE_CHECKING:
    from torch import nn


class Accelerate(SeveralRanks):
    """DDP, FSDP2 or DeepSpeed through Hugging Face Accelerate.

    Accelerate wraps the module. Norm, clipping, optimizer, schedule, number formats, accumulation
    and checkpoints are those of every engine: what a file of `accelerate config` says of them must
    be as in trainctl's config.
    """

    on_one_rank: ClassVar[str] = "one rank has nothing to wrap"

    kind: Literal["accelerate"]
    plugin: file.Plugin | None
    """Wrapper of the module; null: `distributed_type` of `config_file`, or ddp without a file."""
    find_unused_parameters: bool
    """Find parameters that do not contribute to the loss, in every step (plugin ddp)."""
    config_file: str | None
    """File of `accelerate config` (YAML or JSON); null for none, which is Accelerate's defaults."""

    @property
    @override
    def master_dtypes(self) -> Collection[str]:
        return self.engine_option().master_dtypes

    @override
    def layout(self, ranks: int) -> Layout:
        return self.engine_option().layout(ranks)

    @override
    def problems(self, config: ConfigView) -> Iterator[Problem]:
        if self.config_file is not None:
            try:
                content = file.read(self.config_file)
                found = list(file.problems(self.config_file, content, self._plugin(), config))
            except DataError:
                return  # preflight reports it
            if found:
                yield from found
                return
        inner = self.engine_option()
        for problem in inner.problems(config):
            # The keys of `inner` are not those of this kind.
            is_inner = problem.key.startswith("parallelism.")
            text = problem.message.replace(
                f"parallelism={inner.kind}", f"parallelism=accelerate with plugin {self._plugin()}"
            )
            key = "parallelism.config_file" if is_inner else problem.key
            yield replace(problem, key=key, message=text)

    @override
    def preflight(self) -> None:
        if self.config_file is not None:
            file.read(self.config_file)
            self.engine_option().preflight()

    @override
    def unsupported_on(self, device_type: str) -> Mapping[str, str]:
        field = "plugin" if self.config_file is None else "config_file"
        if device_type == "mps":
            return {"kind": "accelerate needs cpu or cuda; choose parallelism=single"}
        if self._plugin() == "fsdp" and device_type == "cpu":
            reason = (
                "Accelerate ignores FSDP on the CPU and trains with DDP; write parallelism=fsdp"
            )
            return {field: reason}
        if (found := file.refuses_device(self._content(), device_type)) is not None:
            return {field: f"{self.config_file}: {found}, but the device is {device_type}"}
        return {}

    @override
    def not_applicable(self, config: ConfigView) -> Mapping[str, str]:
        found = dict(super().not_applicable(config))
        if config.launch.ranks > 1 and self._plugin() != "ddp":
            found["find_unused_parameters"] = "only plugin ddp waits for all gradients"
        return found

    @override
    def parameter_bytes(self, module: nn.Module, ranks: int) -> Sequence[int]:
        return self.engine_option().parameter_bytes(module, ranks)

    def engine_option(self) -> DDP | FSDP | Zero:
        """Return the same engine without Accelerate."""
        plugin, content = self._plugin(), self._content()
        own = file.section(content, plugin)
        if plugin == "deepspeed":
            return file.zero_option(own)
        if plugin == "fsdp":
            return FSDP(
                kind="fsdp",
                replicas=1,
                reshard_after_forward=file.is_on(own, "fsdp_reshard_after_forward", default=True),
                reduce_every_micro_batch=False,
                offload=file.is_on(own, "fsdp_offload_params", default=False),
                wrap=None,
            )
        return DDP(
            kind="ddp",
            bucket_mb=25,
            gradient_as_bucket_view=False,
            static_graph=False,
            find_unused_parameters=self.find_unused_parameters,
            gradient_compression=None,
        )

    @override
    def build_distributed(self, parts: EngineParts) -> Engine:
        from launcher.parallelism import _accelerate_engine as engines

        option = self.engine_option()
        if isinstance(option, FSDP):
            wrapping = file.wrapping(file.section(self._content(), "fsdp"))
            return engines.AccelerateFSDPEngine(parts, option, wrapping)
        if isinstance(option, Zero):
            return engines.AccelerateZeroEngine(parts, option)
        return engines.AccelerateDDPEngine(parts, option)

    def _plugin(self) -> file.Plugin:
        return self.plugin or file.plugin_of(self._content()) or "ddp"

    def _content(self) -> Mapping[str, Any]:
        """Return the content of the file; nothing if it cannot be read, which preflight reports."""
        try:
            return {} if self.config_file is None else file.read(self.config_file)
        except DataError:
            return {}
