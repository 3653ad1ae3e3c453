from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import pytest

from launcher.errors import DataError
from launcher.model._folder import check_tokenizer
from launcher.model._tokenizer_name import build_tokenizer
from launcher.model._tokenizers import ByteTokenizer, FolderTokenizer

TEXTS = [
    "",
    "a",
    "def f(x):\r\n\treturn x\n",
    "naïve Ελλάς 東京 🙂 \u200d",
    "  two  spaces ",
    "\x00\x7f\x80\xff",
    "\ufeff",
    "".join(chr(c) for c in range(32, 2000)),
]


@pytest.mark.parametrize("text", TEXTS)
def test_bytes_are_numbered_as_byt5_does(text: str) -> None:
    from transformers import ByT5Tokenizer

    theirs = ByT5Tokenizer()
    ids = ByteTokenizer().encode(text)
    assert ids.dtype == np.int32
    assert ids.tolist() == theirs(text, add_special_tokens=False)["input_ids"]
    assert ByteTokenizer().decode(ids.tolist()) == text


def test_the_sizes_are_those_of_byt5() -> None:
    from transformers import ByT5Tokenizer

    ours, theirs = ByteTokenizer(), ByT5Tokenizer()
    assert (ours.eos_id, ours.vocab_size) == (theirs.eos_token_id, len(theirs))


def test_text_that_spells_a_special_token_stays_text() -> None:
    ids = ByteTokenizer().encode("</s><extra_id_0>")
    assert ids.min() >= 3
    assert ids.max() < 259
    assert ByteTokenizer().decode(ids.tolist()) == "</s><extra_id_0>"


def test_half_a_character_and_special_ids_decode_to_nothing() -> None:
    euro = ByteTokenizer().encode("€").tolist()
    assert ByteTokenizer().decode([1, 0, 2, 383, *euro[1:]]) == ""
    assert ByteTokenizer().num_bytes(np.array([1, 0, 2, 383, *euro])) == 3


def test_saved_bytes_load_as_byt5(tmp_path: Path) -> None:
    from transformers import AutoTokenizer

    ByteTokenizer().save(tmp_path)
    loaded = AutoTokenizer.from_pretrained(tmp_path, local_files_only=True)
    assert (
        loaded("é", add_special_tokens=False)["input_ids"] == ByteTokenizer().encode("é").tolist()
    )


@pytest.mark.parametrize("text", ["def self", "naïve 🙂\n", "<end> is text"])
def test_a_folder_tokenizer_gives_text_back(bpe_folder: Path, text: str) -> None:
    tokenizer = FolderTokenizer(bpe_folder)
    ids = tokenizer.encode(text)
    assert tokenizer.eos_id not in ids
    assert tokenizer.decode([*ids.tolist(), tokenizer.eos_id]) == text
    assert tokenizer.num_bytes(ids) == len(text.encode())
    assert tokenizer.encode("").shape == (0,)


def test_a_folder_tokenizer_is_saved_whole(bpe_folder: Path, tmp_path: Path) -> None:
    tokenizer = FolderTokenizer(bpe_folder)
    tokenizer.save(tmp_path / "copy")
    copy = FolderTokenizer(tmp_path / "copy")
    assert (copy.eos_id, copy.vocab_size) == (tokenizer.eos_id, tokenizer.vocab_size)
    assert copy.encode("def the").tolist() == tokenizer.encode("def the").tolist()


def test_ids_beyond_the_embeddings_are_refused_before_and_at_loading(bpe_folder: Path) -> None:
    num_ids = FolderTokenizer(bpe_folder).vocab_size
    check_tokenizer(bpe_folder, num_ids)
    with pytest.raises(DataError, match=f"{num_ids} ids, but the model has {num_ids - 1}"):
        check_tokenizer(bpe_folder, num_ids - 1)
    with pytest.raises(DataError, match=f"{num_ids} ids, but the model has {num_ids - 1}"):
        build_tokenizer(str(bpe_folder), num_ids - 1)


def test_a_tokenizer_without_an_end_is_refused(bpe_folder: Path) -> None:
    path = bpe_folder / "tokenizer_config.json"
    settings = json.loads(path.read_text())
    del settings["eos_token"]
    path.write_text(json.dumps(settings))
    with pytest.raises(DataError, match="no eos_token"):
        FolderTokenizer(bpe_folder)


def test_whether_a_bos_token_is_added_is_the_tokenizers_own_habit(bpe_folder: Path) -> None:
    from tokenizers.processors import TemplateProcessing
    from transformers import PreTrainedTokenizerFast

    assert (ByteTokenizer().bos_id, FolderTokenizer(bpe_folder).bos_id) == (None, None)
    theirs = PreTrainedTokenizerFast.from_pretrained(bpe_folder)
    theirs.add_special_tokens({"bos_token": "<start>"})
    theirs.save_pretrained(bpe_folder)
    silent = FolderTokenizer(bpe_folder)
    assert (silent.bos_id, silent.adds_bos) == (theirs.bos_token_id, False)
    theirs.backend_tokenizer.post_processor = TemplateProcessing(
        single="<start> $A", special_tokens=[("<start>", theirs.bos_token_id)]
    )
    theirs.save_pretrained(bpe_folder)
    adding = FolderTokenizer(bpe_folder)
    assert adding.adds_bos
    assert adding.bos_id not in adding.encode("text <start>")


@pytest.mark.parametrize(
    ("files", "message"),
    [
        (None, "there is no such folder"),
        ({}, "no tokenizer here"),
        ({"tokenizer.json": "{"}, "is not JSON"),
        ({"tokenizer.json": "[]"}, "must hold a JSON object"),
    ],
)
def test_what_is_no_tokenizer_is_named(
    tmp_path: Path, files: dict[str, str] | None, message: str
) -> None:
    folder = tmp_path / "tokenizer"
    if files is not None:
        folder.mkdir()
        for name, text in files.items():
            (folder / name).write_text(text)
    with pytest.raises(DataError, match=message):
        check_tokenizer(folder, 384)


@pytest.mark.parametrize("content", ["{}", '{"model": {"vocab": []}}'])
def test_a_broken_tokenizer_is_an_error_of_the_data(tmp_path: Path, content: str) -> None:
    (tmp_path / "tokenizer.json").write_text(content)
    with pytest.raises(DataError, match="no tokenizer can be loaded"):
        FolderTokenizer(tmp_path)


def test_the_folders_are_read_without_torch() -> None:
    import subprocess

    code = "import sys, launcher.model.llama, launcher.model.hf; print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"
