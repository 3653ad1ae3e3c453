from __future__ import annotations

import json
import logging
import os
import tracemalloc
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from pydantic import ValidationError

from launcher.contracts import DataSplits, Records
from launcher.data._files import FilePart, limit_size, scan_file
from launcher.data.text import TextFiles
from launcher.errors import DataError
from launcher.model._tokenizers import ByteTokenizer
from launcher.task._token_stream import read_tokens

PRESET = Path(__file__).parents[2] / "conf" / "data" / "text.yaml"


def text(files: Any, **changes: Any) -> TextFiles:
    values = {**yaml.safe_load(PRESET.read_text(encoding="utf-8")), "files": files, **changes}
    return TextFiles.model_validate_json(json.dumps(values))


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def write(path: Path, content: str | bytes) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


def corpus(here: Path, count: int = 200) -> None:
    for i in range(count):
        write(here / "corpus" / str(i % 7) / f"{i}.txt", f"file {i}\n" * (i % 5 + 1))


def places(records: Records) -> list[str]:
    return [records.describe(i) for i in range(len(records))]


def texts(records: Records) -> list[str]:
    return [records.record(i)["text"] for i in range(len(records))]


def names(splits: DataSplits) -> tuple[list[str], list[str]]:
    return places(splits.train), places(splits.validation)


def test_whole_files_are_held_out_by_their_path(here: Path) -> None:
    corpus(here)
    train, validation = names(text("corpus/**/*.txt").build())
    assert len(train) + len(validation) == 200
    assert 2 <= len(validation) <= 25
    assert train == sorted(train)
    assert not set(train) & set(validation)
    other = text(["corpus/*/1*.txt", "corpus/**/*.txt"]).build()
    assert names(other) == (train, validation)
    assert texts(other.train) == texts(text("corpus/**/*.txt").build().train)


def test_the_split_is_the_same_from_any_folder(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    corpus(here)
    relative = names(text("corpus/**/*.txt").build())[1]
    monkeypatch.chdir(here / "corpus" / "3")
    for pattern in ("../**/*.txt", f"{here}/corpus/**/*.txt"):
        validation = names(text(pattern).build())[1]
        assert [Path(v).resolve() for v in validation] == [here / r for r in relative]


@pytest.mark.parametrize("count", [1, 3])
def test_the_end_of_each_file_is_held_out_if_no_whole_file_can_be(here: Path, count: int) -> None:
    content = "".join(f"line {n}\n" for n in range(1, 101))
    for i in range(count):
        write(here / f"{i}.txt", content)
    splits = text("*.txt", validation_fraction=0.1).build()
    assert len(splits.train) == len(splits.validation) == count
    for head, tail in zip(texts(splits.train), texts(splits.validation), strict=True):
        assert head + tail == content
        assert 0.08 < len(tail) / len(content) <= 0.1
    for place, head_place, tail in zip(
        places(splits.validation), places(splits.train), texts(splits.validation), strict=True
    ):
        assert place == f"{head_place}:{tail.splitlines()[0].removeprefix('line ')}"


def test_a_file_that_is_most_of_the_text_is_not_held_out_whole(here: Path) -> None:
    corpus(here)
    held_out = names(text("corpus/**/*.txt").build())[1][0]
    write(here / held_out, "much text\n" * 10_000)
    splits = text("corpus/**/*.txt").build()
    sizes = [sum(map(len, texts(part))) for part in (splits.train, splits.validation)]
    assert sizes[1] < 0.1 * sizes[0]


@pytest.mark.parametrize(
    ("content", "head", "tail"),
    [
        ("aa\nbb\ncc\ndd\n", "aa\nbb\ncc\n", "dd\n"),
        ("aa\nbb\ncc\ndd", "aa\nbb\ncc\n", "dd"),
        # No line begins after the cut: the last that begins before it.
        ("aa\nbbbbbbbbbbbbbbbbbb\n", "aa\n", "bbbbbbbbbbbbbbbbbb\n"),
        # A single line is cut within.
        ("abcdefgh", "abcdef", "gh"),
        ("aé🙂bcdef\n", "aé🙂bcd", "ef\n"),
        ("🙂🙂", "🙂🙂", ""),
    ],
)
def test_a_single_file_is_cut_at_a_line(here: Path, content: str, head: str, tail: str) -> None:
    write(here / "one.txt", content)
    splits = text("one.txt", validation_fraction=0.25).build()
    assert texts(splits.train) == [head]
    assert texts(splits.validation) == [tail] * bool(tail)


def test_given_validation_files_are_never_trained_on(here: Path) -> None:
    for name in "abc":
        write(here / f"{name}.txt", name)
    (here / "link.txt").symlink_to("b.txt")
    splits = text("[abc].txt", validation_files=["link.txt", "c.txt"]).build()
    assert names(splits) == (["a.txt"], ["c.txt", "link.txt"])
    with pytest.raises(DataError, match="matches every file"):
        text("*.txt", validation_files="*.txt").preflight()


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        ("a\r\nb\rc\n", "a\r\nb\rc\n"),
        (b"\xef\xbb\xbfwith a mark", "with a mark"),
        ("a \ufeff within stays", "a \ufeff within stays"),
        ("  \n", "  \n"),
        ("no end of line", "no end of line"),
        ("é 東京 🙂 \x85 \u2028", "é 東京 🙂 \x85 \u2028"),
    ],
)
def test_text_is_kept_to_the_character(here: Path, content: str | bytes, expected: str) -> None:
    write(here / "a.txt", content)
    write(here / "held_out.txt", "x")
    splits = text("a.txt", validation_files="held_out.txt").build()
    assert texts(splits.train)[0] == expected


BAD_BYTES = [
    (b"", "a.txt: is empty"),
    (b"\xef\xbb\xbf", "a.txt: is empty"),
    (b"\xff", r"a.txt:1:1 \(byte 0\): byte 0xff is not UTF-8 \(invalid start byte\)"),
    ("é\nüx".encode() + b"\xe9 end", r"a.txt:2:3 \(byte 6\): byte 0xe9"),
    (b"ab\r\ncd\xe2\x82", r"a.txt:2:3 \(byte 6\): byte 0xe2 is not UTF-8 \(unexpected end"),
    (b"\xef\xbb\xbfab\xffc", r"a.txt:1:3 \(byte 5\): byte 0xff"),
    (b"\xef\xbb\xbfab\n\xc0\xaf", r"a.txt:2:1 \(byte 6\): byte 0xc0"),
    (b"\xed\xa0\x80", r"a.txt:1:1 \(byte 0\): byte 0xed"),
    (b"bin\nar\x00y", r"a.txt:2:3 \(byte 6\): a NUL byte"),
    ("utf-16".encode("utf-16-le"), r"a.txt:1:2 \(byte 1\): a NUL byte: .* UTF-16"),
    ("utf-16".encode("utf-16"), r"a.txt:1:1 \(byte 0\): byte 0xff"),
]


@pytest.mark.parametrize(("content", "message"), BAD_BYTES)
def test_the_first_byte_that_is_not_text_is_named(here: Path, content: bytes, message: str) -> None:
    write(here / "a.txt", content)
    write(here / "b.txt", "fine\n")
    with pytest.raises(DataError, match=message):
        text("*.txt").build()


@pytest.mark.parametrize(("content", "message"), BAD_BYTES)
def test_skipped_files_are_counted_in_a_warning(
    here: Path, content: bytes, message: str, caplog: pytest.LogCaptureFixture
) -> None:
    write(here / "a.txt", content)
    write(here / "b.txt", "fine\nlines\n")
    option = text("*.txt", on_error="skip")
    option.preflight()
    with caplog.at_level(logging.WARNING):
        train, _ = names(option.build())
    assert train == ["b.txt"]
    assert "skipped 1 of 2 files: 1 " in caplog.text


def test_many_bad_files_are_named_and_the_rest_counted(here: Path) -> None:
    for i in range(9):
        write(here / f"{i}.txt", "")
    with pytest.raises(DataError, match=r"0.txt: is empty(.|\n)*4.txt(.|\n)*and 4 more files"):
        text("*.txt").preflight()
    with pytest.raises(DataError, match="is empty"):
        text("*.txt", on_error="skip").build()


def test_nothing_is_read_before_the_run(here: Path) -> None:
    write(here / "a.txt", b"\xff")
    text("a.txt").preflight()


def make_nothing(here: Path) -> None:
    pass


def make_folders(here: Path) -> None:
    write(here / "corpus" / "deep" / "a.txt", "a")


def make_pipe(here: Path) -> None:
    os.mkfifo(here / "pipe.txt")


def make_broken_link(here: Path) -> None:
    (here / "link.txt").symlink_to("gone.txt")


def make_hidden(here: Path) -> None:
    write(here / ".hidden.txt", "a")


@pytest.mark.parametrize(
    ("make", "pattern", "message"),
    [
        (make_nothing, "corpus/**/*.txt", r"data.files: 'corpus/\*\*/\*.txt' matches no file in /"),
        (make_nothing, "a.txt", "data.files: 'a.txt' matches no file in"),
        (make_nothing, ["a.txt"], "data.files: 'a.txt' matches no file in"),
        (make_folders, "corpus", r"matches only folders in .*; write corpus/\*\*/\*.txt"),
        (make_folders, "corpus/*", r"matches only folders in .*; write corpus/\*\*/\*.txt"),
        (make_folders, ["corpus/**", "gone/*"], r"'gone/\*' matches no file"),
        (make_pipe, "*.txt", "matches no regular file: .*pipe.txt is a pipe"),
        (make_broken_link, "*.txt", "only a broken link: .*link.txt points to gone.txt"),
        (make_hidden, "*.txt", "matches no file"),
    ],
)
def test_a_pattern_without_a_file_is_named_with_the_folder(
    here: Path, make: Callable[[Path], None], pattern: Any, message: str
) -> None:
    make(here)
    for step in (text(pattern).preflight, text(pattern).build):
        with pytest.raises(DataError, match=message):
            step()


def test_a_held_out_pattern_without_a_file_is_named(here: Path) -> None:
    write(here / "a.txt", "a")
    with pytest.raises(DataError, match=r"data.validation_files: 'b.txt' matches no file"):
        text("a.txt", validation_files="b.txt").preflight()


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_a_file_that_may_not_be_read_is_named(here: Path) -> None:
    write(here / "a.txt", "a").chmod(0)
    for step in (text("a.txt").preflight, text("a.txt").build):
        with pytest.raises(DataError, match=r"a.txt: cannot be read"):
            step()


def test_a_file_that_changes_after_it_was_checked_is_named(here: Path) -> None:
    path = write(here / "a.txt", "line\n" * 9)
    records = text("a.txt").build().train
    for change in ("short", "\xff" * 99):
        path.write_bytes(change.encode("latin-1"))
        with pytest.raises(DataError, match=r"a.txt: (changed|became shorter) since"):
            records.record(0)
    path.unlink()
    with pytest.raises(DataError, match=r"a.txt: changed since the run started: .*No such file"):
        records.record(0)


OTHER_FORMATS = [
    (
        "a.jsonl",
        '{"id": 1, "body": "x"}\n',
        r"a.jsonl: is a JSON Lines file.*write data=jsonl task.columns.text=body \(",
    ),
    ("a.NDJSON", "anything", r"is a JSON Lines file, .*; write data=jsonl \("),
    ("a.txt", '{"text": "x"}\n{"text": "y"}\n', r"a.txt: is a JSON Lines file"),
    (
        "a.json",
        '[{"id": 1, "body": "x"}, {"id": 2}]',
        r"is a JSON file, .*jq -r '\.\[\]\.body' a.json",
    ),
    ("a.json", '\n[\n  "x",\n  "y"\n]\n', r"is a JSON file, .*jq -r '\.\[\]' a.json > a.txt"),
    ("a.txt", '\ufeff[\n {"text": "x"},\n {"text": "y"}\n]\n', r"a.txt: is a JSON file"),
    ("a.csv", "id,text,n\n1,x,2\n", r"is a CSV file, .*; write data=csv \("),
    ("a.tsv", "id\tbody\n1\tx\n", r"is a CSV file, .*; write data=tsv task.columns.text=body"),
    ("a.parquet", b"PAR1\x15\x04", r"is a Parquet file, .*; write data=parquet"),
    ("my file.txt.gz", b"\x1f\x8b\x08\x00", r"is a gzip file, .*gunzip --keep 'my file.txt.gz'"),
    ("a.txt", b"\x28\xb5\x2f\xfd\x00", r"is a zstd file, but data=text reads plain text; .*unzstd"),
]


@pytest.mark.parametrize(("name", "content", "message"), OTHER_FORMATS)
def test_a_file_in_another_format_is_refused_with_its_conversion(
    here: Path, name: str, content: str | bytes, message: str
) -> None:
    write(here / name, content)
    write(here / "fine.txt", "fine\n")
    with pytest.raises(DataError, match=message):
        text(["fine.txt", name]).build()
    if not name.endswith(".txt"):
        with pytest.raises(DataError, match=message):
            text(["fine.txt", name]).preflight()
    skipping = text(["fine.txt", name], on_error="skip")
    assert places(skipping.build().train) == ["fine.txt"]


def test_structured_text_is_read_as_it_is_where_it_is_allowed(here: Path) -> None:
    content = '{"text": "x"}\n' * 20
    write(here / "a.jsonl", content)
    option = text("a.jsonl", allow_structured=True)
    option.preflight()
    splits = option.build()
    assert "".join(texts(splits.train) + texts(splits.validation)) == content


PLAIN = [
    ("a.json", '{"one": 1}\n'),
    ("a.txt.gz", "{\n}\n"),
    ("a.py", "{\n}\n"),
    ("a.py", '["a", "b"]\n'),
    ("a.js", '[{"a": 1}].forEach(print)\n[{"a"'),
    ("a.txt", "[1] Smith, J., A, 1999\n[2] Jones, K., B, 2000\n"),
    ("a.txt", "Red, green, and blue.\n\nOne, two, and three.\nHere, there, and back.\n" * 9),
    ("a.c", "int a, b, c;\nint d, e, f;\nint g, h, i;\nint j, k, l;\nint m, n, o;\n"),
    ("a.txt", "1,2,3\n" * 9),
]


@pytest.mark.parametrize(("name", "content"), PLAIN)
def test_plain_text_is_not_taken_for_another_format(
    here: Path, name: str, content: str, caplog: pytest.LogCaptureFixture
) -> None:
    write(here / name, content)
    text(name).preflight()
    assert len(text(name).build().train) == 1
    assert not caplog.records


@pytest.mark.parametrize(
    "content",
    [
        'id,title,text\n1,a,"x, y"\n2,b,z\n3,"c\nd",z\n4,d,z\n5,e,a long te',
        "id\ttext\n" + "1\tx, y\n" * 9,
        "id;text;lang\n" + "1;x;en\n" * 9,
    ],
)
def test_a_table_under_another_name_is_read_with_a_warning(
    here: Path, content: str, caplog: pytest.LogCaptureFixture
) -> None:
    write(here / "a.txt", content)
    splits = text("a.txt").build()
    assert "".join(texts(splits.train) + texts(splits.validation)) == content
    [record] = caplog.records
    assert "a.txt: looks like a CSV file with the columns id, " in record.getMessage()
    text("a.txt", allow_structured=True).build()
    assert len(caplog.records) == 1


def test_linked_folders_are_followed_and_home_is_expanded(
    here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(here / "elsewhere" / "a.txt", "a\nb\n")
    (here / "home").mkdir()
    (here / "home" / "corpus").symlink_to(here / "elsewhere")
    monkeypatch.setenv("HOME", str(here / "home"))
    train, _ = names(text("~/corpus/**/*.txt").build())
    assert train == [f"{here}/home/corpus/a.txt"]


@pytest.mark.parametrize(
    "changes", [{"files": ""}, {"files": []}, {"files": 3}, {"on_error": "ignore"}]
)
def test_values_of_another_type_are_refused(changes: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        text(**{"files": "a.txt", **changes})


@pytest.mark.parametrize("content", ["a line\n" * 40, "é🙂" * 40, "é🙂" * 9 + "\n" + "x\n" * 60])
def test_a_large_file_becomes_several_records(here: Path, content: str) -> None:
    write(here / "a.txt", "\ufeff" + content)
    part = scan_file(here / "a.txt", label="a")
    assert isinstance(part, FilePart)
    pieces = list(limit_size(part, 50))
    assert "".join(piece.read() for piece in pieces) == content
    assert max(map(len, pieces)) <= 53
    for before, piece in pairwise(pieces):
        assert before.read()[-1] == "\n" or "\n" not in before.read()
        line = (
            content[: len((here / "a.txt").read_bytes()[3 : piece.start].decode())].count("\n") + 1
        )
        assert piece.name == ("a" if line == 1 else f"a:{line}")


def test_a_large_file_has_one_end_token(here: Path) -> None:
    content = b"a line of letters\n" * (9 * 2**20 // 18)
    write(here / "a.txt", content)
    write(here / "b.txt", "other\n")
    write(here / "held_out.txt", "held out\n")
    records = text(["a.txt", "b.txt"], validation_files="held_out.txt").build().train
    tokenizer = ByteTokenizer()
    tokens = read_tokens(records, tokenizer, bos_id=None).tokens
    assert places(records)[0] == "a.txt"
    assert len(records) == 4  # three of a.txt
    whole = [len(content) + 1, len(content) + 1 + len("other\n") + 1]
    assert (tokens == tokenizer.eos_id).nonzero()[0].tolist() == [0, *whole]
    assert (tokens[1 : whole[0]] - 3).astype(np.uint8).tobytes() == content


def test_reading_takes_the_memory_of_a_record_not_of_the_files(here: Path) -> None:
    for name in "ab":
        write(here / f"{name}.txt", "some text of a line\n" * 2**20)
    tracemalloc.start()
    try:
        records = text("*.txt").build().train
        assert len(records) == 10
        for index in range(len(records)):
            records.record(index)
        assert tracemalloc.get_traced_memory()[1] < 16 * 2**20
    finally:
        tracemalloc.stop()
