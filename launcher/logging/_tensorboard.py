"""Write TensorBoard's event files."""

from __future__ import annotations

import io
import json
import os
import socket
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from typing_extensions import override

from launcher.contracts import LogContext, Row, Sink
from launcher.logging._files import AppendFile

# With TensorBoard's RecordWriter, not its EventFileWriter: that keeps rows in a thread, which a
# kill loses, and imports TensorFlow where it is installed.
_FLOAT32_MAX = 3.4028234663852886e38


class EventFile(Sink):
    """Event file of a launch, created with the first row."""

    def __init__(self, context: LogContext) -> None:
        self._folder = context.run_dir.tensorboard
        self._first_step = context.start_step + 1
        self._config = context.config
        self._file: AppendFile | None = None

    @override
    def write(self, row: Row) -> None:
        """Append the row's numbers as scalars `train/…` and `eval/…`."""
        # Imported with the first row, so that the first step does not wait for it (0.2 s of CPU).
        from tensorboard.compat.proto.summary_pb2 import Summary

        if self._file is None:
            self._file = AppendFile(self._folder / _next_name(self._folder))
            self._begin()
        # The format has float32, but a perplexity can be 1e40: such numbers are left out.
        values = [
            Summary.Value(tag=_tag(key), simple_value=value)
            for key, value in row.items()
            if key != "step" and value is not None and abs(value) <= _FLOAT32_MAX
        ]
        self._append(step=int(row["step"] or 0), summary=Summary(value=values))

    @override
    def close(self) -> None:
        if self._file is not None:
            self._file.close()

    def _begin(self) -> None:
        from tensorboard.compat.proto.event_pb2 import SessionLog
        from torch.utils.tensorboard.summary import hparams, text

        self._append(file_version="brain.Event:2")
        # At a session start TensorBoard drops later steps of earlier files, which a killed launch
        # wrote.
        session = SessionLog(status=SessionLog.SessionStatus.START)
        self._append(step=self._first_step, session_log=session)
        if self._config:
            # TensorBoard renders Markdown: four spaces make it a code block.
            lines = json.dumps(self._config, indent=1, sort_keys=True).splitlines()
            config: Any = text  # torch annotates neither
            self._append(summary=config("config", "\n".join(f"    {line}" for line in lines)))
            session_start: Any = hparams(dict(_leaves(self._config)), {})[1]  # type: ignore[no-untyped-call]
            self._append(summary=session_start)

    def _append(self, **fields: Any) -> None:
        from tensorboard.compat.proto.event_pb2 import Event
        from tensorboard.summary.writer.record_writer import RecordWriter

        record = io.BytesIO()  # appended at once: a kill leaves no incomplete record
        event = Event(wall_time=time.time(), **fields)
        RecordWriter(record).write(event.SerializeToString())
        assert self._file is not None, "made with the first row"  # noqa: S101
        self._file.append(record.getvalue())


def _next_name(folder: Path) -> str:
    """Return a file name that sorts after those in the folder."""
    # TensorBoard reads files in the order of their names: after a clock that went back, new rows
    # would come before old ones.
    seconds = int(time.time())
    for path in folder.glob("events.out.tfevents.*"):
        stamp = path.name.split(".")[3]
        if stamp.isdecimal():
            seconds = max(seconds, int(stamp) + 1)
    return f"events.out.tfevents.{seconds:010d}.{socket.gethostname()}.{os.getpid()}"


def _tag(key: str) -> str:
    return f"eval/{key.removeprefix('eval_')}" if key.startswith("eval_") else f"train/{key}"


def _leaves(
    config: Mapping[str, Any], prefix: str = ""
) -> Iterator[tuple[str, bool | int | float | str]]:
    """Yield every dotted key with its value, as text if TensorBoard has no type for it."""
    for key, value in config.items():
        if isinstance(value, Mapping):
            yield from _leaves(value, f"{prefix}{key}.")
        else:
            plain = isinstance(value, bool | int | float | str)
            yield f"{prefix}{key}", value if plain else json.dumps(value)
