"""The whole config, as an option may read it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from launcher.contracts.adapter import AdapterOption
    from launcher.contracts.batching import BatchingOption
    from launcher.contracts.group_options import (
        AccumulationOption,
        CheckpointOption,
        DataOption,
        LoggingOption,
        ObserverOption,
        ParallelismOption,
        PrecisionOption,
        SchedulerOption,
        TaskOption,
    )
    from launcher.contracts.launch import LaunchOption
    from launcher.contracts.model import ModelOption
    from launcher.contracts.module_options import ActivationOption, CompileOption, EmaOption
    from launcher.contracts.optimizer import OptimizerOption


class ConfigView(Protocol):
    """The fields that `Option.problems` may read; `RunConfig` documents them."""

    # A protocol: RunConfig itself is in launcher.config, which imports the options.

    def is_from_preset(self, key: str) -> bool:
        """Return True if a packaged preset set a key (`optimizer.lr`), not the user."""

    @property
    def max_steps(self) -> int | None: ...
    @property
    def max_epochs(self) -> float | None: ...
    @property
    def max_grad_norm(self) -> float | None: ...
    @property
    def max_grad_norm_per_parameter(self) -> float | None: ...
    @property
    def max_grad_value(self) -> float | None: ...
    @property
    def eval_every_steps(self) -> int | None: ...
    @property
    def log_every_steps(self) -> int: ...
    @property
    def model(self) -> ModelOption: ...
    @property
    def task(self) -> TaskOption: ...
    @property
    def data(self) -> DataOption: ...
    @property
    def adapter(self) -> AdapterOption: ...
    @property
    def optimizer(self) -> OptimizerOption: ...
    @property
    def scheduler(self) -> SchedulerOption: ...
    @property
    def precision(self) -> PrecisionOption: ...
    @property
    def activation(self) -> ActivationOption: ...
    @property
    def compile(self) -> CompileOption: ...
    @property
    def ema(self) -> EmaOption: ...
    @property
    def batching(self) -> BatchingOption: ...
    @property
    def accumulation(self) -> AccumulationOption: ...
    @property
    def parallelism(self) -> ParallelismOption: ...
    @property
    def observer(self) -> ObserverOption: ...
    @property
    def logging(self) -> LoggingOption: ...
    @property
    def checkpoint(self) -> CheckpointOption: ...
    @property
    def launch(self) -> LaunchOption: ...
