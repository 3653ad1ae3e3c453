from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from launcher import registry
from launcher.config.compose import compose
from launcher.config.load import load_config
from launcher.contracts import GROUPS
from launcher.errors import ConfigError

LION = '''
from typing import Literal
from pydantic import Field
from launcher.contracts import OptimizerOption

class Lion(OptimizerOption):
    """The sign of the momentum."""

    kind: Literal["lion_test"]
    beta: float = Field(ge=0, lt=1)
    """Momentum."""

    def build(self, target):
        raise NotImplementedError

NOT_AN_OPTION = int
'''
LION_YAML = (
    "kind: lion_test\ndefaults: [_groups, _self_]\nlr: 1.0e-4\nweight_decay: 0.0\nbeta: 0.9\n"
)


@pytest.fixture
def lion(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An installed distribution that adds optimizer=lion_test."""
    (tmp_path / "lion_test_options.py").write_text(LION)
    conf = tmp_path / "lion_test_conf" / "optimizer"
    conf.mkdir(parents=True)
    (conf / "lion_test.yaml").write_text(LION_YAML)
    info = tmp_path / "lion_test-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: lion-test\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(
        "[trainctl.options]\n"
        "optimizer.lion_test = lion_test_options:Lion\n"
        "optimizer.broken = lion_test_nowhere:Lion\n"
        "optimizer.wrong = lion_test_options:NOT_AN_OPTION\n"
        "[trainctl.conf]\nlion = lion_test_conf\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    return tmp_path


@pytest.mark.parametrize("group", GROUPS)
def test_every_kind_has_one_class_and_a_summary(group: str) -> None:
    found = registry.kinds(group)
    assert found == tuple(sorted(found))
    assert not any(kind.startswith("_") for kind in found)
    for kind in found:
        cls = registry.option_class(group, kind)
        assert issubclass(cls, registry.OPTION_TYPES[group])
        assert len(registry.summary(group, kind)) > 10


def test_listing_kinds_imports_none_of_them() -> None:
    code = (
        "import sys; from launcher.registry import kinds; kinds('optimizer');"
        "print([m for m in sys.modules if m.startswith('launcher.optimizer.')])"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert out.stdout.strip() == "[]"


def test_an_unknown_kind_is_answered_with_the_nearest() -> None:
    with pytest.raises(ConfigError, match=r"'sdg'; did you mean 'sgd'"):
        registry.option_class("optimizer", "sdg")
    with pytest.raises(ConfigError, match=r"it can be: .*adamw.*sgd"):
        registry.option_class("optimizer", "zzzzzzz")


def test_a_package_adds_a_kind_by_entry_points(lion: Path) -> None:
    assert "lion_test" in registry.kinds("optimizer")
    assert registry.summary("optimizer", "lion_test") == "The sign of the momentum."
    one = load_config(["optimizer=lion_test", "optimizer.beta=0.8"])
    assert type(one.config.optimizer).__name__ == "Lion"
    assert one.config.model_dump()["optimizer"]["beta"] == 0.8
    assert "lion_test_conf/optimizer/lion_test.yaml:3" in one.provenance["optimizer.lr"]
    with pytest.raises(ConfigError, match=r"optimizer\.bta: no such setting; did you mean"):
        load_config(["optimizer=lion_test", "optimizer.bta=0.8"])


def test_a_broken_package_is_named(lion: Path) -> None:
    with pytest.raises(ConfigError, match=r"lion-test adds optimizer=broken, but cannot be imp"):
        registry.option_class("optimizer", "broken")
    with pytest.raises(ConfigError, match=r"lion-test adds optimizer=wrong, .* no subclass of"):
        registry.option_class("optimizer", "wrong")


def test_without_the_package_the_kind_is_gone() -> None:
    assert "lion_test" not in registry.kinds("optimizer")
    with pytest.raises(ConfigError, match="no option 'lion_test'"):
        compose(["optimizer=lion_test"])
