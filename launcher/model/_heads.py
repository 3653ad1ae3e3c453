"""The transformers class of an architecture with a head."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from launcher.errors import DataError

if TYPE_CHECKING:
    from collections.abc import Iterable

    from torch import nn

    from launcher.contracts import Head, HeadName

_AUTO_CLASSES: dict[HeadName, str] = {
    "causal_lm": "AutoModelForCausalLM",
    "masked_lm": "AutoModelForMaskedLM",
    "sequence_classification": "AutoModelForSequenceClassification",
    "token_classification": "AutoModelForTokenClassification",
    "question_answering": "AutoModelForQuestionAnswering",
    "seq2seq": "AutoModelForSeq2SeqLM",
}


def auto_class(config: Any, head: Head) -> Any:
    """Return the Auto class of a head, made sure to have a model for the architecture.

    Args:
        config: A transformers config. It gets the head's labels.
        head: The output layer.

    Raises:
        DataError: The architecture has no model with this head.
    """
    import transformers

    found = getattr(transformers, _AUTO_CLASSES[head.name])
    if type(config) not in found._model_mapping:  # noqa: SLF001 - its only name
        others = [
            name
            for name, each in _AUTO_CLASSES.items()
            if type(config) in getattr(transformers, each)._model_mapping  # noqa: SLF001
        ]
        raise DataError(
            f"the architecture {config.model_type} has no {head.name} head, which the task needs; "
            f"transformers has these heads for it: {', '.join(others) or 'none'}; choose another "
            "task or another model"
        )
    if head.labels:
        config.id2label = dict(enumerate(head.labels))
        config.label2id = {label: index for index, label in enumerate(head.labels)}
    return found


def build_on_meta(config: Any, head: Head) -> nn.Module:
    """Build a model without memory, in float32 and in training mode.

    Raises:
        DataError: The architecture has no model with this head.
    """
    import torch

    found = auto_class(config, head)
    with torch.device("meta"):
        module: nn.Module = found.from_config(config, dtype=torch.float32, trust_remote_code=False)
    # Parameters from torch.FloatTensor, as in XLNet, have memory on the CPU that nothing fills.
    move_to_meta(module, [name for name, p in module.named_parameters() if not p.is_meta])
    return module


def move_to_meta(module: nn.Module, names: Iterable[str]) -> None:
    """Replace parameters by ones on the meta device, which `initialize_weights` draws."""
    import torch

    for name in names:
        parent, _, leaf = name.rpartition(".")
        owner = module.get_submodule(parent)
        owner.register_parameter(leaf, torch.nn.Parameter(getattr(owner, leaf).to("meta")))
