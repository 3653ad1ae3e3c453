"""What the files of a local model or tokenizer folder say, read without transformers."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from launcher.contracts import ModelLimits
from launcher.errors import DataError

# What architectures call the longest sequence; the first that is there counts.
_POSITION_KEYS = ("max_position_embeddings", "n_positions", "max_seq_len", "seq_length", "n_ctx")
_WIDTH_KEYS = ("hidden_size", "d_model", "n_embd")
_LAYER_KEYS = ("num_hidden_layers", "num_layers", "n_layer")
_INNER_KEYS = ("intermediate_size", "d_ff", "n_inner", "ffn_dim")
_TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "tokenizer.model",
    "vocab.json",
    "vocab.txt",
    "spiece.model",
)


def read_config(folder: Path) -> dict[str, Any]:
    """The model's config.json.

    Raises:
        DataError: There is no such folder or file, or it is not JSON.
    """
    _check_folder(folder, "model.path")
    return _read_json(folder / "config.json", "model.path must be a folder that transformers saved")


def read_limits(folder: Path) -> ModelLimits:
    """Vocabulary and longest sequence, as config.json gives them.

    Raises:
        DataError: config.json cannot be read or names no vocabulary size.
    """
    config = read_config(folder)
    # Models that also see or hear keep the language part's figures one level down.
    config = {**config, **config.get("text_config", {})}
    vocab_size = config.get("vocab_size")
    if not isinstance(vocab_size, int):
        raise DataError(
            f"{folder / 'config.json'}: no vocab_size; this is not the config of a language model"
        )
    positions = next((config[key] for key in _POSITION_KEYS if config.get(key)), None)
    return ModelLimits(vocab_size=vocab_size, max_positions=positions)


def read_size(folder: Path) -> int | None:
    """Return about how many parameters a transformer of this config.json has; None if unknown.

    Counted are embeddings, attention and an MLP of two matrices, as most architectures have them.

    Raises:
        DataError: config.json cannot be read.
    """
    config = read_config(folder)
    config = {**config, **config.get("text_config", {})}

    def first(keys: tuple[str, ...]) -> int | None:
        return next((config[key] for key in keys if isinstance(config.get(key), int)), None)

    width, layers, vocab_size = first(_WIDTH_KEYS), first(_LAYER_KEYS), first(("vocab_size",))
    if width is None or layers is None or vocab_size is None:
        return None
    inner = first(_INNER_KEYS) or 4 * width
    return vocab_size * width + layers * (4 * width * width + 2 * width * inner)


def check_weights(folder: Path) -> None:
    """Make sure that the folder holds weights that can be read without running code.

    Raises:
        DataError: There are no weights, or only pickled ones.
    """
    if any(folder.glob("*.safetensors")):
        return
    pickled = sorted(p.name for p in folder.iterdir() if p.suffix in {".bin", ".pt", ".pth"})
    if pickled:
        raise DataError(
            f"{folder}: the weights are pickled ({pickled[0]}), and loading a pickle can run any "
            "code; convert them to safetensors, or start from new weights with model.init=random"
        )
    raise DataError(
        f"{folder}: no *.safetensors file; give a folder with weights, or start from new ones with "
        "model.init=random"
    )


def check_tokenizer(folder: Path, vocab_size: int) -> None:
    """Make sure that a tokenizer folder is there and that its ids fit the network.

    Args:
        folder: What AutoTokenizer is to load.
        vocab_size: Rows of the network's embedding table.

    Raises:
        DataError: It is missing, is no tokenizer's, or has ids that the network has no row for.
    """
    _check_folder(folder, "model.tokenizer")
    if not any((folder / name).is_file() for name in _TOKENIZER_FILES):
        raise DataError(
            f"{folder}: no tokenizer here (none of {', '.join(_TOKENIZER_FILES)}); set "
            "model.tokenizer to a tokenizer's folder, or to byt5 for plain bytes"
        )
    if (folder / "tokenizer.json").is_file():
        highest = _highest_id(folder / "tokenizer.json")
        if highest is not None:
            check_ids(str(folder), highest + 1, vocab_size)


def check_ids(tokenizer: str, num_ids: int, vocab_size: int) -> None:
    """Make sure that a network has an embedding for every id.

    Raises:
        DataError: It has not.
    """
    if num_ids > vocab_size:
        raise DataError(
            f"the tokenizer {tokenizer} has {num_ids} ids, but the model has {vocab_size} "
            f"embeddings; a model for it needs a vocab_size of at least {num_ids}"
        )


def _check_folder(folder: Path, key: str) -> None:
    if not folder.is_dir():
        what = "is a file, not a folder" if folder.exists() else "there is no such folder"
        raise DataError(f"{key}: {folder}: {what} (nothing is ever downloaded)")


def _read_json(path: Path, need: str) -> dict[str, Any]:
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise DataError(f"{path}: no such file; {need}") from None
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror}") from error
    except ValueError as error:
        raise DataError(f"{path}: is not JSON: {error}") from error
    if not isinstance(values, dict):
        raise DataError(f"{path}: must hold a JSON object, but holds a {type(values).__name__}")
    return values


def _highest_id(path: Path) -> int | None:
    """The highest id in a tokenizer.json; None where it lists its vocabulary in no known way."""
    values = _read_json(path, "a tokenizer's folder has one")
    vocab = values.get("model", {}).get("vocab")
    ids = [token["id"] for token in values.get("added_tokens", [])]
    if isinstance(vocab, dict):
        ids += vocab.values()
    elif isinstance(vocab, list):
        ids.append(len(vocab) - 1)
    return max(ids, default=None)
