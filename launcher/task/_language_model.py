"""Task of causal language modelling."""

from __future__ import annotations

import logging
import lzma
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint
from typing_extensions import override

from launcher.contracts import Column, Head, Metrics, Records, Samples, Task, Tokenizer
from launcher.errors import DataError
from launcher.task._chunked_head import chunk_head
from launcher.task._columns import TEXT
from launcher.task._export import export
from launcher.task._generation import GenerationSettings, generate
from launcher.task._token_samples import NO_TARGET, PackedSamples, TokenSamples, UnpackedSamples
from launcher.task._token_stream import read_tokens

_log = logging.getLogger("trainctl.task")

# Number of logits in float32 at once, where the model returns a smaller format: 64 MiB.
_CHUNK = 2**24
# Limit of the text that is compressed with xz, in bytes: xz compresses about 1.5 MB per second.
_XZ_LIMIT = 2**20


class LanguageModel(Task):
    """Predicts each token from the previous ones; see the options in `causal_lm`."""

    head = Head("causal_lm")
    columns: tuple[str, ...] = ("text",)

    def __init__(
        self,
        tokenizer: Tokenizer,
        *,
        seq_len: int,
        packing: bool,
        generation: GenerationSettings,
        add_bos_token: bool | None = None,
        text: Column = TEXT,
        loss_chunk_tokens: int | None = None,
    ) -> None:
        self.columns = (text.name,)
        self._text = text
        self._tokenizer = tokenizer
        self._seq_len = seq_len
        self._layout = PackedSamples if packing else UnpackedSamples
        self._generation = generation
        self._bos_id = _bos_id(tokenizer, add_bos_token)
        self._is_lossy = False
        self._loss_chunk_tokens = loss_chunk_tokens

    @override
    def prepare_module(self, module: nn.Module) -> None:
        if self._loss_chunk_tokens is not None:
            chunk_head(module, self._loss_chunk_tokens)

    @override
    def samples(self, records: Records) -> Samples:
        stream = read_tokens(records, self._tokenizer, bos_id=self._bos_id, text=self._text)
        if stream.lossy and not self._is_lossy:
            self._is_lossy = True
            _log.warning(
                "the tokenizer loses text (%s), so a model of its tokens has less to predict than "
                "the bytes hold: eval_bits_per_byte is left out",
                stream.lossy,
            )
        return self._layout(stream, self._seq_len)

    @override
    def forward_inputs(self, inputs: Mapping[str, Tensor]) -> Mapping[str, Any]:
        # Keys and values are needed for generation only; in training they cost memory.
        # `position_ids` restart at each sample of a packed row.
        names = ("input_ids", "position_ids")
        found: dict[str, Any] = {name: inputs[name] for name in names if name in inputs}
        if self._loss_chunk_tokens is not None:
            found["loss_labels"] = inputs["labels"]
        return {**found, "use_cache": False}

    @override
    def loss(self, outputs: Any, inputs: Mapping[str, Tensor]) -> Tensor:
        if self._loss_chunk_tokens is not None:
            losses: Tensor = outputs.logits
            return losses.sum()
        return summed_cross_entropy(outputs.logits.flatten(0, 1), inputs["labels"].flatten())

    @override
    def predict(self, outputs: Any, inputs: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
        labels = inputs["labels"]
        losses = outputs.logits
        if self._loss_chunk_tokens is None:
            losses = token_cross_entropy(losses.flatten(0, 1), labels.flatten())
        return {
            "loss": losses.view_as(labels).sum(dim=1),
            "num_targets": (labels != NO_TARGET).sum(dim=1),
        }

    @override
    def metrics(self, samples: Samples) -> Metrics:
        known = samples.bytes_per_target if isinstance(samples, TokenSamples) else 0.0
        return LanguageModelMetrics(known)

    @override
    def references(self, records: Records) -> Mapping[str, float]:
        # They are baselines of bits per byte, which a lossy tokenizer does not have.
        return {} if self._is_lossy else byte_references(records, self._text)

    @override
    def sample(self, module: nn.Module) -> str | None:
        if self._generation.num_tokens == 0:
            return None
        return generate(module, self._tokenizer, self._generation, bos_id=self._bos_id)

    @override
    def export(self, module: nn.Module, folder: Path) -> None:
        export(module, self._tokenizer, folder)


class LanguageModelMetrics(Metrics):
    """`eval_loss` in nats per token, `eval_perplexity`, and `eval_bits_per_byte` if known."""

    # Bits per byte count the bits of the end tokens, but only the bytes of the text.

    def __init__(self, bytes_per_target: float) -> None:
        self._bytes_per_target = bytes_per_target
        self._losses: list[Tensor] = []
        self._counts: list[Tensor] = []
        self.names = ["eval_loss", "eval_perplexity"]
        if bytes_per_target:
            self.names.append("eval_bits_per_byte")

    @override
    def add(self, predictions: Mapping[str, Tensor]) -> None:
        self._losses.append(predictions["loss"])
        self._counts.append(predictions["num_targets"])

    @override
    def compute(self) -> dict[str, float]:
        # In float64, because float32 loses digits in a sum of millions of losses.
        num_targets = int(torch.cat(self._counts).sum())
        loss = math.fsum(torch.cat(self._losses).tolist()) / num_targets
        values = [loss, _exp(loss)]
        if self._bytes_per_target:
            values.append(loss / math.log(2) / self._bytes_per_target)
        return dict(zip(self.names, values, strict=True))


def _bos_id(tokenizer: Tokenizer, add: bool | None) -> int | None:
    if add and tokenizer.bos_id is None:
        raise DataError(
            "task.add_bos_token must be null or false, because the tokenizer has no bos_token; or "
            "name one in its tokenizer_config.json"
        )
    adds = tokenizer.adds_bos if add is None else add
    # If the same token begins and ends texts, the end token of the previous record is enough.
    return tokenizer.bos_id if adds and tokenizer.bos_id != tokenizer.eos_id else None


def token_cross_entropy(logits: Tensor, labels: Tensor) -> Tensor:
    """Return the cross entropy of each token in nats, without gradient; 0 without a target.

    Args:
        logits: Shape (N, V), any floating format.
        labels: Shape (N,), int64; `NO_TARGET` for no target.
    """
    rows = len(labels) if logits.dtype == torch.float32 else max(1, _CHUNK // logits.shape[-1])
    parts = zip(torch.split(logits, rows), torch.split(labels, rows), strict=True)
    return torch.cat([_float32_cross_entropy(part, own, "none") for part, own in parts])


def summed_cross_entropy(logits: Tensor, labels: Tensor) -> Tensor:
    """Return the cross entropy in nats, summed over all targets. Shape (), float32.

    Args:
        logits: Shape (N, V), any floating format.
        labels: Shape (N,), int64; `NO_TARGET` for no target.
    """
    # Smaller formats are converted chunk by chunk, forward and backward: a float32 copy of all
    # logits is often the largest tensor of a step.
    if logits.dtype == torch.float32:
        return _float32_cross_entropy(logits, labels)
    rows = max(1, _CHUNK // logits.shape[-1])
    total = torch.zeros((), dtype=torch.float32, device=logits.device)
    for part, targets in zip(torch.split(logits, rows), torch.split(labels, rows), strict=True):
        # Recomputed in the backward pass, where autograd would keep every chunk. Without random
        # numbers, so that no generator state has to be saved.
        total = total + checkpoint(
            _float32_cross_entropy, part, targets, use_reentrant=False, preserve_rng_state=False
        )
    return total


def _float32_cross_entropy(logits: Tensor, labels: Tensor, reduction: str = "sum") -> Tensor:
    return F.cross_entropy(logits.float(), labels, ignore_index=NO_TARGET, reduction=reduction)


def _exp(value: float) -> float:
    try:
        return math.exp(value)
    except OverflowError:
        return math.inf


def byte_references(records: Records, text: Column = TEXT) -> dict[str, float]:
    """Return bits per byte of two baselines on the text: unigram entropy, and `xz -9`."""
    counts = np.zeros(256, dtype=np.int64)
    head = bytearray()
    for index in range(len(records)):
        content = text.read(records, index).encode("utf-8")
        counts += np.bincount(np.frombuffer(content, dtype=np.uint8), minlength=256)
        head += content[: _XZ_LIMIT - len(head)]
    if not head:
        return {}
    shares = counts[counts > 0] / counts.sum()
    return {
        "unigram_bits_per_byte": float(-(shares * np.log2(shares)).sum()),
        "xz_bits_per_byte": 8 * len(_xz(head)) / len(head),
    }


def _xz(content: bytearray) -> bytes:
    # Preset 9 allocates a dictionary of 64 MiB, but a text uses no more than its length.
    size = max(len(content), 4096)
    filters = [{"id": lzma.FILTER_LZMA2, "preset": 9, "dict_size": size}]
    return lzma.compress(content, format=lzma.FORMAT_XZ, check=lzma.CHECK_CRC64, filters=filters)
