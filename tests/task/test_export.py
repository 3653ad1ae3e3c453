from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from launcher.contracts import Tokenizer
from launcher.task._export import export


def test_transformers_loads_what_was_trained(
    letters: Tokenizer, small_llama: Any, tmp_path: Path
) -> None:
    from transformers import AutoModelForCausalLM

    export(small_llama, letters, tmp_path / "export")
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "export", local_files_only=True)
    ids = torch.randint(0, 128, (2, 30))
    assert torch.equal(loaded(ids).logits, small_llama.eval()(ids).logits)
    assert (tmp_path / "export" / "letters.txt").exists()


@pytest.mark.parametrize("training", [True, False])
def test_nothing_outside_is_touched(
    letters: Tokenizer, small_llama: Any, tmp_path: Path, training: bool
) -> None:
    small_llama.train(training)
    before = torch.get_rng_state()
    export(small_llama, letters, tmp_path / "export")
    assert torch.equal(torch.get_rng_state(), before)
    assert small_llama.training is training
    assert [path.name for path in tmp_path.iterdir()] == ["export"]


def test_an_earlier_export_is_replaced_atomically(
    letters: Tokenizer, small_llama: Any, tmp_path: Path
) -> None:
    folder = tmp_path / "deep" / "export"
    folder.mkdir(parents=True)
    (folder / "old").touch()
    export(small_llama, letters, folder)
    assert not (folder / "old").exists()
    assert [path.name for path in folder.parent.iterdir()] == ["export"]


def test_a_failed_export_leaves_the_earlier_one(
    letters: Tokenizer, small_llama: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(folder: Path) -> None:
        raise OSError("disk full")

    (tmp_path / "export").mkdir()
    (tmp_path / "export" / "old").touch()
    monkeypatch.setattr(letters, "save", fail)
    with pytest.raises(OSError, match="disk full"):
        export(small_llama, letters, tmp_path / "export")
    assert [path.name for path in tmp_path.iterdir()] == ["export"]
    assert (tmp_path / "export" / "old").exists()


def test_weights_are_as_readable_as_the_rest(
    letters: Tokenizer, small_llama: Any, tmp_path: Path
) -> None:
    umask = os.umask(0o027)
    try:
        export(small_llama, letters, tmp_path / "export")
    finally:
        os.umask(umask)
    assert {path.stat().st_mode & 0o777 for path in (tmp_path / "export").iterdir()} == {0o640}


def test_exporting_prints_nothing(tmp_path: Path) -> None:
    code = """
import sys
from pathlib import Path
from transformers import LlamaConfig, LlamaForCausalLM
from launcher.model._tokenizers import ByteTokenizer
from launcher.task._export import export

config = LlamaConfig(vocab_size=384, hidden_size=8, intermediate_size=8, num_hidden_layers=1,
                     num_attention_heads=1)
export(LlamaForCausalLM(config), ByteTokenizer(), Path(sys.argv[1]))
"""
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path / "export")],
        capture_output=True,
        text=True,
        check=True,
    )
    assert (done.stdout, done.stderr) == ("", "")
