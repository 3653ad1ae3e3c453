"""The live task of causal language modelling."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint
from typing_extensions import override

from launcher.contracts import Document, Samples, Task, Tokenizer
from launcher.task._export import export
from launcher.task._generation import Taste, generate
from launcher.task._references import byte_references
from launcher.task._token_samples import NO_TARGET, Blocks, Pieces, TokenSamples
from launcher.task._token_stream import read_tokens

_CHUNK = 2**24
"""Logits that are held in float32 at once where they come in a smaller format; 64 MiB."""


class LanguageModel(Task):
    """Predicts each token from those before it.

    Args:
        tokenizer: Its ids are what is predicted.
        seq_len: Tokens in the longest sample.
        packing: Whether samples are blocks over all documents (True) or pieces of each.
        taste: What `sample` draws.
    """

    def __init__(self, tokenizer: Tokenizer, *, seq_len: int, packing: bool, taste: Taste) -> None:
        self._tokenizer = tokenizer
        self._seq_len = seq_len
        self._layout = Blocks if packing else Pieces
        self._taste = taste

    @override
    def samples(self, documents: Sequence[Document]) -> Samples:
        return self._layout(read_tokens(documents, self._tokenizer), self._seq_len)

    @override
    def loss(self, module: nn.Module, inputs: Mapping[str, Tensor]) -> Tensor:
        logits = module(input_ids=inputs["input_ids"], use_cache=False).logits
        return summed_cross_entropy(logits.flatten(0, 1), inputs["labels"].flatten())

    @override
    def scores(self, loss_sum: float, num_targets: int, samples: Samples) -> dict[str, float]:
        """`eval_loss` in nats per token, `eval_perplexity`, `eval_bits_per_byte`.

        Bits per byte count the whole code: what the end tokens cost too, over the bytes of text
        alone.
        """
        loss = loss_sum / num_targets
        scores = {"eval_loss": loss, "eval_perplexity": _exp(loss)}
        if isinstance(samples, TokenSamples) and samples.bytes_per_target:
            scores["eval_bits_per_byte"] = loss / math.log(2) / samples.bytes_per_target
        return scores

    @override
    def references(self, documents: Sequence[Document]) -> Mapping[str, float]:
        return byte_references(documents)

    @override
    def sample(self, module: nn.Module) -> str | None:
        if self._taste.num_tokens == 0:
            return None
        return generate(module, self._tokenizer, self._taste, max_positions=self._seq_len)

    @override
    def export(self, module: nn.Module, folder: Path) -> None:
        export(module, self._tokenizer, folder)


def summed_cross_entropy(logits: Tensor, labels: Tensor) -> Tensor:
    """Cross entropy in float32, summed over the places that have a target.

    Logits in a smaller format are widened a chunk at a time, forward and backward, so that no
    float32 copy of all of them ever exists.

    Args:
        logits: Shape (N, V), any floating format.
        labels: Shape (N,), int64; `NO_TARGET` where there is none.

    Returns:
        Shape (), float32, nats.
    """
    if logits.dtype == torch.float32:
        return _float32_cross_entropy(logits, labels)
    rows = max(1, _CHUNK // logits.shape[-1])
    total = torch.zeros((), dtype=torch.float32, device=logits.device)
    for part, targets in zip(torch.split(logits, rows), torch.split(labels, rows), strict=True):
        # Recomputed in the backward pass instead of kept; it draws no random numbers.
        total = total + checkpoint(
            _float32_cross_entropy, part, targets, use_reentrant=False, preserve_rng_state=False
        )
    return total


def _float32_cross_entropy(logits: Tensor, labels: Tensor) -> Tensor:
    return F.cross_entropy(logits.float(), labels, ignore_index=NO_TARGET, reduction="sum")


def _exp(value: float) -> float:
    try:
        return math.exp(value)
    except OverflowError:
        return math.inf
