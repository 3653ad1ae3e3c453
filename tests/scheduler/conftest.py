import json
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
import yaml

from launcher.contracts import Horizon, SchedulerOption

CONF = Path(__file__).parents[2] / "conf" / "scheduler"


def read_preset(preset: str, **changes: Any) -> SchedulerOption:
    values = yaml.safe_load((CONF / f"{preset}.yaml").read_text()) | changes
    module = import_module(f"launcher.scheduler.{values['kind']}")
    [option_class] = [
        member
        for member in vars(module).values()
        if isinstance(member, type)
        and issubclass(member, SchedulerOption)
        and member.__module__ == module.__name__
    ]
    return option_class.model_validate_json(json.dumps(values))


@pytest.fixture
def preset() -> Callable[..., SchedulerOption]:
    """A preset of conf/scheduler with some values changed."""
    return read_preset


@pytest.fixture
def horizon() -> Callable[[int], Horizon]:
    """A run of so many steps of 16 samples with 128 tokens each; an epoch is 62.5 steps."""
    return lambda max_steps: Horizon(max_steps, 16, 2048, 62.5)
