"""Records of Arrow tables, mapped into memory."""

from __future__ import annotations

import bisect
import json
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import xxhash
from typing_extensions import override

from launcher.data._tables.optional import pyarrow
from launcher.data._tables.table import FileTable
from launcher.errors import DataError

# Rows that are decoded together: small, because a record is read alone.
_BATCH = 1024


class ArrowTable(FileTable):
    """Rows of record batches.

    Args:
        path: Name of the file in messages.
        batches: Record batches of pyarrow; mapped, so that only what is read takes memory.
        class_names: Names of the classes of columns that hold their numbers.
    """

    def __init__(
        self, path: Path, batches: Sequence[Any], class_names: Mapping[str, Sequence[str]]
    ) -> None:
        self._path = path
        self._batches = [batch for batch in batches if batch.num_rows]
        self._ends = np.cumsum([batch.num_rows for batch in self._batches]).tolist()
        self.columns = list(batches[0].schema.names) if batches else []
        if len(set(self.columns)) < len(self.columns):
            raise DataError(f"{path}: two columns have the same name: {', '.join(self.columns)}")
        self.class_names = {k: v for k, v in class_names.items() if k in self.columns}
        hashes = [
            xxhash.xxh3_64_intdigest(repr(row).encode("utf-8", "surrogatepass"))
            for batch in self._batches
            for start in range(0, batch.num_rows, _BATCH)
            for row in batch.slice(start, _BATCH).to_pylist()
        ]
        self.hashes = np.array(hashes, dtype=np.uint64)

    @override
    def record(self, index: int) -> Mapping[str, Any]:
        number = bisect.bisect_right(self._ends, index)
        batch = self._batches[number]
        [row] = batch.slice(index - self._ends[number] + batch.num_rows, 1).to_pylist()
        for name, names in self.class_names.items():
            row[name] = _named(row[name], names)
        found: Mapping[str, Any] = row
        return found

    @override
    def place(self, index: int) -> str:
        return f"{self._path}:row {index + 1}"


def read_arrow(path: Path, class_names: Mapping[str, Sequence[str]] | None = None) -> ArrowTable:
    """Map an Arrow file (stream or file format) into memory."""
    with _reading(path):
        batches = list(_arrow_batches(path))
        return ArrowTable(path, batches, _features(batches) if class_names is None else class_names)


def read_parquet(path: Path) -> ArrowTable:
    """Convert a Parquet file to Arrow in a temporary file, and map it into memory."""
    # Parquet can only be read by groups of rows, which may be larger than the memory if records are
    # read in random order.
    pa, ipc = pyarrow("pyarrow", path), pyarrow("pyarrow.ipc", path)
    parquet = pyarrow("pyarrow.parquet", path)
    with _reading(path), tempfile.NamedTemporaryFile(suffix=".arrow") as file:
        opened = parquet.ParquetFile(path, memory_map=True)
        schema = opened.schema_arrow
        with ipc.new_stream(pa.OSFile(file.name, "wb"), schema) as writer:
            for batch in opened.iter_batches(batch_size=_BATCH):
                writer.write_batch(batch)
        # The map keeps the file, which has no name afterwards.
        batches = list(ipc.open_stream(pa.memory_map(file.name)))
        return ArrowTable(path, batches, _class_names(schema))


def first_row(path: Path, *, parquet: bool) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """Yield the place and the columns of the first row; nothing for a file without rows."""
    with _reading(path):
        if parquet:
            opened = pyarrow("pyarrow.parquet", path).ParquetFile(path, memory_map=True)
            batches = opened.iter_batches(batch_size=1)
        else:
            batches = _arrow_batches(path)
        for batch in batches:
            if batch.num_rows:
                table = ArrowTable(path, [batch.slice(0, 1)], _class_names(batch.schema))
                yield table.place(0), table.record(0)
                return


def dataset_features(folder: Path) -> Mapping[str, Sequence[str]]:
    """Return the names of classes in the dataset_info.json of a folder, if there is one."""
    try:
        values = json.loads((folder / "dataset_info.json").read_text(encoding="utf-8"))
        return _classes(values["features"])
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return {}


def _arrow_batches(path: Path) -> Iterator[Any]:
    pa, ipc = pyarrow("pyarrow", path), pyarrow("pyarrow.ipc", path)
    with path.open("rb") as file:
        is_file = file.read(6) == b"ARROW1"
    mapped = pa.memory_map(str(path))
    if is_file:
        opened = ipc.open_file(mapped)
        return (opened.get_batch(number) for number in range(opened.num_record_batches))
    return iter(ipc.open_stream(mapped))


def _features(batches: Sequence[Any]) -> Mapping[str, Sequence[str]]:
    return _class_names(batches[0].schema) if batches else {}


def _class_names(schema: Any) -> Mapping[str, Sequence[str]]:
    """Return the names of classes that `datasets` keeps in a schema."""
    try:
        values = json.loads((schema.metadata or {})[b"huggingface"])
        return _classes(values["info"]["features"])
    except (ValueError, KeyError, TypeError, AttributeError):
        return {}


def _classes(features: Mapping[str, Any]) -> dict[str, Sequence[str]]:
    found: dict[str, Sequence[str]] = {}
    for name, feature in features.items():
        # Of a list, the feature of its elements.
        inner = feature.get("feature", feature) if isinstance(feature, dict) else feature
        names = inner.get("names") if isinstance(inner, dict) else None
        if isinstance(names, list) and inner.get("_type") == "ClassLabel":
            found[name] = [str(each) for each in names]
    return found


def _named(value: Any, names: Sequence[str]) -> Any:
    if isinstance(value, list):
        return [_named(each, names) for each in value]
    # -1 is "no label".
    if isinstance(value, int) and 0 <= value < len(names):
        return names[value]
    return None


@contextmanager
def _reading(path: Path) -> Iterator[None]:
    try:
        yield
    except DataError:
        raise
    except Exception as error:
        # A damaged file raises any of pyarrow's exception types.
        raise DataError(f"{path}: cannot be read: {' '.join(str(error).split())[:300]}") from error
