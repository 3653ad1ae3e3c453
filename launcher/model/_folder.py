"""Check a local model or tokenizer folder, without transformers."""

from __future__ import annotations

import json
import stat
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from launcher.contracts import ModelLimits
from launcher.errors import DataError

# A folder may come from anywhere: nothing in it may hang the launcher, exhaust its memory or end in
# a traceback.

# Names of the longest sequence in the configs of architectures; the first one that exists counts.
_POSITION_KEYS = ("max_position_embeddings", "n_positions", "max_seq_len", "seq_length", "n_ctx")
_WIDTH_KEYS = ("hidden_size", "d_model", "n_embd")
_LAYER_KEYS = ("num_hidden_layers", "num_layers", "n_layer")
_INNER_KEYS = ("intermediate_size", "d_ff", "n_inner", "ffn_dim")
_LARGEST_JSON = 2**28
# Upper bounds of sizes in config.json: a larger number is a damaged file, not a model.
_HIGHEST = {
    "vocab_size": 2**24,
    "hidden_size": 2**18,
    "n_embd": 2**18,
    "d_model": 2**18,
    "intermediate_size": 2**22,
    "n_inner": 2**22,
    "num_hidden_layers": 10_000,
    "n_layer": 10_000,
    "num_layers": 10_000,
    "num_attention_heads": 2**16,
    "n_head": 2**16,
    "num_key_value_heads": 2**16,
    "num_experts": 2**16,
    "num_local_experts": 2**16,
}
_STRUCTURE: Mapping[str, type] = {"architectures": list, "model_type": str, "text_config": dict}
_JSON_NAMES: Mapping[type, str] = {list: "list", str: "text", dict: "JSON object"}
_TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "tokenizer.model",
    "vocab.json",
    "vocab.txt",
    "spiece.model",
)
_READ_SUFFIXES = frozenset({".json", ".jinja", ".model", ".txt", ".safetensors"})


def read_config(folder: Path) -> dict[str, Any]:
    """Return the model's config.json, after checking its types and sizes."""
    _check_folder(folder, "model.path")
    path = folder / "config.json"
    config = read_json(path, "model.path must be a folder that transformers saved")
    for key, kind in _STRUCTURE.items():
        if config.get(key) is not None and not isinstance(config[key], kind):
            raise _wrong(path, key, config[key], f"a {_JSON_NAMES[kind]}")
    if not all(isinstance(name, str) for name in config.get("architectures") or ()):
        raise _wrong(path, "architectures", config["architectures"], "a list of names")
    for part in (config, config.get("text_config") or {}):
        for key, highest in _HIGHEST.items():
            values = part.get(key)
            # A list has a size for each layer.
            for value in values if isinstance(values, list) else [values]:
                if value is not None and not _is_int(value, highest):
                    raise _wrong(path, key, value, f"a whole number from 1 to {highest}")
    return config


def read_limits(folder: Path) -> ModelLimits:
    """Return vocabulary size and longest sequence from config.json."""
    config = read_config(folder)
    # Multimodal models have the sizes of the language model one level down.
    config = {**config, **(config.get("text_config") or {})}
    path, vocab_size = folder / "config.json", config.get("vocab_size")
    if vocab_size is None:
        raise DataError(f"{path}: no vocab_size; this is not the config of a language model")
    if not isinstance(vocab_size, int):
        raise _wrong(path, "vocab_size", vocab_size, "a whole number")
    found = next((config[key] for key in _POSITION_KEYS if config.get(key)), None)
    # Some configs have -1 for "no limit".
    positions = found if _is_int(found, 2**62) else None
    return ModelLimits(vocab_size=vocab_size, max_positions=positions)


def read_size(folder: Path) -> int | None:
    """Return the approximate number of parameters of this config.json; None if unknown."""
    # Embeddings, attention and an MLP of two matrices, as in most architectures: close enough for a
    # warning about a factor of ten.
    config = read_config(folder)
    config = {**config, **(config.get("text_config") or {})}

    def first(keys: tuple[str, ...]) -> int | None:
        return next((config[key] for key in keys if isinstance(config.get(key), int)), None)

    width, layers, vocab_size = first(_WIDTH_KEYS), first(_LAYER_KEYS), first(("vocab_size",))
    if width is None or layers is None or vocab_size is None:
        return None
    inner = first(_INNER_KEYS) or 4 * width
    return vocab_size * width + layers * (4 * width * width + 2 * width * inner)


def check_tokenizer(folder: Path, vocab_size: int) -> None:
    """Check that a folder has a tokenizer whose ids fit the network's embedding table."""
    _check_folder(folder, "model.tokenizer")
    if not any((folder / name).is_file() for name in _TOKENIZER_FILES):
        raise DataError(
            f"{folder}: no tokenizer here (none of {', '.join(_TOKENIZER_FILES)}); set "
            "model.tokenizer to a tokenizer's folder, or to byt5 for plain bytes"
        )
    for name in ("tokenizer_config.json", "special_tokens_map.json", "added_tokens.json"):
        if (folder / name).exists():
            read_json(folder / name, "")
    path = folder / "tokenizer.json"
    if path.exists():
        highest = _highest_id(path)
        if highest is not None:
            check_ids(str(folder), highest + 1, vocab_size)


def check_ids(tokenizer: str, num_ids: int, vocab_size: int) -> None:
    """Check that a network has an embedding for every id."""
    if num_ids > vocab_size:
        raise DataError(
            f"the tokenizer {tokenizer} has {num_ids} ids, but the model has {vocab_size} "
            f"embeddings; a model for it needs a vocab_size of at least {num_ids}"
        )


def read_json(path: Path, need: str) -> dict[str, Any]:
    """Return the JSON object in a file; `need` is added to the message if it is missing."""
    try:
        # Before it is opened: opening a pipe waits for a writer forever.
        found = path.stat()
        if not stat.S_ISREG(found.st_mode):
            raise DataError(f"{path}: must be a file, but is a {_kind(found.st_mode)}")
        if found.st_size > _LARGEST_JSON:
            raise DataError(f"{path}: must be below {_LARGEST_JSON} bytes, but has {found.st_size}")
        values = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise DataError(f"{path}: no such file; {need}") from None
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror}") from error
    except (ValueError, RecursionError) as error:
        raise DataError(f"{path}: is not JSON: {error}") from error
    if not isinstance(values, dict):
        raise DataError(f"{path}: must hold a JSON object, but holds a {type(values).__name__}")
    return values


def short(error: BaseException) -> str:
    """Return the beginning of a library's message, which may contain long lists."""
    text = " ".join(str(error).split()) or type(error).__name__
    return text if len(text) <= 300 else f"{text[:300]} …"


def _check_folder(folder: Path, key: str) -> None:
    """Raise DataError for anything but a folder of regular files."""
    try:
        if not folder.is_dir():
            what = "is a file, not a folder" if folder.exists() else "there is no such folder"
            raise DataError(f"{key}: {folder}: {what} (nothing is ever downloaded)")
        # transformers opens more files than are checked one by one.
        for path in sorted(folder.iterdir()):
            if path.suffix not in _READ_SUFFIXES:
                continue
            if path.is_symlink() and not path.exists():
                raise DataError(f"{path}: is a broken link to {path.readlink()}")
            if not stat.S_ISREG(mode := path.stat().st_mode):
                raise DataError(f"{path}: must be a file, but is a {_kind(mode)}")
    except (OSError, ValueError) as error:
        raise DataError(f"{key}: {folder}: cannot be read: {short(error)}") from error


def _kind(mode: int) -> str:
    kinds = {stat.S_IFDIR: "folder", stat.S_IFIFO: "pipe", stat.S_IFSOCK: "socket"}
    return kinds.get(stat.S_IFMT(mode), "device")


def _is_int(value: object, highest: int) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 1 <= value <= highest


def _wrong(path: Path, key: str, value: object, must: str) -> DataError:
    return DataError(f"{path}: {key} must be {must}, but is {str(value)[:60]}")


def _highest_id(path: Path) -> int | None:
    """Return the highest id in a tokenizer.json; None if it has no vocabulary."""
    values = read_json(path, "a tokenizer's folder has one")
    model, added = values.get("model", {}), values.get("added_tokens") or []
    if not isinstance(model, dict):
        raise _wrong(path, "model", model, "an object")
    if not isinstance(added, list) or not all(isinstance(token, dict) for token in added):
        raise _wrong(path, "added_tokens", added, "a list of objects")
    vocab = model.get("vocab")
    ids = [token.get("id") for token in added]
    if isinstance(vocab, dict):
        ids += vocab.values()
    elif isinstance(vocab, list):
        ids.append(len(vocab) - 1)
    for found in ids:
        if not isinstance(found, int) or isinstance(found, bool) or found < -1:
            raise _wrong(path, "the id of a token", found, "a whole number from 0")
    return max(ids, default=None)
