import pytest

from launcher.config.door import checked
from launcher.errors import ConfigError
from launcher.training.fitting import check_schedule

SCORES = ("eval_loss", "eval_perplexity")


@pytest.mark.parametrize(
    ("words", "key", "says"),
    [
        (
            ["max_steps=null", "max_epochs=0.5", "scheduler.warmup_steps=9"],
            "scheduler.warmup_steps",
            "is 9, but the whole run has 5 steps",
        ),
        (
            ["scheduler=reduce_on_plateau", "scheduler.metric=eval_bleu"],
            "scheduler.metric",
            "watches eval_bleu, but an evaluation has: eval_loss, eval_perplexity",
        ),
        (["scheduler=chained", "scheduler.parts.1.metric=loss"], "scheduler", "watches loss, but"),
    ],
)
def test_what_only_the_data_shows_is_refused_before_the_first_step(
    words: list[str], key: str, says: str
) -> None:
    with pytest.raises(ConfigError) as refused:
        check_schedule(checked(words).config, 80, SCORES)
    [problem] = refused.value.problems
    assert problem.key == key
    assert says in problem.message


def test_what_fits_passes() -> None:
    words = ["scheduler=reduce_on_plateau", "scheduler.metric=eval_perplexity", "max_steps=10"]
    check_schedule(checked(words).config, 80, SCORES)
