"""Console output of each mode in a process of its own, on a pipe or a pseudo-terminal."""

import os
import pty
import re
import signal
import subprocess
import sys
from pathlib import Path
from typing import Literal

import pytest

from launcher.contracts import LogContext
from launcher.logging import _display
from launcher.logging._display import display
from launcher.logging.standard import Standard

PROGRAM = """
import logging, sys, time, warnings
from pathlib import Path
from launcher.contracts import LogContext
from launcher.logging.standard import Standard
from launcher.run_dir import RunDir

logging.captureWarnings(True)
logging.getLogger("trainctl").setLevel(logging.DEBUG)
summary = [("model", "llama, 246,240 parameters"), ("run", "/runs/x × y")]
context = LogContext(RunDir(Path(sys.argv[1])), 0, 40, summary)
sinks = Standard(kind="standard", console=sys.argv[2], tensorboard=False).build(context)
for step in range(10, 41, 10):
    row = {"step": step, "loss": 5.0 - step / 20, "lr": 1e-3, "grad_norm": 0.5,
           "tokens_per_s": 41234.0, "elapsed_s": float(step), "memory_mib": 812.0}
    if step == 20:
        row |= {"eval_loss": 4.25, "eval_bits_per_byte": 6.125}
        logging.getLogger("trainctl.x").warning("the [bold] disk is nearly full")
        logging.getLogger("trainctl.x").info("nobody needs to see this")
        logging.getLogger("trainctl.optimizer").info("adamw: fused implementation")
        warnings.warn("a library is old")
    if len(sys.argv) > 3:
        time.sleep(float(sys.argv[3]))
    for sink in sinks:
        sink.write(row)
for sink in reversed(sinks):
    sink.close()
print("after")
"""


def environment(**variables: str) -> dict[str, str]:
    clean = {k: v for k, v in os.environ.items() if k not in {"NO_COLOR", "FORCE_COLOR", "COLUMNS"}}
    return {**clean, "TERM": "xterm-256color", **variables}


def on_pipe(folder: Path, mode: str, *words: str, **variables: str) -> str:
    command = [sys.executable, "-c", PROGRAM, str(folder), mode, *words]
    return subprocess.run(
        command, check=True, capture_output=True, text=True, env=environment(**variables)
    ).stdout


def on_terminal(folder: Path, mode: str, *words: str, **variables: str) -> str:
    """Everything that the program sent to its terminal, 80 columns wide."""
    command = [sys.executable, "-c", PROGRAM, str(folder), mode, *words]
    pid, fd = pty.fork()
    if pid == 0:
        os.execve(sys.executable, command, environment(COLUMNS="80", LINES="24", **variables))
    sent = b""
    while True:
        try:
            chunk = os.read(fd, 4096)
        except OSError:
            break
        if not chunk:
            break
        sent += chunk
    os.close(fd)
    assert os.waitpid(pid, 0)[1] == 0
    return sent.decode()


def screen(sent: str) -> list[str]:
    """Return the final screen, by playing the escape sequences of the display."""
    lines: list[str] = [""]
    row = column = 0
    for token in re.findall(r"\x1b\[[\d;?]*[A-Za-z]|\r|\n|[^\x1b\r\n]+", sent):
        if token == "\n":
            row += 1
            lines.extend([""] * (row - len(lines) + 1))
        elif token == "\r":
            column = 0
        elif token.startswith("\x1b["):
            count, verb = token[2:-1], token[-1]
            if verb == "A":
                row -= int(count or 1)
            elif verb == "K":
                lines[row] = ""
            else:
                assert verb in "mh", f"unexpected escape sequence {token!r}"
        else:
            lines[row] = (
                lines[row][:column].ljust(column) + token + lines[row][column + len(token) :]
            )
            column += len(token)
    return [line.rstrip() for line in lines]


HEADER = ["model  llama, 246,240 parameters", "run    /runs/x × y"]
SCORES = "step 20/40  eval_loss 4.2500  eval_bits_per_byte 6.1250"
NUMBERS = "loss 3.0000  lr 1.00e-03  grad_norm 0.5  41,234 tok/s  812 MiB"


@pytest.mark.parametrize("mode", ["auto", "plain"])
def test_a_pipe_gets_plain_lines(tmp_path: Path, mode: str) -> None:
    lines = on_pipe(tmp_path, mode).splitlines()
    assert lines == [
        *HEADER,
        "step 10/40  loss 4.5000  lr 1.00e-03  grad_norm 0.5  41,234 tok/s  812 MiB  ETA 0:30",
        "warning: the [bold] disk is nearly full",
        "note: adamw: fused implementation",
        next(line for line in lines if "a library is old" in line),
        "step 20/40  loss 4.0000  lr 1.00e-03  grad_norm 0.5  41,234 tok/s  812 MiB  ETA 0:20",
        SCORES,
        "step 30/40  loss 3.5000  lr 1.00e-03  grad_norm 0.5  41,234 tok/s  812 MiB  ETA 0:10",
        f"step 40/40  {NUMBERS}  ETA 0:00",
        "after",
    ]


def test_a_terminal_gets_a_live_display_that_warnings_do_not_garble(tmp_path: Path) -> None:
    lines = screen(on_terminal(tmp_path, "auto", "0.3"))
    assert lines[:2] == HEADER
    assert lines[2] == "warning: the [bold] disk is nearly full"
    assert lines[3] == "note: adamw: fused implementation"
    assert "a library is old" in "".join(lines[4:6])
    rest = lines[lines.index(SCORES) :]
    assert rest == [SCORES, "━" * 40 + "  40/40  100%  ETA 0:00", NUMBERS, "after", ""]


def test_the_display_is_redrawn_at_most_four_times_a_second(tmp_path: Path) -> None:
    sent = on_terminal(tmp_path, "auto")
    # Start, warnings, scores and end draw; the rows between come too fast.
    assert "10/40" not in screen(sent)[-3]
    assert sent.count("  10/40  ") <= 3
    assert screen(sent)[-4:-2] == ["━" * 40 + "  40/40  100%  ETA 0:00", NUMBERS]


def test_colours_on_a_terminal_unless_no_color(tmp_path: Path) -> None:
    colour = re.compile(r"\x1b\[(?:\d+;)*[349]\d(?:;\d+)*m")
    assert colour.search(on_terminal(tmp_path, "auto"))
    sent = on_terminal(tmp_path, "auto", NO_COLOR="1")
    assert not colour.search(sent)
    assert "ETA" in sent


def test_the_cursor_is_never_hidden(tmp_path: Path) -> None:
    assert "\x1b[?25" not in on_terminal(tmp_path, "auto")


@pytest.mark.parametrize("mode", ["auto", "live"])
def test_a_dumb_terminal_gets_plain_lines(tmp_path: Path, mode: str) -> None:
    sent = on_terminal(tmp_path, mode, TERM="dumb")
    assert "\x1b" not in sent
    assert f"step 40/40  {NUMBERS}" in sent


def test_plain_on_a_terminal_redraws_nothing(tmp_path: Path) -> None:
    sent = on_terminal(tmp_path, "plain")
    assert "\x1b[1A" not in sent
    assert "step 10/40  loss 4.5000" in sent


def test_live_on_a_pipe_is_live_when_asked_for(tmp_path: Path) -> None:
    # A terminal begins a new line at its first column.
    sent = on_pipe(tmp_path, "live").replace("\n", "\r\n")
    assert screen(sent)[-4:] == ["━" * 40 + "  40/40  100%  ETA 0:00", NUMBERS, "after", ""]


def test_none_prints_nothing(tmp_path: Path) -> None:
    assert on_pipe(tmp_path, "none") == "after\n"
    assert (tmp_path / "metrics.jsonl").exists()


def test_a_terminal_that_knows_only_ascii(tmp_path: Path) -> None:
    sent = on_terminal(tmp_path, "auto", PYTHONIOENCODING="ascii")
    assert "run    /runs/x ? y" in screen(sent)
    assert "=" * 40 + "  40/40  100%  ETA 0:00" in screen(sent)


@pytest.mark.parametrize("mode", ["plain", "live"])
def test_a_reader_that_leaves_does_not_end_the_run(tmp_path: Path, mode: str) -> None:
    program = f"import signal; signal.signal(signal.SIGPIPE, signal.SIG_IGN)\n{PROGRAM}"
    reader, writer = os.pipe()
    os.close(reader)
    run = subprocess.run(
        [sys.executable, "-c", program, str(tmp_path), mode],
        check=False,
        stdout=writer,
        stderr=subprocess.PIPE,
        env=environment(),
        preexec_fn=lambda: signal.signal(signal.SIGPIPE, signal.SIG_IGN),
    )
    os.close(writer)
    assert (run.returncode, run.stderr) == (0, b"")
    assert len((tmp_path / "metrics.jsonl").read_text().splitlines()) == 4


@pytest.mark.usefixtures("fresh_console")
def test_the_console_is_written_first_and_closed_last(
    context: LogContext, capsys: pytest.CaptureFixture[str]
) -> None:
    sinks = Standard(kind="standard", console="plain", tensorboard=True).build(context)
    assert [type(sink).__name__ for sink in sinks] == ["PlainLines", "JsonLines", "EventFile"]
    assert "246,240 parameters" in capsys.readouterr().out
    for sink in reversed(sinks):
        sink.close()


@pytest.mark.usefixtures("fresh_console")
@pytest.mark.parametrize("mode", ["live", "plain"])
def test_an_evaluation_shows_how_far_it_is(
    context: LogContext,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    mode: Literal["live", "plain"],
) -> None:
    monkeypatch.setattr(_display, "_REDRAW_INTERVAL_S", 0.0)
    monkeypatch.setattr(_display, "_EVALUATION_INTERVAL_S", 0.0)
    sink = display(mode, context)
    for done in (0, 1024, 2000):
        sink.show_evaluation(done, 2000)
    sink.write({"step": 5, "loss": 2.0})
    sink.close()
    out = capsys.readouterr().out
    assert "1,024/2,000  51%" in out
    assert "evaluating" in out
    assert "evaluating" not in out[out.index("loss") :]
