"""Causal language modelling with the accuracy of the next token."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from typing_extensions import override

from launcher.contracts import Metrics, Samples, Task, Tokenizer
from launcher.task.causal_lm import CausalLM

if TYPE_CHECKING:
    from torch import Tensor


class AccuracyLM(CausalLM):
    """Predict each token from those before it, and count how often the likeliest is right."""

    score_names = frozenset({"eval_loss", "eval_accuracy"})

    @override
    def build(self, tokenizer: Tokenizer) -> Task:
        from launcher.task import NO_TARGET, GenerationSettings, LanguageModel

        class Accuracy(Metrics):
            names = ("eval_loss", "eval_accuracy")

            def __init__(self) -> None:
                self.sums = {"loss": 0.0, "num_targets": 0.0, "num_right": 0.0}

            @override
            def add(self, predictions: Mapping[str, Tensor]) -> None:
                for name in self.sums:
                    self.sums[name] += predictions[name].double().sum().item()

            @override
            def compute(self) -> dict[str, float]:
                loss, targets, right = self.sums.values()
                return {"eval_loss": loss / targets, "eval_accuracy": right / targets}

        class AccuracyTask(LanguageModel):
            @override
            def predict(self, outputs: Any, inputs: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
                labels = inputs["labels"]
                right = (outputs.logits.argmax(dim=-1) == labels) & (labels != NO_TARGET)
                return {**super().predict(outputs, inputs), "num_right": right.sum(dim=1)}

            @override
            def metrics(self, samples: Samples) -> Metrics:
                return Accuracy()

        settings = GenerationSettings(
            self.sample_prompt, self.sample_tokens, self.sample_temperature
        )
        return AccuracyTask(
            tokenizer, seq_len=self.seq_len, packing=self.packing, generation=settings
        )
