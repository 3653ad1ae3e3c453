"""The packaged config, composed once, and words that name every packaged file."""

from __future__ import annotations

from pathlib import Path

import pytest

from launcher.config.load import LoadedConfig, load_config
from launcher.config.paths import CONF

# What a preset leaves for the user to say.
REQUIRED = {
    "model=hf": ["model.path=/nowhere", "optimizer.lr=1e-5"],
    "data=text": ["data.files=/nowhere/*.txt"],
    "recipe=text_finetune": ["model.path=/nowhere", "data.files=/nowhere/*.txt"],
    "recipe=lora_finetune": ["model.path=/nowhere", "data.files=/nowhere/*.txt"],
}


@pytest.fixture(scope="session")
def packaged() -> LoadedConfig:
    return load_config([])


@pytest.fixture(scope="session")
def stored(packaged: LoadedConfig) -> str:
    return packaged.config.to_json()


@pytest.fixture
def user_dir(tmp_path: Path) -> Path:
    """A user's folder that replaces packaged files; empty at first."""
    folder = tmp_path / "conf"
    folder.mkdir()
    return folder


@pytest.fixture
def conf() -> Path:
    return CONF
