"""A third party's optimizer that takes shards for tensors: Transformers' own Adafactor."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from transformers.optimization import Adafactor  # before ranks are forked
from typing_extensions import override

from launcher.contracts import OptimizerOption, OptimizerTarget, ParallelismOption
from launcher.optimizer import param_groups
from launcher.verify.compare import Difference, Reference, first_difference, floor_of
from launcher.verify.measure import limits_of
from tests.contract.engine_bench import Case, optimizer_option, option, run_cases
from tests.distributed import run_on_ranks
from tests.verify.mutations import record

if TYPE_CHECKING:
    import torch


class TheirAdafactor(OptimizerOption):
    """Adafactor of transformers; it says wrongly that it works on any part of a tensor."""

    elementwise: ClassVar[bool] = True

    @override
    def build(self, target: OptimizerTarget) -> torch.optim.Optimizer:
        their_options = {"scale_parameter": False, "relative_step": False, "warmup_init": False}
        built: torch.optim.Optimizer = Adafactor(
            param_groups(target, self), lr=self.lr, **their_options
        )
        return built


def case_of(preset: str, accumulation: int = 1) -> Case:
    ranks = 1 if preset == "single" else 2
    words = f"parallelism={preset}", f"launch.processes={ranks}"
    parallelism: ParallelismOption = option("parallelism", *words)
    base = optimizer_option("sgd")
    optimizer = TheirAdafactor(
        kind="their_adafactor", lr=base.lr, weight_decay=base.weight_decay, groups=base.groups
    )
    return Case(parallelism=parallelism, optimizer=optimizer, accumulation=accumulation)


def test_adafactor_of_transformers_under_zero_is_found() -> None:
    [[base, cut]] = run_on_ranks(run_cases, [case_of("single"), case_of("single", 4)], ranks=1)
    run, second = record(base, 0, base.weights), record(cut, 0, base.weights)
    floor = floor_of(run, second, "eval_loss")
    reference = Reference(run, floor, limits_of("float32"), "eval_loss")
    cases = [case_of("ddp"), case_of("zero2")]
    found: list[Difference | None] = []
    for by_rank in zip(*run_on_ranks(run_cases, cases), strict=True):
        ranks = [record(own, rank, base.weights) for rank, own in enumerate(by_rank)]
        found.append(first_difference(ranks, reference))
    whole, shards = found
    # On whole tensors it is the same optimizer everywhere.
    assert whole is None
    assert shards is not None
    assert shards.quantity in {"loss", "norm", "weights"}
