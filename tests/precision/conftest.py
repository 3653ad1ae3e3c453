import json
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
import yaml

from launcher import registry
from launcher.contracts import PrecisionOption

CONF = Path(__file__).parent.parent.parent / "conf" / "precision"


@pytest.fixture
def build_option() -> Callable[..., PrecisionOption]:
    """`build_option("fp16", init_scale=8.0)`: a packaged precision with changes."""

    def option(preset: str, **changes: object) -> PrecisionOption:
        values = yaml.safe_load((CONF / f"{preset}.yaml").read_text()) | changes
        kind = registry.option_class("precision", values["kind"])
        built = kind.model_validate_json(json.dumps(values))
        assert isinstance(built, PrecisionOption)
        return built

    return option


@pytest.fixture(autouse=True)
def _switches_as_they_were() -> Iterator[None]:
    """Some formats set switches of the whole process."""
    matmul, cudnn = torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32
    yield
    torch.set_float32_matmul_precision(matmul)
    torch.backends.cudnn.allow_tf32 = cudnn
