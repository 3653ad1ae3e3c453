"""The number format of the exported weights."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from tests.training.toy_run import toy_config, toy_run


@pytest.mark.parametrize(
    ("dtype", "expected"),
    [("source", torch.float32), ("bfloat16", torch.bfloat16), ("float16", torch.float16)],
)
def test_weights_are_exported_in_the_chosen_format(
    tmp_path: Path, dtype: str, expected: torch.dtype
) -> None:
    words = ("logging.console=none", "max_steps=1", f"checkpoint.export_dtype={dtype}")
    toy_run(tmp_path / "run", toy_config(*words))
    weights = torch.load(tmp_path / "run" / "export" / "weights.pt", weights_only=True)
    assert {value.dtype for value in weights.values()} == {expected}
