"""The Python API, on the toy job of tests/toy."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from launcher import api
from launcher.errors import CheckpointError, ConfigError, LaunchError, NonFinite
from tests.conftest import Console, toy_words


def run_from_start_to_model() -> None:
    config = api.load_config(toy_words("max_steps=6", "checkpoint.every_steps=2"))
    config = config.model_copy(update={"seed": 5})
    finished = api.run(config)
    assert finished.config == config
    assert finished.result.step == 6
    assert finished.result.stopped is None
    metrics = finished.metrics()
    assert np.asarray(metrics["step"]).tolist() == [1, 2, 3, 4, 5, 6]
    assert finished.result.scores["eval_loss"] == metrics["eval_loss"][5]
    assert np.isnan(metrics["eval_loss"][0])
    np.testing.assert_array_equal(finished.lr_table(), np.asarray(metrics["lr"]))
    assert [checkpoint.step for checkpoint in finished.checkpoints()] == [4, 6]
    exported = torch.load(finished.path / "export" / "weights.pt")
    module = finished.load_model()
    assert not module.training
    for name, tensor in module.state_dict().items():
        assert torch.equal(tensor, exported[name])
    before = finished.load_model(4).state_dict()
    assert any(not torch.equal(tensor, exported[name]) for name, tensor in before.items())
    with pytest.raises(CheckpointError, match="no checkpoint of step 5; there are: 4, 6"):
        finished.load_model(5)
    # What was changed in Python says so.
    assert '"seed": "set in Python"' in (finished.path / "provenance.json").read_text()
    with pytest.raises(ConfigError, match="never end"):
        api.run(config.model_copy(update={"max_steps": None}))
    # Without pandas, columns are arrays.
    sys.modules["pandas"] = None  # type: ignore[assignment] # so that it cannot be imported
    columns = finished.metrics()
    assert isinstance(columns, dict)
    assert (columns["loss"].dtype, columns["loss"].shape) == (np.float64, (6,))


def test_a_run_from_start_to_model(trainctl: Console) -> None:
    assert trainctl.call(run_from_start_to_model) == ("", "")


def run_two_ranks_and_resume() -> None:
    words = toy_words("parallelism=ddp", "launch.processes=2", "max_steps=4")
    first = api.run(api.load_config(words))
    assert [checkpoint.ranks for checkpoint in first.checkpoints()] == [2]
    again = api.resume(first.path, ["max_steps=8"])
    assert again.result.step == 8
    assert again.config.max_steps == 8
    with pytest.raises(ConfigError, match="seed"):
        api.resume(first.path, ["seed=9"])


def test_two_ranks_and_a_resume(trainctl: Console) -> None:
    trainctl.call(run_two_ranks_and_resume)


def cause_errors() -> None:
    with pytest.raises(ConfigError, match="did you mean 'max_steps'"):
        api.load_config(["max_stps=3"])
    with pytest.raises(NonFinite) as caught:
        api.run(api.load_config(toy_words("task.poison=3", "max_steps=60")))
    assert 3 in caught.value.indices
    [path] = Path("runs/toy").iterdir()
    with pytest.raises(NonFinite):
        api.Run(path).result  # noqa: B018 - the property raises
    with pytest.raises(LaunchError, match="no run directory"):
        api.Run(Path.cwd())


def test_errors_are_the_documented_ones(trainctl: Console) -> None:
    trainctl.call(cause_errors)


@pytest.mark.parametrize("text", [None, "", "{", "[]", "3", "{}", '{"error": "NonFinite"}'])
def test_a_result_that_cannot_be_read(tmp_path: Path, text: str | None) -> None:
    (tmp_path / "config.json").write_text("\u2603", encoding="utf-16")
    (tmp_path / "command.sh").touch()
    if text is not None:
        (tmp_path / "result.json").write_text(text)
    with pytest.raises(LaunchError, match=r"no readable result\.json"):
        api.Run(tmp_path).result  # noqa: B018 - the property raises
    with pytest.raises(ConfigError, match="cannot be read"):
        api.Run(tmp_path).config  # noqa: B018


def test_importing_it_is_cheap() -> None:
    code = "import sys, launcher.api; print({'torch', 'hydra', 'numpy'} & sys.modules.keys())"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "set()\n"
