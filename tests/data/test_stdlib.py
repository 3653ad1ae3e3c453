from __future__ import annotations

import json
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest
import yaml

from launcher.contracts import DataSplits
from launcher.data.stdlib import StandardLibrary
from launcher.errors import DataError

PRESET = Path(__file__).parents[2] / "conf" / "data" / "stdlib.yaml"


@pytest.fixture(scope="module")
def option() -> StandardLibrary:
    return StandardLibrary.model_validate_json(json.dumps(yaml.safe_load(PRESET.read_text())))


@pytest.fixture(scope="module")
def splits(option: StandardLibrary) -> DataSplits:
    return option.build()


def test_it_is_real_text_of_a_known_size(splits: DataSplits) -> None:
    size = sum(len(d.text.encode()) for d in [*splits.train, *splits.validation])
    assert 5e6 < size < 20e6
    assert all(d.text for d in [*splits.train, *splits.validation])
    held_out = sum(len(d.text.encode()) for d in splits.validation)
    assert 0.02 < held_out / size < 0.08


def test_no_file_is_on_both_sides_and_the_order_is_fixed(splits: DataSplits) -> None:
    train, validation = ([d.name for d in part] for part in (splits.train, splits.validation))
    assert not set(train) & set(validation)
    assert train == sorted(set(train))
    assert validation == sorted(set(validation))


def test_tests_tables_and_other_peoples_code_are_left_out(splits: DataSplits) -> None:
    names = [d.name for d in [*splits.train, *splits.validation]]
    assert "argparse.py" in names
    assert "json/decoder.py" in names
    parts = {part for name in names for part in Path(name).parts}
    assert not parts & {"test", "tests", "idle_test", "site-packages", "pydoc_data", "__pycache__"}
    assert not [name for name in names if "_sysconfigdata" in name]


def test_text_is_as_on_disk(splits: DataSplits) -> None:
    document = splits.validation[0]
    path = Path(sysconfig.get_path("stdlib"), document.name)
    assert document.text.encode() == path.read_bytes()


def test_another_process_makes_the_same_split(splits: DataSplits) -> None:
    code = (
        "import sys; from launcher.data.stdlib import StandardLibrary;"
        "s = StandardLibrary.model_validate_json(sys.argv[1]).build();"
        "print([d.name for d in s.validation])"
    )
    values = '{"kind": "stdlib", "validation_fraction": 0.05}'
    done = subprocess.run(
        [sys.executable, "-c", code, values], capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == str([d.name for d in splits.validation])


def test_a_larger_share_holds_out_what_a_smaller_one_did(splits: DataSplits) -> None:
    larger = StandardLibrary(kind="stdlib", validation_fraction=0.2).build()
    assert {d.name for d in splits.validation} < {d.name for d in larger.validation}


def test_a_python_without_source_is_an_error(
    option: StandardLibrary, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    option.preflight()
    monkeypatch.setattr(sysconfig, "get_path", lambda name: str(tmp_path))
    with pytest.raises(DataError, match="comes without the source"):
        option.preflight()
    with pytest.raises(DataError, match="data=text"):
        option.build()
