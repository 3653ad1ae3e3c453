"""Training of a tiny Llama through the parts of a run: what memory and speed options are tested on.

The config is composed as the command line does it, and built as every rank does it.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import AutoModelForCausalLM, LlamaForCausalLM  # noqa: F401 - before ranks are forked
from typing_extensions import override

from launcher.config.load import load_config
from launcher.config.schema import RunConfig
from launcher.contracts import Layout, Request, World
from launcher.parallelism import _fsdp_engine  # noqa: F401 - likewise
from launcher.training import rng
from launcher.training.parts import Parts, build, windows_of
from tests.toy.options import ToyData

TINY = [
    *["model=llama", "model.hidden_size=16", "model.intermediate_size=24", "model.num_layers=3"],
    *["model.num_heads=2", "model.num_kv_heads=1", "model.max_positions=64", "task.seq_len=16"],
    *["task.sample_tokens=0", "scheduler=constant", "launch.device=cpu", "logging=quiet"],
    *["accumulation.micro_batch_size=2", "accumulation.samples_per_step=4", "checkpoint=none"],
]
ALONE = World(rank=0, size=1, local_rank=0, device="cpu", layout=Layout())


@dataclass
class Trained:
    """Results of some steps.

    Attributes:
        losses: Mean loss of each window.
        norms: Gradient norm of each step.
        score: Mean of the held-out losses after the last step.
        weights: Full parameters on rank 0 by name; empty elsewhere.
    """

    losses: list[float]
    norms: list[float]
    score: float
    weights: dict[str, Tensor]


@cache
def tiny(*words: str) -> RunConfig:
    """Return the config of the tiny job with overrides."""
    found = load_config([*TINY, *words]).config
    return found.model_copy(update={"data": ToyData(kind="toy", documents=50)})


def built(config: RunConfig, world: World = ALONE) -> Parts:
    """Build the parts of a run."""
    rng.seed_everything(config.seed)
    return build(config, world, lambda: Request.NONE)


def trained(
    config: RunConfig,
    world: World = ALONE,
    *,
    steps: int = 3,
    between: Callable[[int, Parts], None] = lambda step, parts: None,
) -> Trained:
    """Train for some steps; `between` is called after each."""
    parts = built(config, world)
    engine = parts.engine
    windows = windows_of(config, parts, world)
    losses, norms = [], []
    try:
        for step in range(steps):
            rng.seed_step(0, world.data_rank, step)
            losses.append(engine.forward_backward(next(windows)).item())
            norms.append(engine.update(parts.schedule.lr(step, {})).grad_norm.item())
            between(step, parts)
        found = scores(parts, world)
        weights: dict[str, Tensor] = {}
        with engine.full_module() as module:
            if module is not None:
                weights = {k: v.detach().clone() for k, v in module.named_parameters()}
    finally:
        engine.close()
    return Trained(losses, norms, found, weights)


def scores(parts: Parts, world: World = ALONE) -> float:
    """Return the mean held-out loss of two samples for each rank."""
    batch = parts.validation.micro_batch([2 * world.data_rank, 2 * world.data_rank + 1], 0)
    found = [each["loss"] for each in parts.engine.evaluate([batch], parts.task.predict)]
    return float(torch.cat(found).mean())


def largest_difference(one: Trained, other: Trained) -> float:
    """Return the largest relative difference of losses, norms and scores."""
    pairs = zip(
        [*one.losses, *one.norms, one.score], [*other.losses, *other.norms, other.score],
        strict=True,
    )  # fmt: skip
    return max(abs(a - b) / abs(a) for a, b in pairs)


class Operations(TorchDispatchMode):  # type: ignore[no-untyped-call] # torch types neither
    """Counts the operations that are executed."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call] # likewise
        self.counts: dict[str, int] = {}

    @override
    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = str(func)
        self.counts[name] = self.counts.get(name, 0) + 1
        return func(*args, **(kwargs or {}))


@contextmanager
def counting_saved_bytes() -> Any:
    """Yield a list with the bytes that are kept between forward and backward pass."""
    # By storage, because several operations save views of one tensor.
    found: dict[int, int] = {}
    held: list[Tensor] = []

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        found[storage.data_ptr()] = storage.nbytes()
        held.append(tensor.detach())
        return tensor.detach()

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        yield found
