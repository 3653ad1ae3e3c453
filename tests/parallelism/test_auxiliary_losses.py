"""The router loss of a mixture of experts in the loss of every engine, against transformers."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import pytest
import torch
from transformers import MixtralConfig, MixtralForCausalLM

from launcher.contracts import (
    BatchPlan,
    EngineParts,
    OptimizerOption,
    Request,
    Samples,
    Window,
    World,
    split,
)
from launcher.model._network import auxiliary_losses
from launcher.model._tokenizers import ByteTokenizer
from launcher.parallelism import DDPEngine, SingleEngine
from launcher.task import GenerationSettings, LanguageModel
from launcher.training.batches import deal
from tests.contract.engine_bench import CLIPPINGS, InFormat, optimizer_option
from tests.distributed import run_on_ranks
from tests.parallelism.test_ddp import ddp
from tests.toy.shared import Texts

TEXTS = ("a short text", "b", "a third text that is a little longer than the others", "x" * 30)
CHOSEN = (0, 1, 2, 4, 5)


def mixtral() -> Any:
    torch.manual_seed(0)
    config = MixtralConfig(
        vocab_size=384,
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=2,
        num_local_experts=4,
        output_router_logits=True,
        router_aux_loss_coef=0.3,
    )
    return MixtralForCausalLM(config)


def language_model(*, packing: bool) -> LanguageModel:
    settings = GenerationSettings("", 0, 0.0)
    return LanguageModel(ByteTokenizer(), seq_len=16, packing=packing, generation=settings)


def parts(module: Any, world: World, optimizer: OptimizerOption | None = None) -> EngineParts:
    return EngineParts(
        module=module,
        task=language_model(packing=False),
        optimizer=optimizer or optimizer_option("adamw"),
        precision=InFormat(kind="in_format", float64=False),
        clipping=CLIPPINGS["norm"],
        skip_nonfinite=False,
        world=world,
        plan=BatchPlan(1, 1, world.size, 16),
        requests=lambda: Request.NONE,
        auxiliary_losses=partial(auxiliary_losses, module),
    )


def window(samples: Samples, cut: Sequence[Sequence[int]]) -> Window:
    micro_batches = [samples.micro_batch(indices, 0) for indices in cut]
    return Window(micro_batches, len(CHOSEN), samples.num_targets(CHOSEN))


@pytest.mark.parametrize("packing", [True, False])
@pytest.mark.parametrize("size", [5, 2, 1])
def test_the_loss_is_that_of_transformers_weighted_by_targets(size: int, packing: bool) -> None:
    """Each micro-batch's own loss by transformers, averaged by its number of targets."""
    samples = language_model(packing=packing).samples(Texts(*TEXTS))
    data = window(samples, [CHOSEN[i : i + size] for i in range(0, len(CHOSEN), size)])
    theirs = mixtral()
    total = router = torch.zeros(())
    for each in data.micro_batches:
        labels = each.inputs["labels"]
        outputs = theirs(each.inputs["input_ids"], labels=labels, shift_labels=labels)
        total = total + outputs.loss * each.num_targets / data.num_targets
        router = router + 0.3 * outputs.aux_loss * each.num_targets / data.num_targets
    total.backward()  # type: ignore[no-untyped-call]
    engine = SingleEngine(parts(mixtral(), World(0, 1, 0, "cpu")))
    loss = engine.forward_backward(data)
    torch.testing.assert_close(loss, total.detach())
    for a, b in zip(engine.module.parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(a.grad, b.grad)
    logged = engine.update(1e-3).auxiliary_losses
    assert set(logged) == {"router_aux_loss"}
    torch.testing.assert_close(logged["router_aux_loss"], router.detach())
    assert router > 0.3


def on_rank(optimizer: OptimizerOption, ranks: int, rank: int) -> tuple[float, float]:
    world = World(rank, ranks, rank, "cpu", ddp().layout(ranks))
    build = ddp().build if ranks > 1 else SingleEngine
    engine = build(parts(mixtral(), world, optimizer))
    assert isinstance(engine, DDPEngine if ranks > 1 else SingleEngine)
    samples = language_model(packing=False).samples(Texts(*TEXTS))
    cut = deal(split(CHOSEN, 1), data_ranks=ranks, data_rank=rank)
    loss = engine.forward_backward(window(samples, cut))
    logged = engine.update(1e-3).auxiliary_losses["router_aux_loss"]
    engine.close()
    return loss.item(), logged.item()


def on_this_rank(optimizer: OptimizerOption, ranks: int) -> tuple[float, float]:
    import torch.distributed as dist

    return on_rank(optimizer, ranks, dist.get_rank())


def test_ranks_report_the_same_losses_as_one() -> None:
    optimizer = optimizer_option("adamw")
    expected = on_rank(optimizer, 1, 0)
    # Five samples on two ranks: the last micro-batch of the second rank is empty.
    for found in run_on_ranks(on_this_rank, optimizer, 2):
        assert found == pytest.approx(expected, rel=1e-6)
