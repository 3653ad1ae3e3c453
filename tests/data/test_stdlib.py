from __future__ import annotations

import json
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest
import yaml

from launcher.contracts import DataSplits, Records
from launcher.data.stdlib import StandardLibrary
from launcher.errors import DataError

PRESET = Path(__file__).parents[2] / "conf" / "data" / "stdlib.yaml"


@pytest.fixture(scope="module")
def option() -> StandardLibrary:
    return StandardLibrary.model_validate_json(json.dumps(yaml.safe_load(PRESET.read_text())))


@pytest.fixture(scope="module")
def splits(option: StandardLibrary) -> DataSplits:
    return option.build()


def names(records: Records) -> list[str]:
    return [records.describe(i) for i in range(len(records))]


def texts(records: Records) -> list[bytes]:
    return [records.record(i)["text"].encode() for i in range(len(records))]


def test_it_is_real_text_of_a_known_size(splits: DataSplits) -> None:
    sizes = [len(text) for text in texts(splits.train) + texts(splits.validation)]
    size = sum(sizes)
    assert 5e6 < size < 20e6
    assert all(sizes)
    held_out = sum(map(len, texts(splits.validation)))
    assert 0.02 < held_out / size < 0.08


def test_no_file_is_on_both_sides_and_the_order_is_fixed(splits: DataSplits) -> None:
    train, validation = (names(part) for part in (splits.train, splits.validation))
    assert not set(train) & set(validation)
    assert train == sorted(set(train))
    assert validation == sorted(set(validation))


def test_tests_tables_and_other_peoples_code_are_left_out(splits: DataSplits) -> None:
    found = names(splits.train) + names(splits.validation)
    assert "argparse.py" in found
    assert "json/decoder.py" in found
    parts = {part for name in found for part in Path(name).parts}
    assert not parts & {"test", "tests", "idle_test", "site-packages", "pydoc_data", "__pycache__"}
    assert not [name for name in found if "_sysconfigdata" in name]


def test_text_is_as_on_disk(splits: DataSplits) -> None:
    path = Path(sysconfig.get_path("stdlib"), splits.validation.describe(0))
    assert texts(splits.validation)[0] == path.read_bytes()


def test_another_process_makes_the_same_split(splits: DataSplits) -> None:
    code = (
        "import sys; from launcher.data.stdlib import StandardLibrary;"
        "s = StandardLibrary.model_validate_json(sys.argv[1]).build();"
        "print([s.validation.describe(i) for i in range(len(s.validation))])"
    )
    values = '{"kind": "stdlib", "validation_fraction": 0.05}'
    done = subprocess.run(
        [sys.executable, "-c", code, values], capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == str(names(splits.validation))


def test_a_larger_share_holds_out_what_a_smaller_one_did(splits: DataSplits) -> None:
    larger = StandardLibrary(kind="stdlib", validation_fraction=0.2).build()
    assert set(names(splits.validation)) < set(names(larger.validation))


def test_a_python_without_source_is_an_error(
    option: StandardLibrary, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    option.preflight()
    monkeypatch.setattr(sysconfig, "get_path", lambda name: str(tmp_path))
    with pytest.raises(DataError, match="comes without the source"):
        option.preflight()
    with pytest.raises(DataError, match="data=text"):
        option.build()
