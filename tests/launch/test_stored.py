"""config.json is compared with the checksummed copy of it."""

from __future__ import annotations

import contextlib
import json
from pathlib import Path

import pytest

from launcher.config.load import load_config
from launcher.errors import ConfigError, LaunchError
from launcher.launch._stored import differences, verified_config
from launcher.run_dir import RunDir

PLACES = Path("checkpoints/step-00000004/config.json"), Path("config.json")


def test_every_flipped_bit_is_found_or_changes_nothing() -> None:
    text = load_config([]).config.to_json()
    data = bytearray(text.encode())
    harmless = 0
    for place in range(8 * len(data)):
        data[place // 8] ^= 1 << place % 8
        if not differences(bytes(data), text, *PLACES):
            harmless += 1
            assert json.loads(data.decode()) == json.loads(text)
        data[place // 8] ^= 1 << place % 8
    # White space between tokens, and nothing else.
    assert 0 < harmless < 0.05 * 8 * len(data)


@pytest.fixture
def run_dir(tmp_path: Path) -> RunDir:
    run_dir = RunDir(tmp_path / "run-1")
    run_dir.path.mkdir()
    run_dir.write_config('{"lr": 0.01}')
    return run_dir


def test_without_a_checkpoint_the_checksum_counts(run_dir: RunDir) -> None:
    assert verified_config(run_dir, []) == '{"lr": 0.01}'
    run_dir.write_config('{"lr": 0.02}')
    assert verified_config(run_dir, []) == '{"lr": 0.02}'
    # As a crash between the two writes leaves it.
    run_dir.config.write_text('{"lr": 0.01}')
    assert verified_config(run_dir, []) == '{"lr": 0.01}'
    run_dir.config.write_text('{"lr": 0.03}')
    with pytest.raises(ConfigError, match=r"is not what this run wrote.*sh .*command\.sh"):
        verified_config(run_dir, ["lr=1"])
    run_dir.config.unlink()
    with pytest.raises(LaunchError, match="cannot read"):
        verified_config(run_dir, [])


@pytest.mark.parametrize("text", ["", "{", "[]", '{"id": 3, "config_sha256": 7, "pending": []}'])
def test_a_damaged_record_is_no_traceback(run_dir: RunDir, text: str) -> None:
    run_dir.record.write_text(text)
    assert run_dir.id == "run-1"
    with contextlib.suppress(ConfigError):
        assert verified_config(run_dir, []) == '{"lr": 0.01}'
