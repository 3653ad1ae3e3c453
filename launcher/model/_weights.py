"""Check the safetensors files in a model folder, without reading weights."""

from __future__ import annotations

import json
import math
from collections import Counter
from pathlib import Path
from typing import Any

from launcher.contracts import DType, SavedWeight
from launcher.errors import DataError
from launcher.model._folder import read_json

_FORMATS: dict[str, DType] = {"F32": "float32", "BF16": "bfloat16", "F16": "float16"}
_DTYPES = {
    **_FORMATS,
    "F64": "float64",
    "I64": "int64",
    "I32": "int32",
    "I16": "int16",
    "I8": "int8",
    "U8": "uint8",
    "BOOL": "bool",
}
# The limit of the safetensors library.
_LARGEST_HEADER = 10**8
_BLOCK = 2**24
_SINGLE = "model.safetensors"
_INDEX = "model.safetensors.index.json"


def check_weights(folder: Path) -> None:
    """Check that the folder has undamaged weights that can be read without running code."""
    for path in _files(folder):
        _header(path)


def has_weights(folder: Path) -> bool:
    """Return True if a folder has weights in safetensors, valid or not."""
    return (folder / _SINGLE).exists() or (folder / _INDEX).exists()


def saved_weights(folder: Path) -> dict[str, SavedWeight]:
    """Return where each tensor is, except those in formats that only their library reads."""
    found = {}
    for path in _files(folder):
        entries = _header(path)
        # The data follow the header; its length is in the first eight bytes.
        start = path.stat().st_size - max(entry["data_offsets"][1] for entry in entries.values())
        for name, entry in entries.items():
            if entry["dtype"] in _DTYPES:
                offset = start + entry["data_offsets"][0]
                found[name] = SavedWeight(path, offset, _DTYPES[entry["dtype"]])
    return found


def weights_dtype(folder: Path) -> DType | None:
    """Return the number format of most weights; None if it is no plain float format."""
    elements: Counter[str] = Counter()
    # By elements: norms and routers often have another format than the matrices.
    for path in _files(folder):
        for tensor in _header(path).values():
            elements[tensor["dtype"]] += math.prod(tensor["shape"])
    return _FORMATS.get(elements.most_common(1)[0][0]) if elements else None


def weights_hashes(folder: Path) -> dict[str, str]:
    """Return the hash of each weight file, headers included, by its name."""
    import xxhash

    found = {}
    for path in _files(folder):
        digest = xxhash.xxh3_128()
        try:
            with path.open("rb") as file:
                while block := file.read(_BLOCK):
                    digest.update(block)
        except OSError as error:
            raise DataError(f"{path}: cannot be read: {error.strerror}") from error
        found[path.name] = f"xxh3_128:{digest.hexdigest()}:{path.stat().st_size}"
    return found


def _files(folder: Path) -> list[Path]:
    """Return the weight files, in transformers' order of preference."""
    if (folder / _SINGLE).exists():
        return [folder / _SINGLE]
    if (folder / _INDEX).exists():
        return _shards(folder)
    names = sorted(path.name for path in folder.iterdir())
    if pickled := [name for name in names if name.endswith((".bin", ".pt", ".pth"))]:
        raise DataError(
            f"{folder}: the weights are pickled ({pickled[0]}), and loading a pickle can run any "
            "code; convert them to safetensors, or start from new weights with model.init=random"
        )
    others = [name for name in names if name.endswith(".safetensors")]
    found = f"only {others[0]}, which is not loaded" if others else "no *.safetensors file"
    raise DataError(
        f"{folder}: {found}; give a folder with {_SINGLE} or {_INDEX}, or start from new weights "
        "with model.init=random"
    )


def _shards(folder: Path) -> list[Path]:
    path = folder / _INDEX
    entries = read_json(path, "").get("weight_map")
    if not isinstance(entries, dict) or not entries:
        raise DataError(f"{path}: weight_map must name the file of each weight, but is missing")
    for weight, name in entries.items():
        # An index may come from anywhere: it must not name files outside its folder.
        if not isinstance(name, str) or Path(name).name != name:
            raise DataError(f"{path}: the file of {weight} must be a name, but is {name!r:.60}")
        if not (folder / name).is_file():
            raise DataError(f"{path}: names {name} for {weight}, but there is no such file")
    return [folder / name for name in sorted(set(entries.values()))]


def _header(path: Path) -> dict[str, Any]:
    """Return dtype, shape and position of each tensor in a safetensors file."""
    try:
        size = path.stat().st_size
        with path.open("rb") as file:
            length = int.from_bytes(file.read(8), "little")
            # The length is in the file: an unchecked one could make this read gigabytes.
            if size < 8 or length > min(size - 8, _LARGEST_HEADER):
                raise DataError(f"{path}: is truncated or not a safetensors file ({size} bytes)")
            header = json.loads(file.read(length))
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror}") from error
    except (ValueError, RecursionError) as error:
        raise DataError(f"{path}: is not a safetensors file: {error}") from error
    if not isinstance(header, dict) or not header.keys() - {"__metadata__"}:
        raise DataError(f"{path}: holds no weights")
    tensors = {name: entry for name, entry in header.items() if name != "__metadata__"}
    for name, tensor in tensors.items():
        if not _is_entry(tensor, size - 8 - length):
            raise DataError(f"{path}: the entry of {name} is damaged, or the file is truncated")
    return tensors


def _is_entry(tensor: object, data_size: int) -> bool:
    match tensor:
        case {"dtype": str(), "shape": list(shape), "data_offsets": [int(begin), int(end)]}:
            sizes = all(isinstance(size, int) and size >= 0 for size in shape)
            return sizes and 0 <= begin <= end <= data_size
        case _:
            return False
