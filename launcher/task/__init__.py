"""Training objectives: head, samples, loss, predictions and metrics; one module per kind.

A kind is a `TaskOption`: its `build` returns the `Task`, which encodes records to samples, computes
the summed loss and the predictions of a micro-batch, computes scores from the predictions on
held-out samples, and exports the model. It is independent of engines, devices and optimizers.

To add one: `launcher/task/<kind>.py` with one public subclass of `TaskOption`, and a preset
`conf/task/<kind>.yaml` that gives every field a value. A task may derive from the classes
that are exported here; they are imported on first use, because option classes load without torch.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from launcher.task._generation import GenerationSettings
    from launcher.task._language_model import LanguageModel, LanguageModelMetrics
    from launcher.task._token_samples import NO_TARGET
else:
    # On first use: option classes load without torch.
    def __getattr__(name: str) -> object:
        if name not in _MODULES:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        return getattr(import_module(f"{__name__}.{_MODULES[name]}"), name)


__all__ = ["NO_TARGET", "GenerationSettings", "LanguageModel", "LanguageModelMetrics"]

_MODULES = {
    "NO_TARGET": "_token_samples",
    "GenerationSettings": "_generation",
    "LanguageModel": "_language_model",
    "LanguageModelMetrics": "_language_model",
}
