"""Classification of texts, or of pairs of texts."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Literal

from pydantic import Field
from typing_extensions import override

from launcher.contracts import Column, ConfigView, Task, TaskOption, is_text
from launcher.errors import Problem
from launcher.task._columns import ClassificationColumns, is_label, is_labels, is_number

if TYPE_CHECKING:
    from launcher.contracts import Tokenizer

ProblemType = Literal["single_label", "multi_label", "regression"]
_LABELS = {
    "single_label": ("a label (text or a whole number)", is_label),
    "multi_label": ("a list of labels", is_labels),
    "regression": ("a number", is_number),
}


class TextClassification(TaskOption):
    """Predict the label of a text, or of a pair of texts.

    Labels are those of the training records, in the order of their names, numbers in their order;
    they are kept in the run and in the export. The text has the special tokens that the tokenizer
    adds at inference, and is truncated to `seq_len` tokens.
    """

    head = "sequence_classification"

    columns: ClassificationColumns
    """Names of the columns in the data."""
    problem_type: ProblemType
    """One label per text, several (a list), or a number (mean squared error)."""
    labels: tuple[str, ...] | None = Field(min_length=2)
    """All labels, in the order of the outputs; null takes those of the training records."""
    class_weights: Literal["balanced"] | Mapping[str, float] | None
    """Weight of each label in the loss: by name, 1 where none is given; `balanced` gives each label
    the same total weight; null for no weights."""
    label_smoothing: float = Field(ge=0, lt=1)
    """Share of the target's probability that is spread over all labels."""

    @override
    def problems(self, config: ConfigView) -> Iterator[Problem]:
        yield from super().problems(config)
        if isinstance(self.class_weights, Mapping):
            wrong = {name: w for name, w in self.class_weights.items() if w <= 0}
            if wrong:
                yield Problem("task.class_weights", f"must be above 0, but has {wrong}")

    @override
    def not_applicable(self, config: ConfigView) -> Mapping[str, str]:
        found = dict(super().not_applicable(config))
        if self.problem_type != "single_label":
            reason = f"problem_type is {self.problem_type}"
            found |= {"class_weights": reason, "label_smoothing": reason}
        if self.problem_type == "regression":
            found["labels"] = "problem_type is regression"
        return found

    @override
    def column_specs(self) -> Sequence[Column]:
        named = self.columns
        expects, accepts = _LABELS[self.problem_type]
        texts = {"text": named.text, "text_pair": named.text_pair}
        found = [
            Column(key=f"task.columns.{key}", name=name, expects="text", accepts=is_text)
            for key, name in texts.items()
            if name is not None
        ]
        label = Column(key="task.columns.label", name=named.label, expects=expects, accepts=accepts)
        return [*found, label]

    @override
    def build(self, tokenizer: Tokenizer) -> Task:
        from launcher.task._classification import Classification, ClassificationSettings

        return Classification(
            tokenizer,
            self.column_specs(),
            ClassificationSettings(
                seq_len=self.seq_len,
                problem_type=self.problem_type,
                labels=self.labels,
                class_weights=self.class_weights,
                label_smoothing=self.label_smoothing,
            ),
        )
