"""Networks of transformers: heads, meta device, auxiliary losses, causality."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from launcher.errors import DataError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

    from launcher.contracts import Head, HeadName, Tokenizer


_AUTO_CLASSES: dict[HeadName, str] = {
    "causal_lm": "AutoModelForCausalLM",
    "masked_lm": "AutoModelForMaskedLM",
    "sequence_classification": "AutoModelForSequenceClassification",
    "token_classification": "AutoModelForTokenClassification",
    "question_answering": "AutoModelForQuestionAnswering",
    "seq2seq": "AutoModelForSeq2SeqLM",
}
_LOSS_WEIGHTS = ("router_aux_loss_coef", "aux_loss_coef")
# Number of tokens for the test of causality.
_LENGTH = 16
# Relative change of earlier logits that is taken for rounding.
_TOLERANCE = 1e-5


def auto_class(config: Any, head: Head) -> Any:
    """Return the Auto class of a head, and set the head's labels in the config."""
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


def set_pad_id(config: Any, head: Head, build_tokenizer: Callable[[], Tokenizer]) -> None:
    """Set the padding token of a decoder whose output at the last token of a row is classified."""
    # Without one transformers cannot find the last token. Other heads do not need it, and some
    # architectures do not train the embedding of a padding token.
    text_config = config.get_text_config()
    if head.name == "sequence_classification" and text_config.pad_token_id is None:
        text_config.pad_token_id = build_tokenizer().pad_id


def build_on_meta(config: Any, head: Head) -> nn.Module:
    """Build a model on the meta device, in float32 and in training mode."""
    found = auto_class(config, head)
    with torch.device("meta"):
        module: nn.Module = found.from_config(config, dtype=torch.float32, trust_remote_code=False)
    # torch.FloatTensor, which XLNet uses, ignores the default device: such parameters would keep
    # uninitialised memory.
    move_to_meta(module, [name for name, p in module.named_parameters() if not p.is_meta])
    return module


def move_to_meta(module: nn.Module, names: Iterable[str]) -> None:
    """Replace parameters by ones on the meta device."""
    for name in names:
        parent, _, leaf = name.rpartition(".")
        owner = module.get_submodule(parent)
        owner.register_parameter(leaf, torch.nn.Parameter(getattr(owner, leaf).to("meta")))


def auxiliary_losses(module: nn.Module, outputs: Any) -> Mapping[str, Tensor]:
    """Return the load-balancing loss of routers and the z-loss, weighted as transformers does.

    The first needs `output_router_logits`, the second a `z_loss_coefficient` in config.json. Both
    are means over all tokens of a micro-batch, including padding.
    """
    found: dict[str, Tensor] = {}
    router_loss = getattr(outputs, "aux_loss", None)
    if isinstance(router_loss, Tensor):
        found["router_aux_loss"] = _router_weight(module) * router_loss
    weight = getattr(module, "z_loss_coefficient", 0)
    if weight > 0:
        # Bamba adds it only next to a loss of its own.
        found["z_loss"] = weight * outputs.logits.float().logsumexp(dim=-1).pow(2).mean()
    return found


def _router_weight(module: nn.Module) -> float:
    model: Any = module
    sources = (module, model.config, model.config.get_text_config())
    found = (getattr(source, name, None) for source in sources for name in _LOSS_WEIGHTS)
    weight: float | None = next((value for value in found if value is not None), None)
    if weight is None:
        raise DataError(
            f"{type(module).__name__} returns an auxiliary loss, but its config has no weight for "
            f"it ({', '.join(_LOSS_WEIGHTS)}); set output_router_logits to false in config.json"
        )
    return weight


@torch.no_grad()
def sees_later_tokens(module: nn.Module) -> bool:
    """Return True if a change of the last token changes the logits of earlier ones."""
    # Tested on the network, because no field of config.json answers it for every architecture.
    model: Any = module
    vocab_size = model.config.get_text_config().vocab_size
    # Different tokens: equal ones would hide attention to the wrong position.
    ids = torch.arange(2, 2 + _LENGTH).unsqueeze(0) % vocab_size
    changed = ids.clone()
    changed[0, -1] = 1
    was_training = module.training
    module.eval()
    try:
        with torch.random.fork_rng(devices=[]):
            # Two passes and not a batch of two: equal shapes give causal models bitwise equal
            # logits.
            first, second = (model(input_ids=x, use_cache=False).logits[0] for x in (ids, changed))
    finally:
        module.train(was_training)
    change = (first - second).float().abs().amax(dim=-1)
    return bool(change[:-1].max() > _TOLERANCE * change[-1])
