import dataclasses
import json
import math
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from launcher.contracts import LogContext
from launcher.errors import LaunchError
from launcher.logging._files import JsonLines, drop_after


def rows(path: Path) -> list[dict[str, float | None]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_numbers_survive_to_the_last_bit(context: LogContext) -> None:
    sink = JsonLines(context)
    row = {"step": 1, "loss": 0.1 + 0.2, "lr": math.nextafter(3e-4, 1), "grad_norm": None}
    sink.write(row)
    sink.close()
    assert rows(context.run_dir.metrics) == [row]
    assert '"grad_norm": null' in context.run_dir.metrics.read_text()


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_what_is_no_number_is_never_written(context: LogContext, value: float) -> None:
    sink = JsonLines(context)
    with pytest.raises(ValueError, match="JSON compliant"):
        sink.write({"step": 1, "loss": value})
    sink.close()
    assert context.run_dir.metrics.read_bytes() == b""


def test_resume_drops_later_rows_and_a_torn_line_and_keeps_the_rest_byte_for_byte(
    context: LogContext,
) -> None:
    kept = b'{"step": 1, "loss":  2.50}\nnot ours\n{"step": 2}\n'
    context.run_dir.metrics.write_bytes(kept + b'{"step": 3}\n{"step": 4}\n{"step": 2, "lo')
    sink = JsonLines(dataclasses.replace(context, start_step=2))
    sink.write({"step": 3})
    sink.close()
    assert context.run_dir.metrics.read_bytes() == kept + b'{"step": 3}\n'
    assert list(context.run_dir.path.iterdir()) == [context.run_dir.metrics]


def test_a_run_from_the_beginning_deletes_every_row(context: LogContext) -> None:
    context.run_dir.metrics.write_text('{"step": 1}\n{"step": 2}\n')
    JsonLines(context).close()
    assert context.run_dir.metrics.read_bytes() == b""


def test_nothing_to_drop_without_a_file(tmp_path: Path) -> None:
    drop_after(tmp_path / "metrics.jsonl", 3)
    assert not list(tmp_path.iterdir())


def test_a_killed_process_has_lost_no_row(tmp_path: Path) -> None:
    program = (
        "import os, signal, sys\n"
        "from pathlib import Path\n"
        "from launcher.contracts import LogContext\n"
        "from launcher.logging._files import JsonLines\n"
        "from launcher.run_dir import RunDir\n"
        "sink = JsonLines(LogContext(RunDir(Path(sys.argv[1])), 0, 9, []))\n"
        "for step in range(1, 8): sink.write({'step': step})\n"
        "os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    ended = subprocess.run([sys.executable, "-c", program, tmp_path], check=False)
    assert ended.returncode == -signal.SIGKILL
    assert [row["step"] for row in rows(tmp_path / "metrics.jsonl")] == list(range(1, 8))


def test_a_folder_that_cannot_be_written_is_named(context: LogContext) -> None:
    context.run_dir.metrics.mkdir()
    with pytest.raises(LaunchError, match=r"metrics\.jsonl.*directory"):
        JsonLines(context)


def test_a_full_disk_ends_the_run_and_leaves_whole_lines(context: LogContext) -> None:
    resource = pytest.importorskip("resource")
    sink = JsonLines(context)
    sink.write({"step": 1, "loss": 2.0})
    size = context.run_dir.metrics.stat().st_size
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    ignored = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    # The kernel takes the first bytes of the second line and refuses the rest, as a full disk does.
    resource.setrlimit(resource.RLIMIT_FSIZE, (size + 5, limits[1]))
    try:
        with pytest.raises(LaunchError, match=r"metrics\.jsonl: File too large"):
            sink.write({"step": 2, "loss": 2.0})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, ignored)
    assert context.run_dir.metrics.stat().st_size == size
    sink.write({"step": 3})
    sink.close()
    assert [row["step"] for row in rows(context.run_dir.metrics)] == [1, 3]


def test_descriptors_do_not_leak_to_children(context: LogContext) -> None:
    sink = JsonLines(context)
    fd = sink._file._fd
    assert fd is not None
    assert not os.get_inheritable(fd)
    sink.close()
    sink.close()
