from __future__ import annotations

import pytest

from launcher.config.load import load_config
from launcher.errors import ConfigError

OK = "accumulation.samples_per_step=32"
FILES = ("csv", "jsonl", "parquet", "text", "tsv")


@pytest.mark.parametrize(
    ("words", "key", "message"),
    [
        (["launch.processes=3", "parallelism.kind=x"], "parallelism.kind", "no such kind"),
        (["accumulation.samples_per_step=17"], "accumulation", "must be a multiple of 8"),
        (
            ["launch.processes=2", OK],
            "parallelism.kind",
            "launch starts 2 ranks; choose parallelism=ddp",
        ),
        (
            ["task.seq_len=1025"],
            "task.seq_len",
            "must be at most 1024, the positions that the model has",
        ),
        (["max_steps=null"], "max_steps", "would never end"),
        (
            ["optimizer=paged_adamw_8bit", "launch.device=cpu"],
            "optimizer.paged",
            "adamw_8bit pages on CUDA only; use optimizer=adamw_8bit (launch.device=cpu)",
        ),
        (
            ["optimizer.implementation=fused", "optimizer=adagrad", "launch.device=cuda"],
            "optimizer.implementation",
            "cuda has no fused adagrad; use auto",
        ),
        (
            ["optimizer.capturable=true", "launch.device=cpu"],
            "optimizer.capturable",
            "nothing captures steps on the CPU",
        ),
        (["precision=tf32", "launch.device=cpu"], "precision.kind", "tf32 needs cuda"),
        (["scheduler.warmup_steps=1201"], "scheduler.warmup_steps", "whole run has 1200 steps"),
        (
            ["scheduler.warmup_steps='1300 steps'"],
            "scheduler.warmup_steps",
            "whole run has 1200 steps",
        ),
        (
            ["scheduler=exponential", "scheduler.gamma=1000.0", "scheduler.decay_steps=1"],
            "scheduler.gamma",
            "no finite number after 1200",
        ),
        (
            ["optimizer=schedule_free_adamw", "scheduler=cosine"],
            "scheduler.kind",
            "choose scheduler=constant",
        ),
        (
            ["optimizer=adafactor", "optimizer.warmup_init=true", "scheduler=cosine"],
            "optimizer.warmup_init",
            "is the start of the relative step, which is not taken here",
        ),
    ],
)
def test_broken(words: list[str], key: str, message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        load_config(words)
    assert key in {problem.key for problem in caught.value.problems}
    assert message in str(caught.value)


@pytest.mark.parametrize(
    "words",
    [
        ["task.seq_len=1024"],
        ["max_steps=null", "max_epochs=0.5"],
        ["max_steps=5", "max_epochs=3"],
        # Whether a warm-up in epochs fits is known only with the data.
        ["scheduler.warmup_steps='2 epochs'"],
        ["scheduler.warmup_steps=1201", "max_steps=null", "max_epochs=1"],
        ["scheduler.warmup_steps=1200"],
        ["optimizer=schedule_free_adamw"],
        ["optimizer=adafactor", "optimizer.warmup_init=true"],
        ["optimizer.implementation=fused", "optimizer=adagrad", "launch.device=cpu"],
        ["optimizer.capturable=true", "launch.device=cuda"],
        # Which device auto means, the machine decides that the ranks run on.
        ["optimizer=paged_adamw_8bit"],
    ],
)
def test_kept(words: list[str]) -> None:
    load_config(words)


def test_every_preset_composes_and_keeps_the_rules_of_its_own_group() -> None:
    """A preset may break a rule with the packaged neighbours, but none about itself."""
    from launcher.config.paths import CONF, RECIPES
    from launcher.contracts import GROUPS

    needed = {
        "hf": ["model.path=/nowhere", "optimizer.lr=1e-5"],
        "masked_lm": ["model=hf", "model.path=/nowhere", "optimizer.lr=1e-5"],
        "arrow": ["data.path=/nowhere"],
        **{name: ["data.files=/nowhere/*.txt"] for name in FILES},
        "text_finetune": ["model.path=/nowhere", "data.files=/nowhere/*.txt"],
        "lora_finetune": ["model.path=/nowhere", "data.files=/nowhere/*.txt"],
    }
    files = [path for group in GROUPS for path in (CONF / group).glob("[!_]*.yaml")]
    about_neighbours = {"scheduler", "scheduler.kind", "max_grad_norm", "parallelism.kind"}
    for path in [*files, *RECIPES.glob("*.yaml")]:
        group = "recipe" if path.parent == RECIPES else path.parent.name
        try:
            load_config([f"{group}={path.stem}", *needed.get(path.stem, [])])
        except ConfigError as error:
            broken = {problem.key for problem in error.problems}
            if (
                group not in {"optimizer", "scheduler", "parallelism", "launch"}
                or broken - about_neighbours
            ):
                pytest.fail(f"{path}: {error}")
