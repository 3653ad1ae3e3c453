"""A user's own DeepSpeed config: what tunes is passed on, what changes the training is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from launcher.config.load import load_config
from launcher.errors import ConfigError, DataError, LaunchError


def composed(tmp_path: Path, content: Any, *words: str) -> Any:
    file = tmp_path / "deepspeed.json"
    file.write_text(json.dumps(content))
    own = ["parallelism=zero2", "launch.processes=2", f"parallelism.config_file={file}", *words]
    return load_config(own).config


def test_tuning_reaches_deepspeed(tmp_path: Path) -> None:
    content = {
        "zero_optimization": {"stage": 2, "round_robin_gradients": True, "overlap_comm": "auto"},
        "gradient_clipping": 1.0,
        "train_batch_size": "auto",
        "bf16": {"enabled": False},
        "wall_clock_breakdown": True,
    }
    option = composed(tmp_path, content, "max_grad_norm=1.0").parallelism
    generated = option.deepspeed_config(100)
    assert generated["zero_optimization"]["round_robin_gradients"] is True
    assert generated["zero_optimization"]["overlap_comm"] is False
    assert generated["wall_clock_breakdown"] is True
    # trainctl clips: DeepSpeed must not clip again.
    assert generated["gradient_clipping"] == 0.0


@pytest.mark.parametrize(
    ("content", "found"),
    [
        ({"zero_optimization": {"stage": 3}}, "parallelism.stage is 2"),
        ({"gradient_clipping": 0.5}, "max_grad_norm is 1.0"),
        ({"bf16": {"enabled": True}}, "precision bfloat16 is False"),
        ({"train_batch_size": 7}, "number of samples per step"),
        ({"optimizer": {"type": "AdamW"}}, "optimizer.type may change the training"),
        ({"scheduler": {"type": "WarmupLR"}}, "scheduler.type may change the training"),
        ({"zero_optimization": {"zero_quantized_weights": True}}, "may change the training"),
    ],
)
def test_a_conflict_names_both_origins(tmp_path: Path, content: Any, found: str) -> None:
    with pytest.raises(ConfigError) as error:
        composed(tmp_path, content, "max_grad_norm=1.0")
    assert found in str(error.value)
    assert "deepspeed.json" in str(error.value)


def test_a_file_that_is_no_config_is_refused(tmp_path: Path) -> None:
    option = composed(tmp_path, [1]).parallelism
    with pytest.raises(DataError, match="must be a JSON object"):
        option.preflight()


@pytest.mark.parametrize(
    ("words", "found"),
    [
        (["optimizer=adamw_8bit"], "adamw_8bit cannot update shards"),
        (["precision=bf16_pure"], "must keep weights in float32"),
        (["precision=fp64"], "must keep weights in float32"),
        (["parallelism.offload_params=true"], "needs stage 3"),
        (["parallelism.nvme_path=drive"], "needs parallelism.offload_params=true"),
    ],
)
def test_what_cannot_equal_one_process_is_refused(words: list[str], found: str) -> None:
    with pytest.raises(ConfigError) as error:
        load_config(["parallelism=zero2", "launch.processes=2", *words])
    assert found in str(error.value)


def test_parameters_on_nvme_need_a_folder_and_libaio(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    words = ["parallelism=zero_offload", "launch.processes=2", f"parallelism.nvme_path={tmp_path}"]
    option: Any = load_config(words).config.parallelism
    param = option.deepspeed_config(100)["zero_optimization"]["offload_param"]
    assert (param["device"], param["nvme_path"]) == ("nvme", str(tmp_path))
    monkeypatch.setattr("ctypes.util.find_library", lambda name: None)
    with pytest.raises(LaunchError, match="libaio, which is not installed"):
        option.preflight()
    monkeypatch.setattr("ctypes.util.find_library", lambda name: f"lib{name}.so.1")
    option.preflight()
    tmp_path.rmdir()
    with pytest.raises(LaunchError, match="no such folder"):
        option.preflight()
