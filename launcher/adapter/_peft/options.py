"""Fields of all adapters that peft makes."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, ClassVar, Literal

from pydantic import Field
from typing_extensions import override

from launcher.contracts import (
    AdapterOption,
    ConfigView,
    ExportTarget,
    GroupOverride,
    OptimizerOption,
    Pattern,
)
from launcher.errors import Problem

if TYPE_CHECKING:
    from torch import nn

# These take the main part of the frozen matrix into the pair, and change the matrix.
MOVED = frozenset({"pissa", "olora"})


class LowRank(AdapterOption):
    """Pairs of small matrices; the product of a pair is added to a frozen matrix.

    A pattern is a regular expression that must match (`re.search`) at least one module's name.
    """

    extra: ClassVar[str | None] = "adapter"

    rank: int = Field(gt=0, le=2**14)
    """Inner size of each pair of matrices."""
    alpha: float = Field(gt=0, le=1e6)
    """The product is multiplied by alpha / rank; with rslora by alpha / sqrt(rank)."""
    dropout: float = Field(ge=0, lt=1)
    """Share of the inputs of each pair that is set to zero in training."""
    targets: Literal["all-linear"] | tuple[Pattern, ...] = Field(min_length=1)
    """Modules that get a pair: `all-linear` for all linear layers but the output layer, or patterns
    of names."""
    exclude: tuple[Pattern, ...]
    """Patterns of modules that get none although `targets` names them."""
    modules_to_save: tuple[Pattern, ...]
    """Patterns of modules that are trained as a whole and saved with the adapter. The new head of a
    classification task always is."""
    init: Literal["kaiming", "gaussian", "orthogonal", "pissa", "olora"]
    """First values of a pair. `kaiming` and `gaussian`: the second matrix is zero. `orthogonal`:
    the product is zero. `pissa` and `olora`: the main part of the frozen matrix, which keeps the
    rest (Meng et al. 2024, arXiv:2404.02948; Büyükakyüz 2024, arXiv:2406.01775)."""
    dora: bool
    """Train the length of each row of the sum as well (Liu et al. 2024, arXiv:2402.09353)."""
    rslora: bool
    """Scale by alpha / sqrt(rank), so that a larger rank does not make smaller updates
    (Kalajdzievski 2023, arXiv:2312.03732)."""
    lr_ratio: float | None = Field(gt=0, le=1e6)
    """Learning rate of the second matrices over that of the first (LoRA+, Hayou et al. 2024,
    arXiv:2402.12354); null for the same rate."""
    export: Literal["adapter", "merged", "both"]
    """Exports of a finished run: the adapter for peft's `PeftModel` in RUN_DIR/export/adapter,
    the model with the adapter merged into its weights in RUN_DIR/export, or both."""

    @property
    @override
    def is_active(self) -> bool:
        return True

    @override
    def problems(self, config: ConfigView) -> Iterator[Problem]:
        yield from super().problems(config)
        optimizer = config.optimizer
        if self.lr_ratio is not None and (
            optimizer.lr is None or "lr_scale" not in optimizer.group_options
        ):
            yield Problem(
                "adapter.lr_ratio",
                f"must be null, because optimizer={optimizer.kind} has one learning rate for all "
                "parameters, or sets its own",
            )
        if self.dora and self.init in MOVED:
            yield Problem(
                "adapter.init",
                f"must be kaiming, gaussian or orthogonal with adapter.dora, but is {self.init}: "
                "the adapter could not be exported for the unchanged model",
            )

    @override
    def not_applicable(self, config: ConfigView) -> Mapping[str, str]:
        found = super().not_applicable(config)
        if config.checkpoint.export:
            return found
        return {**found, "export": "checkpoint.export is false"}

    @override
    def adjusted(self, optimizer: OptimizerOption) -> OptimizerOption:
        if self.lr_ratio is None:
            return optimizer
        # First: an override of the user for the same parameters wins.
        ratio = GroupOverride.model_validate({"pattern": r"\.lora_B\b", "lr_scale": self.lr_ratio})
        overrides = (ratio, *optimizer.groups.overrides)
        groups = optimizer.groups.model_copy(update={"overrides": overrides})
        return optimizer.model_copy(update={"groups": groups})

    @override
    def write(self, module: nn.Module, target: ExportTarget) -> None:
        from launcher.adapter._peft.export import write

        write(module, target, self.export)
