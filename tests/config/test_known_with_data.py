"""Problems that only the size of the data set, or the scores of an evaluation, show."""

from __future__ import annotations

from pathlib import Path

import pytest

from launcher.config import derive
from launcher.config.load import load_config
from launcher.config.rules import unknown_scores
from launcher.errors import ConfigError

SCORES = ("eval_loss", "eval_perplexity")


def test_a_schedule_longer_than_the_run_is_refused() -> None:
    words = ["max_steps=null", "max_epochs=0.5", "scheduler.warmup_steps=9"]
    config = load_config(words).config
    with pytest.raises(ConfigError) as refused:
        derive.schedule(config, derive.horizon(config, 80))
    [problem] = refused.value.problems
    assert problem.key == "scheduler.warmup_steps"
    assert "is 9, but the whole run has 5 steps" in problem.message


@pytest.mark.parametrize(
    ("words", "key", "message"),
    [
        (
            ["scheduler=reduce_on_plateau", "scheduler.metric=eval_bleu"],
            "scheduler.metric",
            "is eval_bleu; it has: eval_bits_per_byte, eval_loss, eval_perplexity",
        ),
        (
            ["scheduler=chained", "scheduler.parts.1.metric=eval_los"],
            "scheduler.parts.1.metric",
            "is eval_los; did you mean 'eval_loss'?",
        ),
    ],
)
def test_a_score_that_no_evaluation_has_is_refused(
    words: list[str], key: str, message: str
) -> None:
    with pytest.raises(ConfigError) as refused:
        load_config(words)
    [problem] = refused.value.problems
    assert problem.key == key
    assert message in problem.message


def test_what_fits_passes() -> None:
    words = ["scheduler=reduce_on_plateau", "scheduler.metric=eval_perplexity", "max_steps=10"]
    config = load_config(words).config
    derive.schedule(config, derive.horizon(config, 80))
    assert not list(unknown_scores(config, SCORES))


@pytest.mark.parametrize("objective", ["eval_los", "loss"])
def test_an_unknown_objective_is_refused_before_anything_starts(objective: str) -> None:
    with pytest.raises(ConfigError, match=f"objective: must be a score .* but is {objective}"):
        load_config([f"objective={objective}"])
    load_config(["objective=eval_bits_per_byte", "objective_mode=min"])


def test_an_objective_that_the_data_does_not_give_is_refused() -> None:
    config = load_config(["objective=eval_bits_per_byte"]).config
    [problem] = unknown_scores(config, SCORES)
    assert problem.key == "objective"
    assert not list(unknown_scores(config, ()))


def test_epochs_of_the_user_lift_the_packaged_number_of_steps(tmp_path: Path) -> None:
    one = load_config(["max_epochs=2"])
    assert (one.config.max_steps, one.config.max_epochs) == (None, 2)
    assert one.provenance["max_steps"] == "command line: max_epochs=2"
    assert load_config(["max_epochs=2", "recipe=quick"]).config.max_steps is None
    assert load_config(["max_epochs=2", "max_steps=7"]).config.max_steps == 7
    assert load_config(["max_epochs=null"]).config.max_steps == 1200
    (tmp_path / "mine.yaml").write_text("defaults: [config, _self_]\nmax_epochs: 3\n")
    assert load_config([], "mine", [tmp_path]).config.max_steps is None


def test_prodigy_goes_with_a_schedule() -> None:
    config = load_config(["optimizer=prodigy", "scheduler=cosine"]).config
    assert config.scheduler.kind == "cosine"
    assert load_config(["optimizer=prodigy"]).config.scheduler.kind == "constant"
