import dataclasses
import struct
import time
from pathlib import Path
from typing import Any

import pytest
from tensorboard.backend.event_processing import event_accumulator, plugin_event_accumulator
from tensorboard.compat.proto import event_pb2, summary_pb2
from tensorboard.compat.tensorflow_stub.pywrap_tensorflow import masked_crc32c

from launcher.contracts import LogContext
from launcher.logging import _events
from launcher.logging._events import EventFile


def scalars(folder: Path) -> dict[str, list[tuple[int, float]]]:
    read = event_accumulator.EventAccumulator(str(folder))
    read.Reload()
    return {
        tag: [(event.step, event.value) for event in read.Scalars(tag)]
        for tag in read.Tags()["scalars"]
    }


def test_tensorboard_reads_what_was_written(context: LogContext) -> None:
    sink = EventFile(context)
    sink.write({"step": 1, "loss": 2.5, "lr": 0.25, "grad_norm": None})
    sink.write({"step": 300, "loss": 1.5, "tokens": 2**40, "eval_loss": 1.75})
    sink.close()
    assert scalars(context.run_dir.tensorboard) == {
        "train/loss": [(1, 2.5), (300, 1.5)],
        "train/lr": [(1, 0.25)],
        "train/tokens": [(300, 2.0**40)],
        "eval/loss": [(300, 1.75)],
    }


def test_rows_are_in_the_file_before_it_is_closed(context: LogContext) -> None:
    sink = EventFile(context)
    sink.write({"step": 1, "loss": 2.5})
    assert scalars(context.run_dir.tensorboard) == {"train/loss": [(1, 2.5)]}
    sink.close()


def test_no_file_before_the_first_row(context: LogContext) -> None:
    EventFile(context).close()
    assert not context.run_dir.tensorboard.exists()


def test_numbers_beyond_float32_are_left_out(context: LogContext) -> None:
    sink = EventFile(context)
    sink.write({"step": 1, "eval_perplexity": 1e40, "loss": 3.4e38})
    sink.close()
    assert set(scalars(context.run_dir.tensorboard)) == {"train/loss"}


@pytest.mark.parametrize("torn", [b"", b"\x20\x00\x00"])
def test_a_resumed_run_shows_no_step_twice(context: LogContext, torn: bytes) -> None:
    folder = context.run_dir.tensorboard
    first = EventFile(context)
    for step in (1, 2, 3, 4):
        first.write({"step": step, "loss": 10.0 + step})
    first.close()
    with next(folder.iterdir()).open("ab") as file:
        file.write(torn)
    second = EventFile(dataclasses.replace(context, start_step=2))
    second.write({"step": 4, "loss": 24.0})
    second.close()
    expected = [(1, 11.0), (2, 12.0), (4, 24.0)]
    assert scalars(folder) == {"train/loss": expected}
    # The accumulator that the TensorBoard program itself uses.
    shown = plugin_event_accumulator.EventAccumulator(str(folder))
    shown.Reload()
    assert [event.step for event in shown.Tensors("train/loss")] == [1, 2, 4]


def test_files_sort_in_the_order_of_their_making(context: LogContext) -> None:
    for _ in range(3):
        sink = EventFile(context)
        sink.write({"step": 1, "loss": 1.0})
        sink.close()
    names = sorted(path.name for path in context.run_dir.tensorboard.iterdir())
    stamps = [int(name.split(".")[3]) for name in names]
    assert stamps == [stamps[0], stamps[0] + 1, stamps[0] + 2]


@pytest.mark.parametrize("step", [1, 127, 128, 300, 2**21, 2**40])
def test_events_are_encoded_as_the_reference_encodes_them(
    step: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(time, "time", lambda: 1234.5)
    # 130 characters make the length of the message take two bytes.
    tags = {"train/loss": 2.5, "x" * 130: -1.0}
    value: Any = summary_pb2.Summary.Value
    summary = summary_pb2.Summary(value=[value(tag=t, simple_value=v) for t, v in tags.items()])
    expected = event_pb2.Event(wall_time=1234.5, step=step, summary=summary).SerializeToString()
    ours = b"".join(_events._field(1, _events._scalar(t, v)) for t, v in tags.items())
    assert _events._event(step=step, summary=ours) == expected


def test_a_record_is_framed_as_the_reference_frames_it() -> None:
    data = bytes(range(256)) * 3
    record = _events._record(data)
    length = struct.pack("<Q", len(data))
    crcs = [struct.pack("<I", masked_crc32c(part)) for part in (length, data)]
    assert record == length + crcs[0] + data + crcs[1]
