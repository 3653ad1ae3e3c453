"""A checkpoint that somebody else has made, with checksums that are right, cannot run code."""

from __future__ import annotations

import io
import json
import os
import pickle
import struct
import subprocess
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import torch
from torch.distributed.checkpoint.filesystem import _StorageInfo
from torch.distributed.checkpoint.metadata import (
    BytesStorageMetadata,
    ChunkStorageMetadata,
    Metadata,
    MetadataIndex,
    TensorStorageMetadata,
)
from typing_extensions import override

from launcher.contracts import TrainState
from launcher.errors import CheckpointError

if TYPE_CHECKING:
    from tests.checkpoint.conftest import Bench


class Gadget:
    """Pickles into a call."""

    def __init__(self, function: Callable[..., object], *args: object) -> None:
        self.call = (function, args)

    @override
    def __reduce__(self) -> tuple[Callable[..., object], tuple[object, ...]]:
        return self.call


def by_name(module: str, name: str, argument: str) -> bytes:
    """A pickle of protocol 4 that calls `module.name(argument)`, whatever the name is."""

    def text(value: str) -> bytes:
        return b"X" + struct.pack("<I", len(value.encode())) + value.encode()

    return b"\x80\x04" + text(module) + text(name) + b"\x93" + text(argument) + b"\x85R."


def gadgets(marker: Path) -> dict[str, bytes]:
    code = f"open({str(marker)!r}, 'w').close()"
    calls: dict[str, tuple[Callable[..., object], Any]] = {
        "os.system": (os.system, f"touch {marker}"),
        "subprocess": (subprocess.Popen, ["touch", str(marker)]),
        "eval": (eval, code),
        "exec": (exec, code),
        "open": (io.open, str(marker)),
        "Path.touch": (Path.touch, marker),
        "getattr": (getattr, "text"),
        "pickle.loads": (pickle.loads, pickle.dumps(Gadget(os.system, f"touch {marker}"))),
        "torch.load": (torch.load, "/dev/null"),
    }
    names = [
        ("torch", "Size.__init__.__globals__"),
        ("torch", "os.system"),
        ("torch", "_utils.os.system"),
        ("torch.serialization", "os.system"),
        ("torch.distributed.checkpoint.metadata", "os.system"),
        ("torch.distributed.checkpoint.filesystem", "os.system"),
        ("torch.distributed.checkpoint.metadata", "dataclass"),
        ("torch", "compile"),
        ("torch", "float32.__class__"),
        ("builtins", "eval"),
        ("__builtin__", "eval"),
        ("copyreg", "_reconstructor"),
    ]
    pickles = {
        name: pickle.dumps(Gadget(function, argument))
        for name, (function, argument) in calls.items()
    }
    return pickles | {".".join(name): by_name(*name, f"touch {marker}") for name in names}


NAMES = sorted(gadgets(Path("marker")))


def metadata_of(bench: Bench) -> Metadata:
    metadata = pickle.loads((bench.step(1) / "state" / ".metadata").read_bytes())
    assert isinstance(metadata, Metadata)
    return metadata


def assert_refused(bench: Bench, marker: Path, name: str) -> str:
    """Loading ends in an error that names the file; no code ran; nothing older is loaded."""
    with pytest.raises(CheckpointError, match="refused") as raised:
        bench.load()
    assert not marker.exists()
    assert str(bench.step(1) / "state" / name) in str(raised.value)
    assert bench.names() == ["step-00000000", "step-00000001"]
    return str(raised.value)


@pytest.fixture
def marker(bench: Bench, tmp_path: Path) -> Path:
    bench.save(0, 1)
    return tmp_path / "code-has-run"


def test_the_gadgets_work(marker: Path) -> None:
    """Without our unpickler they do run: the tests below can fail."""
    for name in ("os.system", "eval", "exec"):
        pickle.loads(gadgets(marker)[name])
        assert marker.exists()
        marker.unlink()


@pytest.mark.parametrize("name", NAMES)
def test_a_pickle_in_place_of_the_index(bench: Bench, marker: Path, name: str) -> None:
    (bench.step(1) / "state" / ".metadata").write_bytes(gadgets(marker)[name])
    bench.reseal(1)
    assert_refused(bench, marker, ".metadata")


@pytest.mark.parametrize(
    "place", ["planner_data", "storage_meta", "version", "state_dict_metadata"]
)
def test_a_pickle_inside_the_index(bench: Bench, marker: Path, place: str) -> None:
    metadata = metadata_of(bench)
    gadget = Gadget(os.system, f"touch {marker}")
    if place == "state_dict_metadata":
        metadata.state_dict_metadata["model.evil"] = gadget  # type: ignore[assignment]
    else:
        setattr(metadata, place, gadget)
    (bench.step(1) / "state" / ".metadata").write_bytes(pickle.dumps(metadata))
    bench.reseal(1)
    assert "posix.system" in assert_refused(bench, marker, ".metadata")


def plant(bench: Bench, key: str, entry: bytes) -> None:
    """Put other bytes where the index says that a tensor lies."""
    metadata, path = metadata_of(bench), bench.step(1) / "state" / "__0_0.distcp"
    data = path.read_bytes()
    for index, place in metadata.storage_data.items():
        if index.fqn == key:
            metadata.storage_data[index] = _StorageInfo(place.relative_path, len(data), len(entry))
    path.write_bytes(data + entry)
    (bench.step(1) / "state" / ".metadata").write_bytes(pickle.dumps(metadata))
    bench.reseal(1)


def zipped(name: str, pickled: bytes) -> bytes:
    """Return the file that torch.save would write for a tensor with this pickle."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr("archive/data.pkl", pickled)
        archive.writestr("archive/version", "3\n")
        if name == "torchscript":
            archive.writestr("archive/constants.pkl", pickled)
    return buffer.getvalue()


@pytest.mark.parametrize("form", ["zip", "torchscript", "plain"])
@pytest.mark.parametrize("name", ["os.system", "eval", "getattr", "torch.os.system"])
def test_a_pickle_in_place_of_a_tensor(bench: Bench, marker: Path, name: str, form: str) -> None:
    pickled = gadgets(marker)[name]
    plant(bench, "model.weight", pickled if form == "plain" else zipped(form, pickled))
    assert "model.weight" in assert_refused(bench, marker, "__0_0.distcp")


@pytest.mark.parametrize(
    "value",
    [
        torch.zeros(3, 12, dtype=torch.float64),
        torch.zeros(3, 11),
        torch.zeros(3, 12).to_sparse(),
        torch.nn.Parameter(torch.zeros(3, 12)),
        {"a": torch.zeros(3, 12)},
        "text",
        3,
    ],
    ids=["dtype", "shape", "sparse", "parameter", "dict", "text", "number"],
)
def test_something_else_in_place_of_a_tensor(bench: Bench, marker: Path, value: object) -> None:
    buffer = io.BytesIO()
    torch.save(value, buffer)
    plant(bench, "model.weight", buffer.getvalue())
    assert_refused(bench, marker, "__0_0.distcp")


def test_an_entry_that_is_not_a_tensor(bench: Bench, marker: Path) -> None:
    metadata = metadata_of(bench)
    metadata.state_dict_metadata["model.weight"] = BytesStorageMetadata()
    (bench.step(1) / "state" / ".metadata").write_bytes(pickle.dumps(metadata))
    bench.reseal(1)
    assert "BytesStorageMetadata" in assert_refused(bench, marker, ".metadata")


@pytest.mark.parametrize(
    "place",
    [
        _StorageInfo("../../step-00000000/state/__0_0.distcp", 0, 10),
        _StorageInfo("/etc/hostname", 0, 10),
        _StorageInfo("__0_0.distcp", 10**9, 10),
        _StorageInfo("__0_0.distcp", -5, 10),
        _StorageInfo("__0_0.distcp", 0, 10, ["zstd"]),
        _StorageInfo("__0_0.distcp", "0", 10),  # type: ignore[arg-type]
        "not a place",
        None,
    ],
)
def test_a_place_outside_the_files(bench: Bench, marker: Path, place: object) -> None:
    metadata = metadata_of(bench)
    index = next(iter(metadata.storage_data))
    metadata.storage_data[index] = place
    (bench.step(1) / "state" / ".metadata").write_bytes(pickle.dumps(metadata))
    bench.reseal(1)
    assert_refused(bench, marker, ".metadata")


def rewrite_index(bench: Bench, metadata: Metadata) -> None:
    (bench.step(1) / "state" / ".metadata").write_bytes(pickle.dumps(metadata))
    bench.reseal(1)


def chunk(offsets: list[int], sizes: list[int]) -> ChunkStorageMetadata:
    return ChunkStorageMetadata(torch.Size(offsets), torch.Size(sizes))


CHUNKS: dict[str, object] = {
    "none": [],
    "no list": None,
    "a part only": [chunk([0, 0], [2, 12])],
    "a gap and an overlap of the same size": [chunk([0, 0], [2, 12]), chunk([1, 0], [1, 12])],
    "twice": [chunk([0, 0], [3, 12]), chunk([0, 0], [3, 12])],
    "negative offset": [chunk([-1, 0], [3, 12])],
    "negative size": [chunk([0, 0], [-3, -12])],
    "outside": [chunk([1, 0], [3, 12])],
    "too few dims": [chunk([0], [36])],
    "too many dims": [chunk([0, 0, 0], [3, 12, 1])],
    "an empty one more": [chunk([0, 0], [3, 12]), chunk([3, 0], [0, 12])],
    "no chunk": ["chunk"],
    "a list for offsets": [ChunkStorageMetadata([0, 0], [3, 12])],  # type: ignore[arg-type]
}


@pytest.mark.parametrize("name", CHUNKS)
def test_boxes_that_do_not_cover_the_tensor_exactly(bench: Bench, marker: Path, name: str) -> None:
    metadata = metadata_of(bench)
    entry = metadata.state_dict_metadata["model.weight"]
    assert isinstance(entry, TensorStorageMetadata)
    place = metadata.storage_data[MetadataIndex("model.weight", [0, 0])]
    chunks: Any = CHUNKS[name]
    entry.chunks = chunks
    for one in chunks or []:
        if isinstance(one, ChunkStorageMetadata):
            metadata.storage_data[MetadataIndex("model.weight", one.offsets)] = place
    rewrite_index(bench, metadata)
    assert "model.weight" in assert_refused(bench, marker, ".metadata")


@pytest.mark.parametrize("size", [[-3, -12], [3], [3, 13], [0, 12]])
def test_a_size_that_is_not_that_of_the_boxes(bench: Bench, marker: Path, size: list[int]) -> None:
    metadata = metadata_of(bench)
    entry = metadata.state_dict_metadata["model.weight"]
    assert isinstance(entry, TensorStorageMetadata)
    entry.size = torch.Size(size)
    rewrite_index(bench, metadata)
    assert "model.weight" in assert_refused(bench, marker, ".metadata")


def test_a_box_without_a_place(bench: Bench, marker: Path) -> None:
    metadata = metadata_of(bench)
    del metadata.storage_data[MetadataIndex("model.weight", [0, 0])]
    rewrite_index(bench, metadata)
    assert "model.weight" in assert_refused(bench, marker, ".metadata")


def test_a_place_of_no_tensor(bench: Bench, marker: Path) -> None:
    metadata = metadata_of(bench)
    metadata.storage_data[MetadataIndex("model.more", [0])] = _StorageInfo("__0_0.distcp", 0, 1)
    rewrite_index(bench, metadata)
    assert "model.more" in assert_refused(bench, marker, ".metadata")


def test_an_index_without_places(bench: Bench, marker: Path) -> None:
    metadata = metadata_of(bench)
    metadata.storage_data = {}
    (bench.step(1) / "state" / ".metadata").write_bytes(pickle.dumps(metadata))
    bench.reseal(1)
    assert_refused(bench, marker, ".metadata")


@pytest.mark.parametrize("text", ["[1, 2]", "{", "\x00"])
def test_a_train_state_that_is_not_an_object(bench: Bench, marker: Path, text: str) -> None:
    (bench.step(1) / "train_state.json").write_text(text)
    bench.reseal(1)
    with pytest.raises(CheckpointError, match=r"train_state\.json"):
        bench.load()


STATE = TrainState(step=1).to_json()


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        ({"samples": -1}, "samples must be a whole number, at least 0, but is -1"),
        ({"tokens": 2.5}, "tokens must be"),
        ({"skipped": True}, "skipped must be"),
        ({"memory": {"best": "low"}}, "memory must be an object of numbers"),
        ({"observers": [1]}, "observers must be an object of numbers"),
        ({"stopped": 3}, "stopped must be a text or null, but is 3"),
        ({"more": 1}, "must have the keys memory, observers, .* but has memory, more, "),
    ],
)
def test_values_of_the_train_state(change: dict[str, object], problem: str) -> None:
    with pytest.raises(CheckpointError, match=problem):
        TrainState.from_json({**STATE, **change})


def test_a_train_state_of_another_step(bench: Bench) -> None:
    bench.save(1)
    path = bench.step(1) / "train_state.json"
    path.write_text(json.dumps({**STATE, "step": 7}))
    bench.reseal(1)
    with pytest.raises(CheckpointError, match=r"step must be 1 as in manifest\.json, but is 7"):
        bench.load()
