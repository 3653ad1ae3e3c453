import json
import subprocess
import sys
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
import yaml
from pydantic import ValidationError

from launcher.accumulation._fixed import FixedMicroBatch
from launcher.accumulation.samples import Samples
from launcher.accumulation.steps import Steps
from launcher.accumulation.tokens import Tokens
from launcher.contracts import AccumulationOption, BatchPlan

CONF = Path(__file__).parents[2] / "conf" / "accumulation"


@pytest.mark.parametrize("path", sorted(CONF.glob("*.yaml")), ids=lambda path: path.stem)
def test_the_presets_suit_the_default_job(path: Path) -> None:
    values = yaml.safe_load(path.read_text())
    module = import_module(f"launcher.accumulation.{values['kind']}")
    option_class = getattr(module, values["kind"].capitalize())
    option: AccumulationOption = option_class.model_validate_json(json.dumps(values))
    plan = option.plan(seq_len=128, ranks=1)
    assert plan.samples_per_step == 8
    assert plan.tokens_per_step == 1024


@pytest.mark.parametrize(
    ("option", "seq_len", "ranks", "micro_batches"),
    [
        (Steps(kind="steps", micro_batch_size=3, steps=5), 128, 7, 5),
        (Samples(kind="samples", micro_batch_size=4, samples_per_step=64), 128, 1, 16),
        (Samples(kind="samples", micro_batch_size=4, samples_per_step=64), 999, 8, 2),
        (Tokens(kind="tokens", micro_batch_size=4, tokens_per_step=2**19), 1024, 8, 16),
        (Tokens(kind="tokens", micro_batch_size=1, tokens_per_step=100), 100, 1, 1),
    ],
)
def test_the_equation_holds(
    option: FixedMicroBatch, seq_len: int, ranks: int, micro_batches: int
) -> None:
    plan = option.plan(seq_len=seq_len, ranks=ranks)
    assert plan == BatchPlan(option.micro_batch_size, micro_batches, ranks, seq_len)
    assert plan.samples_per_step == option.micro_batch_size * micro_batches * ranks


@pytest.mark.parametrize(("ranks", "micro_batch_size"), [(1, 8), (2, 4), (4, 2), (8, 1)])
def test_a_rank_takes_no_more_at_once_than_its_share(ranks: int, micro_batch_size: int) -> None:
    option = Samples(kind="samples", micro_batch_size=8, samples_per_step=8)
    assert option.plan(seq_len=128, ranks=ranks) == BatchPlan(micro_batch_size, 1, ranks, 128)


@pytest.mark.parametrize(
    ("option", "seq_len", "ranks", "message"),
    [
        (
            Samples(kind="samples", micro_batch_size=16, samples_per_step=40),
            128,
            1,
            (
                "samples_per_step must be a multiple of 16 (micro_batch_size 16 × ranks 1), but "
                "is 40; the nearest that fit: 32 and 48; or set micro_batch_size to 10 or 20"
            ),
        ),
        (
            Samples(kind="samples", micro_batch_size=16, samples_per_step=18),
            128,
            4,
            "must be a multiple of 64 (micro_batch_size 16 × ranks 4), but is 18",
        ),
        (
            Tokens(kind="tokens", micro_batch_size=12, tokens_per_step=524288),
            1024,
            8,
            (
                "tokens_per_step must be a multiple of 98304 (micro_batch_size 12 × ranks 8 × "
                "seq_len 1024), but is 524288; the nearest that fit: 491520 and 589824; or set "
                "micro_batch_size to 8 or 16"
            ),
        ),
        (
            Tokens(kind="tokens", micro_batch_size=2, tokens_per_step=1000),
            128,
            1,
            "but is 1000; the nearest that fit: 768 and 1024",
        ),
    ],
)
def test_a_contradiction_names_the_nearest_that_fit(
    option: AccumulationOption, seq_len: int, ranks: int, message: str
) -> None:
    with pytest.raises(ValueError) as refused:
        option.plan(seq_len=seq_len, ranks=ranks)
    assert message in str(refused.value)


@pytest.mark.parametrize(("micro", "samples", "ranks"), [(5, 48, 2), (7, 100, 1), (9, 1024, 4)])
def test_what_the_message_offers_does_fit(micro: int, samples: int, ranks: int) -> None:
    with pytest.raises(ValueError) as refused:
        Samples(kind="samples", micro_batch_size=micro, samples_per_step=samples).plan(
            seq_len=1, ranks=ranks
        )
    _, _, offers = str(refused.value).partition("fit: ")
    totals, _, sizes = offers.partition("; or set micro_batch_size to ")
    for total in totals.split(" and "):
        Samples(kind="samples", micro_batch_size=micro, samples_per_step=int(total)).plan(
            seq_len=1, ranks=ranks
        )
    for size in sizes.split(" or "):
        Samples(kind="samples", micro_batch_size=int(size), samples_per_step=samples).plan(
            seq_len=1, ranks=ranks
        )


@pytest.mark.parametrize(
    ("option_class", "values"),
    [
        (Steps, {"kind": "steps", "micro_batch_size": 0, "steps": 1}),
        (Steps, {"kind": "steps", "micro_batch_size": 1, "steps": 0}),
        (Steps, {"kind": "steps", "micro_batch_size": 1, "steps": 1.0}),
        (Steps, {"kind": "steps", "micro_batch_size": 1, "steps": True}),
        (Steps, {"kind": "samples", "micro_batch_size": 1, "steps": 1}),
        (Steps, {"kind": "steps", "micro_batch_size": 1}),
        (Samples, {"kind": "samples", "micro_batch_size": 1, "samples_per_step": "16"}),
        (Tokens, {"kind": "tokens", "micro_batch_size": 1, "tokens_per_step": 1, "steps": 1}),
    ],
)
def test_bad_values_do_not_validate(
    option_class: type[AccumulationOption], values: dict[str, Any]
) -> None:
    with pytest.raises(ValidationError):
        option_class.model_validate_json(json.dumps(values))


def test_no_kind_imports_torch() -> None:
    program = (
        "import sys, launcher.accumulation.steps, launcher.accumulation.samples\n"
        "import launcher.accumulation.tokens\n"
        "assert not {'torch', 'hydra', 'omegaconf'} & set(sys.modules)\n"
    )
    subprocess.run([sys.executable, "-c", program], check=True, cwd=CONF.parents[1])


def test_fewer_ranks_keep_the_global_batch() -> None:
    option = Steps(kind="steps", micro_batch_size=3, steps=2)
    plan = option.plan(seq_len=128, ranks=6)
    changed = option.resized(plan, 4)
    assert changed.plan(seq_len=128, ranks=4) == BatchPlan(3, 3, 4, 128)
    with pytest.raises(ValueError, match=r"multiple of 15 .* ranks 5\), but is 36"):
        option.resized(plan, 5)
    samples = Samples(kind="samples", micro_batch_size=3, samples_per_step=36)
    assert samples.resized(plan, 4).plan(seq_len=128, ranks=4).samples_per_step == 36
