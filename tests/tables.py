"""Data sets in files, as other libraries write them."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest


def save_to_disk(
    folder: Path,
    rows: Sequence[Mapping[str, Any]],
    classes: Mapping[str, Sequence[str]] | None = None,
) -> None:
    """Write a folder as `datasets.Dataset.save_to_disk` does."""
    pa = pytest.importorskip("pyarrow")
    folder.mkdir(parents=True, exist_ok=True)
    table = pa.Table.from_pylist(list(rows))
    name = "data-00000-of-00001.arrow"
    with pa.ipc.new_stream(pa.OSFile(str(folder / name), "wb"), table.schema) as writer:
        writer.write_table(table, max_chunksize=7)
    (folder / "state.json").write_text(json.dumps({"_data_files": [{"filename": name}]}))
    features = {k: {"names": v, "_type": "ClassLabel"} for k, v in (classes or {}).items()}
    (folder / "dataset_info.json").write_text(json.dumps({"features": features}))
