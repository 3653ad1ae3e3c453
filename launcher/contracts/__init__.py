"""Interfaces of the config groups, and the types that pass between them.

An *option* is a config group's validated value (`RunConfig.optimizer`): frozen, typed, with its
default values in YAML only. Its `build` returns the live object, and imports torch, transformers
and other large packages, so that this package loads without them. Packages that add kinds import
from here; `launcher.parallelism`, `launcher.optimizer` and `launcher.task` export base classes of
engines, optimizers and tasks.
"""

from launcher.contracts.adapter import Adapted, AdapterOption, ExportTarget
from launcher.contracts.batching import BatchingOption, split
from launcher.contracts.checkpoints import (
    CheckpointStore,
    PublishedCheckpoint,
    Snapshot,
    StoredConfig,
)
from launcher.contracts.columns import Column, is_text
from launcher.contracts.config import ConfigView
from launcher.contracts.data import (
    BatchPlan,
    DataSplits,
    MicroBatch,
    Records,
    Samples,
    Tokenizer,
    Window,
)
from launcher.contracts.engine import (
    AXES,
    Clipping,
    Engine,
    EngineParts,
    EngineState,
    InitialWeights,
    Layout,
    Request,
    UpdateStats,
    World,
    param_of,
)
from launcher.contracts.group_options import (
    AccumulationOption,
    CheckpointOption,
    DataOption,
    LoggingOption,
    MicroBatchSearch,
    ObserverOption,
    ParallelismOption,
    PrecisionOption,
    SchedulerOption,
    TaskOption,
)
from launcher.contracts.launch import LaunchOption
from launcher.contracts.memory import Placement, StateBytes
from launcher.contracts.model import ModelLimits, ModelOption, SavedWeight
from launcher.contracts.module_options import (
    ActivationOption,
    CompileOption,
    EmaOption,
    WeightAverage,
)
from launcher.contracts.observers import (
    LogContext,
    Observer,
    Row,
    RunContext,
    Sink,
    StepReport,
    Stop,
)
from launcher.contracts.optimizer import (
    GroupOverride,
    OptimizerOption,
    OptimizerTarget,
    ParamGroups,
    Pattern,
    UsualLr,
    is_sharded_state,
)
from launcher.contracts.options import GROUPS, DType, Option, Settings
from launcher.contracts.precision import LossScale, Precision
from launcher.contracts.reads import Reads, recorded, unrecorded
from launcher.contracts.schedule import Horizon, Schedule, ScheduleError
from launcher.contracts.sharding import (
    UNSHARDED,
    Box,
    LocalShard,
    Shard,
    Sharding,
    Unsharded,
    canonical_name,
    named_tensors,
)
from launcher.contracts.state import TrainState
from launcher.contracts.task import Head, HeadName, Metrics, Task

__all__ = [
    "AXES",
    "GROUPS",
    "UNSHARDED",
    "AccumulationOption",
    "ActivationOption",
    "Adapted",
    "AdapterOption",
    "BatchPlan",
    "BatchingOption",
    "Box",
    "CheckpointOption",
    "CheckpointStore",
    "Clipping",
    "Column",
    "CompileOption",
    "ConfigView",
    "DType",
    "DataOption",
    "DataSplits",
    "EmaOption",
    "Engine",
    "EngineParts",
    "EngineState",
    "ExportTarget",
    "GroupOverride",
    "Head",
    "HeadName",
    "Horizon",
    "InitialWeights",
    "LaunchOption",
    "Layout",
    "LocalShard",
    "LogContext",
    "LoggingOption",
    "LossScale",
    "Metrics",
    "MicroBatch",
    "MicroBatchSearch",
    "ModelLimits",
    "ModelOption",
    "Observer",
    "ObserverOption",
    "OptimizerOption",
    "OptimizerTarget",
    "Option",
    "ParallelismOption",
    "ParamGroups",
    "Pattern",
    "Placement",
    "Precision",
    "PrecisionOption",
    "PublishedCheckpoint",
    "Reads",
    "Records",
    "Request",
    "Row",
    "RunContext",
    "Samples",
    "SavedWeight",
    "Schedule",
    "ScheduleError",
    "SchedulerOption",
    "Settings",
    "Shard",
    "Sharding",
    "Sink",
    "Snapshot",
    "StateBytes",
    "StepReport",
    "Stop",
    "StoredConfig",
    "Task",
    "TaskOption",
    "Tokenizer",
    "TrainState",
    "Unsharded",
    "UpdateStats",
    "UsualLr",
    "WeightAverage",
    "Window",
    "World",
    "canonical_name",
    "is_sharded_state",
    "is_text",
    "named_tensors",
    "param_of",
    "recorded",
    "split",
    "unrecorded",
]
