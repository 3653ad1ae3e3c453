"""Every leaf of the options that change the network, or its batches, has an effect."""

from __future__ import annotations

import os
from functools import partial
from typing import Any

import pytest
import torch
from torch import nn
from typing_extensions import override

from launcher.blocks import give_class
from launcher.contracts import BatchPlan
from tests.contract.witness import Hint, option_of, preset, presets, without_witness
from tests.levers import Operations, counting_saved_bytes
from tests.networks import small_llama

IDS = torch.arange(64).view(2, 32)


def computed(option: Any) -> Any:
    """The operations of a step, what is kept for its backward pass, and where."""
    torch.manual_seed(0)
    network = small_llama(num_hidden_layers=4)
    option.apply(network)
    with Operations() as operations:
        with counting_saved_bytes() as saved:
            loss = network(input_ids=IDS, labels=IDS, use_cache=False).loss
        loss.backward()
    hosts = [getattr(layer, "host", None) for layer in network.model.layers]
    moved = [None if host is None else vars(host)["pin_memory"] for host in hosts]
    return operations.counts, sum(saved.values()), moved


ACTIVATION_HINTS = {
    "save": Hint((["aten.mm"], ["attention"])),
    "min_bytes": Hint((0, 10**9)),
    "blocks": Hint((["layers.1"],)),
}


@pytest.mark.parametrize("name", sorted({*presets("activation")} - {"none"}))
def test_every_leaf_changes_what_is_kept(name: str) -> None:
    make = partial(option_of, "activation")
    found = without_witness(make, preset("activation", name), {"": computed}, ACTIVATION_HINTS)
    assert found == []


def compiled(option: Any) -> Any:
    """Modules that are compiled, their arguments, and the folder of the compiler's results."""
    made: list[Any] = []

    class Noted(nn.Module):
        @override
        def compile(self, *args: Any, **options: Any) -> None:
            made.append((args, options))

    network = small_llama(num_hidden_layers=2)
    for module in (network, *network.model.layers):
        give_class(module, Noted)
    before = os.environ.pop("TORCHINDUCTOR_CACHE_DIR", None)
    option.apply(network)
    folder = os.environ.pop("TORCHINDUCTOR_CACHE_DIR", None)
    if before is not None:
        os.environ["TORCHINDUCTOR_CACHE_DIR"] = before
    return made, folder


COMPILE_HINTS = {
    "blocks": Hint((["layers.1"],)),
    "backend": Hint(("eager",)),
    "cache_dir": Hint(("cache",)),
}


@pytest.mark.parametrize("name", sorted({*presets("compile")} - {"off"}))
def test_every_leaf_changes_what_is_compiled(name: str) -> None:
    make = partial(option_of, "compile")
    assert without_witness(make, preset("compile", name), {"": compiled}, COMPILE_HINTS) == []


def batches(option: Any) -> Any:
    """The order of an epoch, and the micro-batches of a window."""
    lengths = (torch.randperm(600, generator=torch.Generator().manual_seed(0)) + 1).numpy()
    plan = BatchPlan(micro_batch_size=2, micro_batches=4, ranks=1, seq_len=600)
    order = option.order(lengths, samples_per_step=8, seed=0).tolist()
    return order, option.micro_batches(order[:8], lengths, plan)


@pytest.mark.parametrize("name", sorted({*presets("batching")} - {"random"}))
def test_every_leaf_changes_the_batches(name: str) -> None:
    make = partial(option_of, "batching")
    hints = {"tokens_per_micro_batch": Hint((600, 4000))}
    assert without_witness(make, preset("batching", name), {"": batches}, hints) == []


class Elsewhere:
    """Stands for a tensor of another device; its copies are named by their device."""

    device, dtype = "cuda", torch.float32

    def detach(self) -> Elsewhere:
        return self

    def to(self, *, device: str, **_: Any) -> str:
        return device


def averaged(option: Any) -> Any:
    """The averages of a moving weight, and where and when they are used."""
    param = torch.zeros(3)
    average = option.build({"w": param})
    found = []
    for value in range(1, 5):
        param.fill_(value)
        average.update()
        found.append(average.averages()["w"].tolist())
    place = option.build({"w": Elsewhere()}).averages()["w"]
    return found, average.in_evaluation, average.in_export, place


@pytest.mark.parametrize("name", sorted({*presets("ema")} - {"off"}))
def test_every_leaf_changes_the_average(name: str) -> None:
    make = partial(option_of, "ema")
    hints = {"decay": Hint(where={"warmup": False})}
    assert without_witness(make, preset("ema", name), {"": averaged}, hints) == []
