"""The one workload that every peer runs: a tiny GPT on random tokens, AdamW, cosine, clipping.

Everything that defines "the same work" is here; the peers differ only in who drives the loop. The
probe checks that all of them end with the same parameters.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from typing_extensions import override


@dataclass(frozen=True)
class Size:
    """Shape of model and micro-batch."""

    layers: int
    width: int
    heads: int
    seq_len: int
    batch: int
    vocabulary: int


SIZES = {
    # As small as it gets: nearly pure framework overhead.
    "nano": Size(layers=1, width=16, heads=1, seq_len=8, batch=2, vocabulary=64),
    "tiny": Size(layers=2, width=64, heads=2, seq_len=64, batch=8, vocabulary=256),
    "mid": Size(layers=4, width=256, heads=4, seq_len=256, batch=4, vocabulary=2048),
}


def arguments() -> argparse.Namespace:
    """The flags of every peer; torch is seeded and its threads are set."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--size", choices=sorted(SIZES), default="tiny")
    parser.add_argument("--accumulation", type=int, default=1)
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--log-every", type=int, default=10)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--lr", type=float, default=1e-3)
    parser.add_argument("--weight-decay", type=float, default=0.01)
    parser.add_argument("--clip", type=float, default=1.0)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--folder", default=".")
    parser.add_argument("--variant", default="")
    flags = parser.parse_args()
    torch.set_num_threads(flags.threads)
    torch.manual_seed(flags.seed)
    return flags


class Block(nn.Module):
    """Attention and a feed-forward, both behind a norm."""

    def __init__(self, size: Size) -> None:
        super().__init__()
        self.heads = size.heads
        self.ln1, self.ln2 = nn.LayerNorm(size.width), nn.LayerNorm(size.width)
        self.qkv = nn.Linear(size.width, 3 * size.width)
        self.proj = nn.Linear(size.width, size.width)
        self.fc = nn.Linear(size.width, 4 * size.width)
        self.out = nn.Linear(4 * size.width, size.width)

    @override
    def forward(self, x_BTD: Tensor) -> Tensor:
        b, t, d = x_BTD.shape
        qkv = self.qkv(self.ln1(x_BTD)).view(b, t, 3, self.heads, d // self.heads)
        q, k, v = qkv.permute(2, 0, 3, 1, 4).unbind(0)
        y = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        x_BTD = x_BTD + self.proj(y.transpose(1, 2).reshape(b, t, d))  # noqa: N806
        hidden: Tensor = x_BTD + self.out(F.gelu(self.fc(self.ln2(x_BTD))))
        return hidden


class GPT(nn.Module):
    """A decoder with tied embeddings."""

    def __init__(self, size: Size) -> None:
        super().__init__()
        self.tok = nn.Embedding(size.vocabulary, size.width)
        self.pos = nn.Embedding(size.seq_len, size.width)
        self.blocks = nn.ModuleList(Block(size) for _ in range(size.layers))
        self.ln_f = nn.LayerNorm(size.width)
        self.register_buffer("idx", torch.arange(size.seq_len), persistent=False)
        for module in self.modules():
            if isinstance(module, nn.Linear | nn.Embedding):
                nn.init.normal_(module.weight, std=0.02)
            if isinstance(module, nn.Linear):
                nn.init.zeros_(module.bias)

    def reset_parameters(self) -> None:
        """Fill what only this module holds, after a build on the meta device."""
        positions = self.get_buffer("idx")
        positions.copy_(torch.arange(len(positions)))

    @override
    def forward(self, input_ids: Tensor, labels: Tensor | None = None) -> dict[str, Tensor]:
        assert labels is not None
        x = self.tok(input_ids) + self.pos(self.get_buffer("idx"))
        for block in self.blocks:
            x = block(x)
        logits = F.linear(self.ln_f(x), self.tok.weight)
        return {"loss": F.cross_entropy(logits.view(-1, logits.size(-1)), labels.view(-1))}


class RandomTokens(torch.utils.data.Dataset[dict[str, Tensor]]):
    """Rows of random ids, held in one tensor."""

    def __init__(self, size: Size, rows: int, seed: int = 1234) -> None:
        generator = torch.Generator().manual_seed(seed)
        self.data = torch.randint(size.vocabulary, (rows, size.seq_len + 1), generator=generator)

    def __len__(self) -> int:
        return self.data.shape[0]

    @override
    def __getitem__(self, index: int) -> dict[str, Tensor]:
        row = self.data[index]
        return {"input_ids": row[:-1], "labels": row[1:]}


class BatchedTokens(RandomTokens):
    """The same rows, a batch fetched in one gather."""

    def __getitems__(self, indices: Sequence[int]) -> Any:
        rows = self.data[indices]
        return {"input_ids": rows[:, :-1].contiguous(), "labels": rows[:, 1:].contiguous()}


def build(flags: argparse.Namespace, *, batched: bool = False) -> tuple[Size, GPT, RandomTokens]:
    """Size, model and rows: functions of the seed alone."""
    size = SIZES[flags.size]
    torch.manual_seed(flags.seed)
    model = GPT(size)
    rows = flags.steps * flags.accumulation * size.batch
    return size, model, (BatchedTokens if batched else RandomTokens)(size, rows)


def optimizer(model: nn.Module, flags: argparse.Namespace) -> torch.optim.AdamW:
    """Fused AdamW; vectors do not decay."""
    params = [p for p in model.parameters() if p.requires_grad]
    groups = [
        {"params": [p for p in params if p.ndim >= 2], "weight_decay": flags.weight_decay},
        {"params": [p for p in params if p.ndim < 2], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, lr=flags.lr, betas=(0.9, 0.999), eps=1e-8, fused=True)


def cosine(step: int, steps: int) -> float:
    """Half a cosine from 1 to 0."""
    return max(0.0, 0.5 * (1.0 + math.cos(math.pi * step / max(1, steps))))
