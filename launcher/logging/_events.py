"""TensorBoard's event files, written directly.

The format is small and has not changed since 2015; writing it here costs no import (tensorboard's
own writer brings protobuf: 40 ms, 4 MB and a thread that holds rows back, which a kill then loses).

Source: TensorFlow's `event.proto`, `summary.proto` and `record_writer.cc`; the tests read the files
with tensorboard and compare them with its encoder.
"""

from __future__ import annotations

import functools
import os
import socket
import struct
import time
from pathlib import Path

from typing_extensions import override

from launcher.contracts import LogContext, Row, Sink
from launcher.logging._append import AppendFile

_CRC32C_POLYNOMIAL = 0x82F63B78
_CRC_MASK = 0xA282EAD8
_FLOAT32_MAX = 3.4028234663852886e38
_SESSION_START = b"\x08\x01"


class EventFile(Sink):
    """One event file per process that ran the run; it is made with the first row.

    It begins with a session start, at which TensorBoard forgets the later steps of a predecessor
    that was killed.
    """

    def __init__(self, context: LogContext) -> None:
        self._folder = context.run_dir.tensorboard
        self._first_step = context.start_step + 1
        self._file: AppendFile | None = None

    @override
    def write(self, row: Row) -> None:
        """Append the row's numbers as scalars `train/…` and `eval/…`.

        What is None is left out, as is what the format's float32 cannot hold (a perplexity can be
        1e40).

        Raises:
            LaunchError: The file cannot be made or written.
        """
        if self._file is None:
            self._file = self._open()
        summary = b"".join(
            _field(1, _scalar(_tag(key), value))
            for key, value in row.items()
            if key != "step" and value is not None and abs(value) <= _FLOAT32_MAX
        )
        self._file.append(_record(_event(step=int(row["step"] or 0), summary=summary)))

    @override
    def close(self) -> None:
        """Give the file back."""
        if self._file is not None:
            self._file.close()

    def _open(self) -> AppendFile:
        file = AppendFile(self._folder / _next_name(self._folder))
        start = _event(step=self._first_step, session=_SESSION_START)
        file.append(_record(_event(version=b"brain.Event:2")) + _record(start))
        return file


def _next_name(folder: Path) -> str:
    """A name that sorts after those in the folder: TensorBoard reads event files in that order."""
    seconds = int(time.time())
    for path in folder.glob("events.out.tfevents.*"):
        stamp = path.name.split(".")[3]
        if stamp.isdecimal():
            seconds = max(seconds, int(stamp) + 1)
    return f"events.out.tfevents.{seconds:010d}.{socket.gethostname()}.{os.getpid()}"


def _tag(key: str) -> str:
    return f"eval/{key.removeprefix('eval_')}" if key.startswith("eval_") else f"train/{key}"


def _event(
    *, step: int = 0, version: bytes = b"", summary: bytes = b"", session: bytes = b""
) -> bytes:
    """An `Event`: wall_time = 1, step = 2, file_version = 3, summary = 5, session_log = 7."""
    event = b"\x09" + struct.pack("<d", time.time())
    if step:
        event += b"\x10" + _varint(step)
    for number, message in ((3, version), (5, summary), (7, session)):
        if message:
            event += _field(number, message)
    return event


def _scalar(tag: str, value: float) -> bytes:
    """A `Summary.Value`: tag = 1, simple_value = 2."""
    return _field(1, tag.encode()) + b"\x15" + struct.pack("<f", value)


def _field(number: int, message: bytes) -> bytes:
    return bytes([number << 3 | 2]) + _varint(len(message)) + message


def _varint(value: int) -> bytes:
    encoded = bytearray()
    while value > 0x7F:
        encoded.append(value & 0x7F | 0x80)
        value >>= 7
    encoded.append(value)
    return bytes(encoded)


def _record(data: bytes) -> bytes:
    """A record: length, its checksum, data, its checksum."""
    length = struct.pack("<Q", len(data))
    return b"".join((length, _checksum(length), data, _checksum(data)))


def _checksum(data: bytes) -> bytes:
    table = _crc_table()
    crc = 0xFFFFFFFF
    for byte in data:
        crc = table[(crc ^ byte) & 0xFF] ^ (crc >> 8)
    crc ^= 0xFFFFFFFF
    # Masked, because a checksum over data that holds checksums is weak.
    return struct.pack("<I", ((crc >> 15 | crc << 17) + _CRC_MASK) & 0xFFFFFFFF)


@functools.cache
def _crc_table() -> tuple[int, ...]:
    """CRC-32C of each byte."""
    table = []
    for byte in range(256):
        crc = byte
        for _ in range(8):
            crc = crc >> 1 ^ (_CRC32C_POLYNOMIAL if crc & 1 else 0)
        table.append(crc)
    return tuple(table)
