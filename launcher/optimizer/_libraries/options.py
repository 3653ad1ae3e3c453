"""Options of optimizers from other packages."""

from __future__ import annotations

from importlib.util import find_spec
from typing import ClassVar

from pydantic import Field
from typing_extensions import override

from launcher.contracts import OptimizerOption
from launcher.errors import ConfigError, Problem
from launcher.optimizer._groups.fields import LearningRate


class LibraryOption(OptimizerOption):
    """An optimizer of another package, which is imported in `build` only."""

    package: ClassVar[tuple[str, str]]
    """Name of the module, and of the package that pip installs."""

    @override
    def preflight(self) -> None:
        module, package = self.package
        if find_spec(module) is None:
            message = f"{self.kind} needs the package {package}; install it: pip install {package}"
            raise ConfigError([Problem("optimizer.kind", message)])


class ScheduleFree(LibraryOption, LearningRate):
    """An optimizer whose averaged weights replace a decaying schedule.

    It trains other weights than those that are evaluated and exported, the average.
    """

    package: ClassVar[tuple[str, str]] = ("schedulefree", "schedulefree")
    owns_schedule: ClassVar[bool] = True
    elementwise: ClassVar[bool] = True

    lr: float = Field(gt=0, le=1e3)
    """Learning rate after warm-up; it does not decay."""
    r: float = Field(ge=0, le=100)
    """Power of the step in the average's weights; 0 weighs all steps equally."""
    weight_lr_power: float = Field(ge=0, le=100)
    """Power of the learning rate in the average's weights."""
