"""Twenty planted keys without effect are all named; no packaged one is."""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Self

import pytest
import torch
from pydantic import model_validator
from typing_extensions import override

from launcher.config.effects import not_applicable
from launcher.config.load import load_config
from launcher.config.paths import RECIPES
from launcher.config.schema import RunConfig
from launcher.contracts import (
    ConfigView,
    Horizon,
    Observer,
    ObserverOption,
    OptimizerOption,
    OptimizerTarget,
    RunContext,
    Schedule,
    Settings,
    recorded,
)
from launcher.errors import ConfigError, Problem
from launcher.run_dir import RunDir
from launcher.scheduler.constant import Constant
from launcher.training.runner import run
from tests.contract.test_effects import WORLD, toy
from tests.contract.test_effects_optimizer import GIVEN, trajectory
from tests.contract.test_effects_plan import rates
from tests.contract.witness import option_of, preset, presets, replaced, without_witness
from tests.toy.options import ToyModel

_log = logging.getLogger("trainctl.test")


class Rule(Settings):
    """A part of an option."""

    used: float
    never_read_inside: float


class Watching(ObserverOption):
    """Keys that no code of a run reads: tracking names them."""

    used: int
    never_read: int
    never_read_text: str | None
    rule: Rule
    rules: tuple[Rule, ...]
    only_dumped: int
    only_compared: int
    only_shown: int
    only_in_problems: int
    only_in_cautions: int
    only_on_devices: int
    only_validated: int
    only_in_a_dead_branch: int

    @model_validator(mode="after")
    def _validate(self) -> Self:
        if self.only_validated < 0:
            raise ValueError("must not be negative")
        return self

    @override
    def problems(self, config: ConfigView) -> Iterator[Problem]:
        if self.only_in_problems < 0:
            yield Problem("observer", "must not be negative")

    @override
    def cautions(self, config: ConfigView) -> Iterator[Problem]:
        if self.only_in_cautions < 0:
            yield Problem("observer", "is negative")

    @override
    def unsupported_on(self, device_type: str) -> Mapping[str, str]:
        return {"kind": "is negative"} if self.only_on_devices < 0 else {}

    @override
    def observers(self, context: RunContext) -> Sequence[Observer]:
        assert self.model_dump()["only_dumped"] == 1
        assert self == self.model_copy()
        _log.info("observing with %r", self)
        if self.used < 0:
            return [Observer()] * self.only_in_a_dead_branch  # type: ignore[abstract]
        _log.info("the limit is %g", self.rule.used + self.rules[0].used)
        return []


UNREAD = {
    "observer.never_read",
    "observer.never_read_text",
    "observer.rule.never_read_inside",
    "observer.rules.0.never_read_inside",
    "observer.only_dumped",
    "observer.only_compared",
    "observer.only_shown",
    "observer.only_in_problems",
    "observer.only_in_cautions",
    "observer.only_on_devices",
    "observer.only_validated",
    "observer.only_in_a_dead_branch",
    "model.never_read",
}


class Model(ToyModel):
    """The toy with a key that it ignores."""

    never_read: int


class Rates(Constant):
    """Keys that are read and change nothing: they have no witness."""

    only_logged: float
    in_an_unused_variable: float
    times_zero: float
    overwritten: float

    @override
    def after_warmup(self, peak_lr: float, warmup: int, horizon: Horizon) -> Schedule:
        _log.info("the rate is %g", self.only_logged)
        unused = self.in_an_unused_variable * 2
        del unused
        factor = self.overwritten
        factor = self.factor
        return super().after_warmup(peak_lr * factor + 0 * self.times_zero, warmup, horizon)


class Updates(OptimizerOption):
    """Keys that get as far as the optimizer, which ignores them."""

    only_in_groups: float
    only_rounded_away: float
    swallowed: float

    @override
    def build(self, target: OptimizerTarget) -> torch.optim.Optimizer:
        from launcher.optimizer import param_groups

        groups = [{**g, "only": self.only_in_groups} for g in param_groups(target, self)]

        def made(*, lr: float, **_: Any) -> torch.optim.Optimizer:
            return torch.optim.SGD(groups, lr=lr, momentum=int(self.only_rounded_away) * 0.0)

        assert self.lr is not None
        return made(lr=self.lr, swallowed=self.swallowed)


# A multiple of the toy's samples.
TOKENS = {"tokens": {"tokens_per_step": 96}}
# What the launcher reads when it looks for the micro-batch.
SEARCH = {"accumulation.memory_limit_gib", "accumulation.memory_margin"}
WITHOUT_WITNESS = {
    "only_logged",
    "in_an_unused_variable",
    "times_zero",
    "overwritten",
    "only_in_groups",
    "only_rounded_away",
    "swallowed",
}


def unread(config: RunConfig) -> set[str]:
    """The keys that a rank does not read in a run, without those of other processes."""
    with TemporaryDirectory() as folder, recorded(config) as reads:
        run(config, RunDir(Path(folder)), WORLD, lambda: None, lambda *_: None)
    launcher = {"name", "run_root", "objective", "objective_mode"}
    return {
        key for key in reads.unread() if key not in launcher and key.partition(".")[0] != "launch"
    }


def watching() -> Watching:
    rule = {"used": 1.0, "never_read_inside": 2.0}
    numbers = (key.partition(".")[2] for key in UNREAD if key.count(".") == 1)
    values: dict[str, Any] = dict.fromkeys(numbers, 1)
    values |= {"kind": "watching", "used": 1, "rule": rule, "rules": (rule,)}
    values |= {"never_read_text": "x", "never_read": 1}
    return Watching.model_validate(values)


def test_keys_that_nothing_reads_are_named() -> None:
    model = Model(kind="toy", width=8, dropout=0.1, never_read=1)
    config = toy().model_copy(update={"observer": watching(), "model": model})
    assert unread(config) - not_applicable(config).keys() == UNREAD


def test_keys_that_are_read_in_vain_have_no_witness() -> None:
    rate = preset("scheduler", "constant")
    rate |= dict.fromkeys(("only_logged", "in_an_unused_variable"), 1.0)
    rate |= dict.fromkeys(("times_zero", "overwritten"), 1.0)
    rate |= {"warmup_steps": 9}
    hints: dict[str, Any] = {}
    found = without_witness(Rates.model_validate, rate, {"": rates}, hints)
    update = preset("optimizer", "sgd")
    for key in ("momentum", "dampening", "nesterov", "implementation"):
        del update[key]
    update |= {"only_in_groups": 1.0, "only_rounded_away": 0.5, "swallowed": 1.0}
    kept = {key: value for key, value in update.items() if key != "groups"}
    made = partial(_with_groups, update["groups"])
    found += without_witness(made, kept, {"": trajectory}, hints)
    assert set(found) == WITHOUT_WITNESS
    assert len(UNREAD) + len(WITHOUT_WITNESS) == 20


SMALL = [
    *["model=llama", "model.hidden_size=8", "model.intermediate_size=8", "model.num_layers=1"],
    *["model.num_heads=2", "model.num_kv_heads=2", "task.seq_len=16"],
    *["eval_every_steps=2", "eval_max_samples=4", "max_steps=4", "max_epochs=null"],
    *["accumulation.micro_batch_size=2", "accumulation.samples_per_step=4", "logging=quiet"],
    "launch.device=cpu",
]


@pytest.mark.parametrize("recipe", sorted(path.stem for path in RECIPES.glob("*.yaml")))
def test_recipes_have_no_key_without_effect(recipe: str, tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("some words and some more of them\n" * 60)
    words = [f"recipe={recipe}", *SMALL]
    text = (RECIPES / f"{recipe}.yaml").read_text()
    if "override /task:" not in text or "override /task: causal_lm" in text:
        words += ["task.sample_tokens=2", "data=text", f"data.files={tmp_path}/*.txt"]
    else:
        chat = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]
        rows = [{"messages": chat, "text": f"{n}", "label": f"{n % 2}"} for n in range(40)]
        (tmp_path / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)))
        words += ["task.seq_len=64", "data=jsonl", f"data.files={tmp_path}/rows.jsonl"]
    config = load_config(words).config
    assert unread(config) - not_applicable(config).keys() == set()


@pytest.mark.parametrize(
    "group",
    ["optimizer", "scheduler", "precision", "accumulation", "checkpoint", "logging", "observer"],
)
def test_presets_have_no_key_without_effect(group: str) -> None:
    found: dict[str, set[str]] = {}
    given = GIVEN | TOKENS
    for name in presets(group):
        option = option_of(group, replaced(preset(group, name), given.get(name, {})))
        config = toy().model_copy(update={group: option, "max_steps": 10})
        if group == "scheduler" and config.scheduler.uses_optimizer_lr:
            continue  # has no settings, and fits no AdamW
        try:
            option.preflight()
            if option.unsupported_on("cpu"):
                continue
            missed = unread(config) - not_applicable(config).keys()
        except ConfigError as error:
            # The toy has no blocks, nor this machine every library.
            assert re.search(r"needs the package|no numbered blocks", str(error)), error  # noqa: PT017
            continue
        if missed - SEARCH:
            found[name] = missed
    assert found == {}


def _with_groups(groups: Mapping[str, Any], values: Mapping[str, Any]) -> Updates:
    return Updates.model_validate_json(json.dumps({**values, "groups": groups}))
