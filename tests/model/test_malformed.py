"""Damaged model folders: each is refused with a message, before or while it is loaded."""

from __future__ import annotations

import json
import os
import shutil
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from launcher.contracts import Head
from launcher.errors import DataError
from launcher.model import build_module
from launcher.model.hf import HuggingFace
from tests.networks import small_llama

Damage = Callable[[Path], object]
CONFIG, WEIGHTS, INDEX = "config.json", "model.safetensors", "model.safetensors.index.json"
TOKENIZER, SETTINGS = "tokenizer.json", "tokenizer_config.json"


@pytest.fixture(scope="module")
def good(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    folder = tmp_path_factory.mktemp("good")
    small_llama(vocab_size=300).save_pretrained(folder)
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    tokenizer = Tokenizer(models.BPE({letter: i for i, letter in enumerate(alphabet)}, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<end>").save_pretrained(folder)
    return folder


def load(folder: Path) -> None:
    """Load the folder as a run does."""
    option = HuggingFace(
        kind="hf", path=str(folder), init="pretrained", tokenizer=None, attention="auto"
    )
    option.preflight()
    option.source_dtype()
    option.build_tokenizer().encode("some text")
    build_module(option, Head("causal_lm"), 0)


def put(name: str, content: bytes | str) -> Damage:
    data = content.encode() if isinstance(content, str) else content
    return lambda folder: (folder / name).write_bytes(data)


def cut(name: str, share: float) -> Damage:
    def damage(folder: Path) -> None:
        content = (folder / name).read_bytes()
        (folder / name).write_bytes(content[: int(len(content) * share)])

    return damage


def edit(name: str, *path: str, value: Any) -> Damage:
    """Set a value deep in a JSON file."""

    def damage(folder: Path) -> None:
        values = json.loads((folder / name).read_text())
        place = values
        for key in path[:-1]:
            place = place[key]
        place[path[-1]] = value
        (folder / name).write_text(json.dumps(values))

    return damage


def drop(name: str, key: str) -> Damage:
    def damage(folder: Path) -> None:
        values = json.loads((folder / name).read_text())
        del values[key]
        (folder / name).write_text(json.dumps(values))

    return damage


def replace(name: str, make: Callable[[Path], object]) -> Damage:
    def damage(folder: Path) -> None:
        (folder / name).unlink(missing_ok=True)
        make(folder / name)

    return damage


def fifo(name: str) -> Damage:
    return replace(name, os.mkfifo)


def link(name: str, target: str) -> Damage:
    return replace(name, lambda path: path.symlink_to(target))


def directory(name: str) -> Damage:
    return replace(name, Path.mkdir)


def header(change: Callable[[dict[str, Any]], object]) -> Damage:
    """Change the header of the weights; the data stays."""

    def damage(folder: Path) -> None:
        content = (folder / WEIGHTS).read_bytes()
        [length] = struct.unpack("<Q", content[:8])
        values = json.loads(content[8 : 8 + length])
        changed = json.dumps(change(values) or values).encode()
        data = content[8 + length :]
        (folder / WEIGHTS).write_bytes(struct.pack("<Q", len(changed)) + changed + data)

    return damage


def weights(change: Callable[[dict[str, torch.Tensor]], object]) -> Damage:
    def damage(folder: Path) -> None:
        tensors = load_file(folder / WEIGHTS)
        change(tensors)
        save_file(tensors, folder / WEIGHTS, {"format": "pt"})

    return damage


def index(content: Any) -> Damage:
    def damage(folder: Path) -> None:
        (folder / WEIGHTS).rename(folder / "part-1.safetensors")
        (folder / INDEX).write_text(content if isinstance(content, str) else json.dumps(content))

    return damage


def remove_tokenizer(folder: Path) -> None:
    for name in (TOKENIZER, SETTINGS):
        (folder / name).unlink()


NORM = "model.norm.weight"
CASES: dict[str, tuple[Damage, str]] = {
    "config cut at a quarter": (cut(CONFIG, 0.25), "config.json: is not JSON"),
    "config cut near its end": (cut(CONFIG, 0.98), "config.json: is not JSON"),
    "config empty": (put(CONFIG, ""), "config.json: is not JSON"),
    "config null": (put(CONFIG, "null"), "must hold a JSON object, but holds a NoneType"),
    "config a list": (put(CONFIG, "[]"), "must hold a JSON object, but holds a list"),
    "config a number": (put(CONFIG, "3"), "must hold a JSON object, but holds a int"),
    "config not UTF-8": (put(CONFIG, b'{"a": "\xff"}'), "config.json: is not JSON"),
    "config UTF-16": (put(CONFIG, "{}".encode("utf-16")), "config.json: is not JSON"),
    "config binary": (put(CONFIG, bytes(99)), "config.json: is not JSON"),
    "config nested without end": (put(CONFIG, '{"a":' + "[" * 10**5), "config.json: is not JSON"),
    "config with a number of 9999 digits": (
        put(CONFIG, '{"vocab_size": ' + "9" * 9999 + "}"),
        "config.json: is not JSON",
    ),
    "config a pipe": (fifo(CONFIG), "config.json: must be a file, but is a pipe"),
    "config a broken link": (link(CONFIG, "gone.json"), "config.json: is a broken link to gone"),
    "config a link to itself": (link(CONFIG, CONFIG), "config.json"),
    "config a device": (link(CONFIG, "/dev/zero"), "config.json: must be a file, but is a device"),
    "config a folder": (directory(CONFIG), "config.json: must be a file, but is a folder"),
    "config missing": (lambda folder: (folder / CONFIG).unlink(), "config.json: no such file"),
    "vocab_size missing": (drop(CONFIG, "vocab_size"), "no vocab_size"),
    "vocab_size null": (edit(CONFIG, "vocab_size", value=None), "no vocab_size"),
    "vocab_size text": (edit(CONFIG, "vocab_size", value="300"), "vocab_size must be a whole"),
    "vocab_size zero": (edit(CONFIG, "vocab_size", value=0), "vocab_size must be a whole"),
    "vocab_size negative": (edit(CONFIG, "vocab_size", value=-1), "vocab_size must be a whole"),
    "vocab_size broken": (edit(CONFIG, "vocab_size", value=3.5), "vocab_size must be a whole"),
    "vocab_size true": (edit(CONFIG, "vocab_size", value=True), "vocab_size must be a whole"),
    "vocab_size huge": (edit(CONFIG, "vocab_size", value=2**63), "vocab_size must be a whole"),
    "vocab_size infinite": (edit(CONFIG, "vocab_size", value=1e999), "vocab_size must be a whole"),
    "vocab_size a list": (
        edit(CONFIG, "vocab_size", value=[300, 300]),
        "vocab_size must be a whole",
    ),
    "vocab_size below the tokenizer's": (
        edit(CONFIG, "vocab_size", value=99),
        "257 ids, but the model has 99 embeddings",
    ),
    "vocab_size above the weights'": (
        edit(CONFIG, "vocab_size", value=301),
        "do not fit the model in config.json: 2 of another shape",
    ),
    "hidden_size text": (edit(CONFIG, "hidden_size", value="16"), "hidden_size must be a whole"),
    "hidden_size negative": (edit(CONFIG, "hidden_size", value=-16), "hidden_size must be"),
    "hidden_size NaN": (edit(CONFIG, "hidden_size", value=float("nan")), "hidden_size must be"),
    "hidden_size huge": (edit(CONFIG, "hidden_size", value=2**40), "hidden_size must be a whole"),
    "hidden_size odd": (edit(CONFIG, "hidden_size", value=17), "no (model|tokenizer) can be"),
    "layers negative": (edit(CONFIG, "num_hidden_layers", value=-1), "num_hidden_layers must be"),
    "layers without number": (edit(CONFIG, "num_hidden_layers", value=10**9), "must be a whole"),
    "one layer too many": (edit(CONFIG, "num_hidden_layers", value=2), "9 missing"),
    "no heads": (edit(CONFIG, "num_attention_heads", value=0), "num_attention_heads must be"),
    "heads that do not divide": (
        edit(CONFIG, "num_attention_heads", value=3),
        "no (model|tokenizer) can be",
    ),
    "positions text": (
        edit(CONFIG, "max_position_embeddings", value="50"),
        "no (model|tokenizer) can be",
    ),
    "model_type missing": (drop(CONFIG, "model_type"), "no (model|tokenizer) can be"),
    "model_type unknown": (edit(CONFIG, "model_type", value="nope"), "no (model|tokenizer) can be"),
    "model_type a number": (edit(CONFIG, "model_type", value=3), "model_type must be a text"),
    "model_type a list": (edit(CONFIG, "model_type", value=["llama"]), "model_type must be a text"),
    "model_type of an encoder and decoder": (edit(CONFIG, "model_type", value="t5"), "t5 has no c"),
    "architectures text": (edit(CONFIG, "architectures", value="Llama"), "architectures must be a"),
    "architectures numbers": (edit(CONFIG, "architectures", value=[3]), "must be a list of names"),
    "text_config a number": (edit(CONFIG, "text_config", value=3), "text_config must be a JSON"),
    "rope_parameters text": (
        edit(CONFIG, "rope_parameters", value="x"),
        "no (model|tokenizer) can be",
    ),
    "rope_type unknown": (
        edit(CONFIG, "rope_parameters", value={"rope_type": "nope", "rope_theta": 1e4}),
        "no (model|tokenizer) can be",
    ),
    "hidden_act unknown": (edit(CONFIG, "hidden_act", value="nope"), "no (model|tokenizer) can be"),
    "rms_norm_eps text": (
        edit(CONFIG, "rms_norm_eps", value="small"),
        "no (model|tokenizer) can be",
    ),
    "weights missing": (lambda folder: (folder / WEIGHTS).unlink(), r"no \*.safetensors file"),
    "weights under another name": (
        lambda folder: (folder / WEIGHTS).rename(folder / "adapter.safetensors"),
        "only adapter.safetensors, which is not loaded",
    ),
    "weights pickled": (
        lambda folder: (folder / WEIGHTS).rename(folder / "pytorch_model.bin"),
        "the weights are pickled",
    ),
    "weights empty": (put(WEIGHTS, ""), "is truncated or not a safetensors file"),
    "weights of four bytes": (put(WEIGHTS, "abcd"), "is truncated or not a safetensors file"),
    "weights cut off": (cut(WEIGHTS, 0.5), "is damaged, or the file is truncated"),
    "weights cut in the header": (cut(WEIGHTS, 0.02), "is truncated or not a safetensors file"),
    "weights text": (
        put(WEIGHTS, "version https://git-lfs.github.com/spec/v1\n"),
        "is truncated or",
    ),
    "weights with a header of no JSON": (
        put(WEIGHTS, struct.pack("<Q", 4) + b"{{{{"),
        "is not a safetensors file",
    ),
    "weights with a header of a list": (put(WEIGHTS, struct.pack("<Q", 2) + b"[]"), "no weights"),
    "weights without weights": (put(WEIGHTS, struct.pack("<Q", 2) + b"{}"), "holds no weights"),
    "weights of an unknown format": (
        header(lambda values: values[NORM].update(dtype="F7")),
        "no (model|tokenizer) can be",
    ),
    "weights with negative sizes": (
        header(lambda values: values[NORM].update(shape=[-16])),
        "the entry of model.norm.weight is damaged",
    ),
    "weights with offsets beyond the file": (
        header(lambda values: values[NORM].update(data_offsets=[0, 10**12])),
        "the entry of model.norm.weight is damaged",
    ),
    "weights with offsets that overlap": (
        header(lambda values: values[NORM].update(data_offsets=[0, 64])),
        "no (model|tokenizer) can be",
    ),
    "weights without shape": (header(lambda values: values[NORM].update(shape=None)), "is damaged"),
    "weights with an entry of text": (header(lambda values: {**values, NORM: "x"}), "is damaged"),
    "one weight missing": (weights(lambda tensors: tensors.pop(NORM)), "1 missing"),
    "one weight too many": (weights(lambda t: t.update(extra=torch.ones(1))), "1 unexpected"),
    "one weight of another shape": (
        weights(lambda t: t.update({NORM: torch.ones(3)})),
        "1 of another shape",
    ),
    "weights a folder": (directory(WEIGHTS), "model.safetensors: must be a file, but is a folder"),
    "weights a pipe": (fifo(WEIGHTS), "model.safetensors: must be a file, but is a pipe"),
    "weights a broken link": (link(WEIGHTS, "../blobs/1"), "is a broken link to ../blobs/1"),
    "index cut off": (index('{"weight_map": {'), "index.json: is not JSON"),
    "index without a map": (index({"metadata": {}}), "weight_map must name the file"),
    "index with a list": (index({"weight_map": [NORM]}), "weight_map must name the file"),
    "index with a number": (index({"weight_map": {NORM: 3}}), "the file of .* must be a name"),
    "index that leaves the folder": (
        index({"weight_map": {NORM: "../part-1.safetensors"}}),
        "the file of model.norm.weight must be a name",
    ),
    "index of a missing shard": (
        index({"weight_map": {NORM: "part-2.safetensors"}}),
        "names part-2.safetensors for model.norm.weight, but there is no such file",
    ),
    "index with an empty map": (index({"weight_map": {}}), "weight_map must name the file"),
    "tokenizer missing": (
        remove_tokenizer,
        "no tokenizer here",
    ),
    "tokenizer cut off": (cut(TOKENIZER, 0.5), "tokenizer.json: is not JSON"),
    "tokenizer not UTF-8": (put(TOKENIZER, b'{"\xff": 1}'), "tokenizer.json: is not JSON"),
    "tokenizer a list": (put(TOKENIZER, "[]"), "must hold a JSON object"),
    "tokenizer an empty object": (put(TOKENIZER, "{}"), "no tokenizer can be loaded"),
    "tokenizer a pipe": (fifo(TOKENIZER), "tokenizer.json: must be a file, but is a pipe"),
    "tokenizer a folder": (directory(TOKENIZER), "must be a file, but is a folder"),
    "tokenizer a broken link": (link(TOKENIZER, "gone"), "tokenizer.json: is a broken link"),
    "tokenizer's model a number": (edit(TOKENIZER, "model", value=3), "model must be an object"),
    "tokenizer's model unknown": (edit(TOKENIZER, "model", "type", value="x"), "can be loaded"),
    "vocabulary a number": (edit(TOKENIZER, "model", "vocab", value=3), "can be loaded"),
    "vocabulary with an id of text": (
        edit(TOKENIZER, "model", "vocab", value={"a": "x"}),
        "the id of a token must be a whole number from 0, but is x",
    ),
    "vocabulary with a huge id": (
        edit(TOKENIZER, "model", "vocab", value={"a": 10**12}),
        "1000000000001 ids, but the model has 300",
    ),
    "merges of nothing": (edit(TOKENIZER, "model", "merges", value=[["x", "yy"]]), "can be loaded"),
    "added tokens a number": (edit(TOKENIZER, "added_tokens", value=3), "added_tokens must be"),
    "added tokens without ids": (edit(TOKENIZER, "added_tokens", value=[{}]), "the id of a token"),
    "tokenizer settings cut off": (cut(SETTINGS, 0.5), "tokenizer_config.json: is not JSON"),
    "tokenizer settings a list": (put(SETTINGS, "[]"), "must hold a JSON object"),
    "tokenizer settings a pipe": (fifo(SETTINGS), "must be a file, but is a pipe"),
    "no end token": (drop(SETTINGS, "eos_token"), "no eos_token"),
    "end token a number": (edit(SETTINGS, "eos_token", value=3), "can be loaded|no eos_token"),
    "special tokens cut off": (put("special_tokens_map.json", "{"), "is not JSON"),
    "generation settings a pipe": (fifo("generation_config.json"), "but is a pipe"),
    "chat template a pipe": (fifo("chat_template.jinja"), "but is a pipe"),
}


def test_the_folder_is_fine_before_it_is_damaged(good: Path) -> None:
    load(good)


@pytest.mark.parametrize("name", CASES)
def test_a_damaged_folder_is_refused(good: Path, tmp_path: Path, name: str) -> None:
    damage, message = CASES[name]
    folder = tmp_path / "model"
    shutil.copytree(good, folder)
    damage(folder)
    with pytest.raises(DataError, match=message) as caught:
        load(folder)
    assert str(folder) in str(caught.value) or "architecture" in str(caught.value)
    assert len(str(caught.value)) < 600 + len(str(folder)) * 3


@pytest.mark.parametrize("path", ["a\0b", "x" * 5000, "/dev/null", "/proc/1/fd"])
def test_a_path_that_no_folder_can_have_is_refused(path: str) -> None:
    with pytest.raises(DataError, match=r"model.path"):
        load(Path(path))
