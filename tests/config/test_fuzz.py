"""Whatever is typed composes or is answered with a ConfigError; nothing else is ever raised."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence

import pytest

from launcher.config.compose import compose_leniently
from launcher.config.load import LoadedConfig, load_config
from launcher.config.problems import leaves
from launcher.contracts import GROUPS
from launcher.errors import ConfigError

VALUES = [
    *("1", "0", "-1", "1e-3", "1e400", "nan", "inf", "-inf", "null", "true", "0x1f", "1_000"),
    *("''", '""', "'", '"', "a", "a b", "ä😀", "\udcff", "\0", "\\", "\\\\", "a\nb", "\t", " "),
    *("[]", "[1,2", "[1,[2,[3]]]", "{}", "{a:1}", "{a: {b: c}}", "{1: 2}", "{", "}", "]", "(", ")"),
    *("${", "${a}", "${.lr}", "${optimizer}", "${oc.env:X}", "${${a}}", "\\${a}", "$", "???"),
    *("1,2", "choice(1,2)", "range(1,3)", "interval(0,1)", "glob(*)", "sort(3,1)", "int(x)"),
    *("shuffle(1,2)", "tag(a,b,1)", "str(1)", "float(null)", "=", "==1", "@x", "x@y", "~", "+"),
    *("%", "!!python/object:os.system", "&a", "*a", "<<", "#x", "a#b", "yes", "off", "-", "--"),
    "9" * 400,
    "x" * 300,
    "[" * 200,
    "{a:" * 60,
    "x" * 5000,
    "adamw",
    "quick",
    "../../../etc/passwd",
    "/etc/passwd",
    "_groups",
]
KEYS = [
    *(
        "",
        ".",
        "..",
        "a",
        "a.b.c",
        "hydra",
        "hydra.x",
        "hydra.run.dir",
        "hydra/launcher",
        "_target_",
    ),
    *("hydra.searchpath", "hydra.mode", "hydra/job_logging", "defaults", "_self_", "__class__"),
    *("optimizer@x", "optimizer@:x", "optimizer@_global_", "recipe@_here_", "optimizer/adamw"),
    *("optimizer.", ".optimizer", "optimizer..lr", "optimizer.betas.0", "optimizer.betas[0]"),
    *("optimizer.betas.9", "optimizer.betas.-1", "optimizer.lr.x", "optimizer.groups.overrides.0"),
    "x" * 300,
    *("ключ", "a b", "a-b", "1", "1.2", "null", "true", "seed.x", "recipe", "x/y/z", "..optimizer"),
]
OPTIONS = ["adamw", "sgd", "cosine", "linear", "bf16", "quick", "tokens", "steps", "quiet", "nope"]


GOOD = [
    *("optimizer=sgd", "scheduler=linear", "logging=quiet", "seed=3", "max_steps=7", "name=ä"),
    *("recipe=quick", "optimizer.lr=0.1", "~max_grad_value", "+max_grad_value=1", "++seed=1"),
    *("optimizer={lr: 1}", "hydra.job.name=x", "run_root='a b'", "name=${run_root}"),
]


def word(draw: random.Random, known: list[str]) -> str:
    """A word that is right, nearly right, or hostile."""

    def key() -> str:
        return draw.choice([*known, *known, *KEYS, *GROUPS])

    shapes: list[Callable[[], str]] = [
        lambda: f"{draw.choice(known)}={draw.choice(VALUES)}",
        lambda: f"{draw.choice(GROUPS)}={draw.choice(OPTIONS)}",
        lambda: f"{draw.choice(['', '+', '++', '~', '~~', '+~'])}{key()}={draw.choice(VALUES)}",
        lambda: f"{draw.choice(['~', '+', '++', ''])}{key()}",
        lambda: f"{key()}={draw.choice(VALUES)}={draw.choice(VALUES)}",
        lambda: draw.choice(VALUES),
        lambda: "".join(chr(draw.choice([*range(32, 127), 0xE4, 0x2028])) for _ in range(12)),
    ]
    made = draw.choice(shapes)()
    if draw.random() < 0.3 and made:
        place = draw.randrange(len(made))
        made = made[:place] + draw.choice(["", ".", "=", "{", "$", ",", "'"]) + made[place + 1 :]
    return made


def fuzz(seeds: Sequence[int], packaged: LoadedConfig) -> tuple[int, int]:
    known = [key for key, _ in leaves(packaged.composed.mapping)]
    passed = 0
    for seed in seeds:
        draw = random.Random(seed)
        hostile = draw.random() < 0.8
        words = [
            word(draw, known) if hostile else draw.choice(GOOD) for _ in range(draw.randint(1, 4))
        ]
        try:
            load_config(words)
        except ConfigError as error:
            if not all(str(problem).strip() for problem in error.problems) or not error.problems:
                pytest.fail(f"{words!r}, seed {seed}: {error}")
        except Exception as error:
            raise AssertionError(f"load_config({words!r}), seed {seed}") from error
        else:
            passed += 1
    return passed, len(seeds)


def test_eighty_lists(packaged: LoadedConfig) -> None:
    passed, tried = fuzz(range(80), packaged)
    assert 0 < passed < tried


@pytest.mark.slow
def test_two_thousand_lists(packaged: LoadedConfig) -> None:
    passed, tried = fuzz([*range(80, 250), *range(1_000, 3_000)], packaged)
    assert 0 < passed < tried


@pytest.mark.parametrize("value", VALUES, ids=[str(n) for n in range(len(VALUES))])
def test_each_value_where_anything_goes(value: str) -> None:
    composed, problems = compose_leniently([f"name={value}", f"+x={value}", f"run_root='{value}'"])
    assert composed is not None
    assert all(problem.origin for problem in problems)
