"""Sources of records with columns: what they read, how they split, and what they refuse."""

from __future__ import annotations

import bz2
import gzip
import json
import logging
import lzma
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from launcher.contracts import DataOption, DataSplits, Records
from launcher.errors import DataError
from tests.contract.witness import option_of, preset
from tests.tables import save_to_disk

ROWS = [{"text": f"text {i} é", "label": f"c{i % 3}"} for i in range(200)]


def source(name: str, **changes: Any) -> DataOption:
    option = option_of("data", {**preset("data", name), **changes})
    assert isinstance(option, DataOption)
    return option


def rows_of(records: Records) -> list[dict[str, Any]]:
    return [dict(records.record(i)) for i in range(len(records))]


def all_of(splits: DataSplits) -> list[str]:
    return sorted(
        json.dumps(r) for part in (splits.train, splits.validation) for r in rows_of(part)
    )


def json_lines(rows: Sequence[Mapping[str, Any]], end: str = "\n") -> bytes:
    return "".join(json.dumps(row) + end for row in rows).encode()


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def zstd(content: bytes) -> bytes:
    compressed: bytes = pytest.importorskip("pyarrow").compress(content, "zstd", asbytes=True)
    return compressed


@pytest.mark.parametrize("compress", [bytes, gzip.compress, bz2.compress, lzma.compress, zstd])
def test_compressed_files_are_the_same_records(
    here: Path, compress: Callable[[bytes], bytes]
) -> None:
    # With a byte-order mark, blank lines and line ends of Windows.
    (here / "plain").write_bytes(json_lines(ROWS))
    (here / "rows").write_bytes(compress(b"\xef\xbb\xbf" + json_lines(ROWS, "\r\n\r\n")))
    expected, found = source("jsonl", files="plain").build(), source("jsonl", files="rows").build()
    assert found.train.fingerprint == expected.train.fingerprint
    assert all_of(found) == all_of(expected) == sorted(map(json.dumps, ROWS))
    assert [place for place, _ in source("jsonl", files="rows").peek()] == ["rows"]


def test_all_formats_hold_the_same_records(here: Path) -> None:
    pa, parquet = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    (here / "a.jsonl").write_bytes(json_lines(ROWS))
    csv_rows = "".join(f'"{row["text"]}",{row["label"]}\n' for row in ROWS)
    (here / "a.csv").write_text("text,label\n" + csv_rows)
    (here / "a.tsv").write_text(
        "text\tlabel\n" + "".join(f"{r['text']}\t{r['label']}\n" for r in ROWS)
    )
    parquet.write_table(pa.Table.from_pylist(ROWS), here / "a.parquet")
    save_to_disk(here / "saved", ROWS)
    expected = all_of(source("jsonl", files="a.jsonl").build())
    for name in ("csv", "tsv", "parquet"):
        assert all_of(source(name, files=f"a.{name}").build()) == expected, name
    assert all_of(source("arrow", path="saved").build()) == expected


def test_the_split_is_a_function_of_each_record(here: Path) -> None:
    (here / "a").write_bytes(json_lines(ROWS))
    (here / "b").write_bytes(json_lines([*ROWS[::-1], {"text": "new", "label": "d"}]))
    first = source("jsonl", files="a", validation_fraction=0.2).build()
    second = source("jsonl", files="b", validation_fraction=0.2).build()
    held_out = [json.dumps(row) for row in rows_of(first.validation)]
    assert 20 <= len(held_out) <= 60
    assert set(held_out) <= {json.dumps(row) for row in rows_of(second.validation)}
    # A fraction that holds out nobody takes one record.
    (here / "c").write_bytes(json_lines(ROWS[:3]))
    assert len(source("jsonl", files="c", validation_fraction=1e-6).build().validation) == 1
    (here / "d").write_bytes(json_lines(ROWS[:1]))
    with pytest.raises(DataError, match=r"too few to hold some out; give data.validation_files"):
        source("jsonl", files="d").build()


def test_validation_records_that_are_trained_on_are_reported(
    here: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (here / "a").write_bytes(json_lines(ROWS[:50]))
    (here / "b").write_bytes(json_lines(ROWS[48:60]))
    with caplog.at_level(logging.WARNING):
        splits = source("jsonl", files="a", validation_files="b").build()
    assert (len(splits.train), len(splits.validation)) == (50, 12)
    assert "2 of 12 validation records are also training records" in caplog.text
    assert "b:1" in caplog.text


def test_rows_of_csv_span_lines_and_quotes(here: Path) -> None:
    (here / "a.csv").write_bytes(b'text,label\r\n"a\nb ""q""",x\r\n5" pipe,y\r\n\r\n"c,d",z\r\n')
    train = source("csv", files="a.csv", validation_files="a.csv", on_error="stop")
    with pytest.raises(DataError, match="matches every file"):
        train.build()
    (here / "b.csv").write_bytes((here / "a.csv").read_bytes())
    records = source("csv", files="a.csv", validation_files="b.csv").build().train
    assert rows_of(records) == [
        {"text": 'a\nb "q"', "label": "x"},
        {"text": '5" pipe', "label": "y"},
        {"text": "c,d", "label": "z"},
    ]
    assert [records.describe(i) for i in range(3)] == ["a.csv:2", "a.csv:4", "a.csv:6"]


BAD_JSON = {
    "open": (b'{"a": 1}\n{"a": 2\n', r"f:2:8: is not JSON: Expecting ',' delimiter"),
    "array": (b'[{"a": 1}]\n', r"f:1:1: must be a JSON object, but is a list; .*jq -c"),
    "lines of an array": (b'[\n{"a": 1}\n]\n', r"f:1:\d: is not JSON.*jq -c"),
    "scalar": (b"5\n", r"f:1:1: must be a JSON object"),
    "constant": (b'{"a": NaN}\n', r"f:1:1: .*NaN is no JSON number"),
    "twice": (b'{"a": 1, "a": 2}\n', r"f:1:1: .*the key 'a' is there twice"),
    "bytes": ('{"a": "é"}\n'.encode("latin-1"), r"f:1:8: byte 0xe9 is not UTF-8"),
    "half a character": (b'{"a": "\\ud800"}\n', r"f:1:1: \\ud800 is half a character"),
    "UTF-16": ('{"a": 1}\n'.encode("utf-16"), r"f:1:1: byte 0xff is not UTF-8"),
    "NUL": (b'{"a": "\0"}\n', r"f:1:8: a NUL byte"),
    "deep": (b'{"a":' + b"[" * 10**5 + b"\n", r"f:1:1: .*recursion"),
    "empty": (b"", "f: is empty"),
    "blank": (b"\n \n", "there is no record"),
    "truncated": (
        gzip.compress(json_lines(ROWS))[:-12],
        "f: cannot be read: Compressed",
    ),
    "damaged": (gzip.compress(b"x" * 999)[:40] + b"junk" * 9, "f: cannot be read"),
    "Parquet": (b"PAR1....", "f: is no text file; use data=parquet"),
    "bomb": (lzma.compress(bytes(10**8)), "expands to more than 2,000 times its size"),
}


@pytest.mark.parametrize("name", BAD_JSON)
def test_a_malformed_file_is_refused_with_its_place(here: Path, name: str) -> None:
    content, message = BAD_JSON[name]
    (here / "f").write_bytes(content)
    with pytest.raises(DataError, match=message):
        source("jsonl", files="f").build()


BAD_CSV = {
    "ragged": (b"a,b\n1,2\n1,2,3\n", r"f:3: must have 2 fields \(a, b\), but has 3"),
    "open quote": (b'a,b\n1,2\n"x,3\n4,5\n', r"f:3: unexpected end of data"),
    "twice": (b"a,a\n1,2\n", r"f:1: the first row must name each column once.*data.columns"),
    "bytes": (b"a,b\n1,2\n\xff,3\n", r"f:3:1: byte 0xff is not UTF-8"),
    "header alone": (b"a,b\n", "there is no record"),
}


@pytest.mark.parametrize("name", BAD_CSV)
def test_a_malformed_table_is_refused_with_its_place(here: Path, name: str) -> None:
    content, message = BAD_CSV[name]
    (here / "f").write_bytes(content)
    with pytest.raises(DataError, match=message):
        source("csv", files="f").build()


def test_bad_records_are_skipped_and_counted(here: Path, caplog: pytest.LogCaptureFixture) -> None:
    (here / "f").write_bytes(json_lines(ROWS[:30]) + b'{"text": \n[]\n' + json_lines(ROWS[30:60]))
    option = source("jsonl", files=["f"], on_error="skip")
    with caplog.at_level(logging.WARNING):
        splits = option.build()
    assert len(splits.train) + len(splits.validation) == 60
    assert "skipped 2 records or files, read 60 records; the first: f:31:9: is not" in caplog.text


def test_a_record_that_changes_is_found(here: Path) -> None:
    path = here / "f"
    path.write_bytes(json_lines(ROWS))
    records = source("jsonl", files="f").build().train
    path.write_bytes(json_lines(ROWS).replace(b"text", b"next"))
    with pytest.raises(DataError, match=r"f:\d+: changed since the run started"):
        records.record(3)


def test_columns_are_those_that_every_record_has(here: Path) -> None:
    (here / "f").write_text('{"a": 1, "b": 2}\n{"a": 1, "c": 3}\n{"a": 4, "b": 2}\n')
    assert list(source("jsonl", files="f").build().train.columns) == ["a"]


def test_classes_of_a_saved_data_set_have_names(here: Path) -> None:
    rows = [{"text": f"t{i}", "label": i % 2} for i in range(40)]
    for split in ("train", "test"):
        save_to_disk(here / "saved" / split, rows, {"label": ["neg", "pos"]})
    (here / "saved" / "dataset_dict.json").write_text("{}")
    train = source("arrow", path="saved").build().train
    assert {row["label"] for row in rows_of(train)} == {"neg", "pos"}
    assert train.class_names == {"label": ["neg", "pos"]}
    assert train.describe(0).endswith("arrow:row 1")
    with pytest.raises(DataError, match=r"has no split tset; did you mean 'test'\?"):
        source("arrow", path="saved", validation_split="tset").build()
    state = here / "saved" / "train" / "state.json"
    state.write_text(json.dumps({"_data_files": [{"filename": "../../secret.arrow"}]}))
    with pytest.raises(DataError, match=r"names '../../secret.arrow', which is no file in this"):
        source("arrow", path="saved").build()


def test_damaged_parquet_is_refused(here: Path) -> None:
    pa, parquet = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    parquet.write_table(pa.Table.from_pylist(ROWS), here / "f")
    (here / "f").write_bytes((here / "f").read_bytes()[:-20])
    with pytest.raises(DataError, match="f: cannot be read"):
        source("parquet", files="f").preflight()


def test_hashes_select_without_reading(here: Path) -> None:
    (here / "f").write_bytes(json_lines(ROWS))
    splits: Any = source("jsonl", files="f").build()
    assert splits.train.hashes.dtype == np.uint64
    assert not np.isin(splits.train.hashes, splits.validation.hashes).any()
