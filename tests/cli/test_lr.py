from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Sequence
from importlib.util import find_spec
from itertools import pairwise
from pathlib import Path
from xml.etree import ElementTree as ET

import pytest

from launcher.cli import lr, main
from launcher.cli._plot import plot, step_ticks, ticks

SMALL = [
    "scheduler=linear",
    "scheduler.warmup_steps=2",
    "max_steps=6",
    "optimizer.lr=0.1",
    "accumulation.micro_batch_size=16",
    "accumulation.samples_per_step=16",
]
RATES = [0, 0.05, 0.1, 0.075, 0.05, 0.025]


def test_json_has_the_rate_of_every_step(capsys: pytest.CaptureFixture[str]) -> None:
    assert lr.main([*SMALL, "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == {"lr": pytest.approx(RATES)}


def test_chosen_steps_may_lie_past_the_end(capsys: pytest.CaptureFixture[str]) -> None:
    assert lr.main(["--at", "2,3,1_000", *SMALL]) == 0
    assert capsys.readouterr().out.splitlines() == [
        " step  lr",
        "    2  0.1",
        "    3  0.075",
        "1,000  0",
    ]
    assert lr.main([*SMALL, "--at=5", "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == {"step": [5], "lr": [pytest.approx(0.025)]}


def test_the_plot_fits_the_terminal(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "60")
    monkeypatch.setenv("LINES", "20")
    assert lr.main(SMALL) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "scheduler=linear, 6 steps"
    assert lines[-1] == "first 0, highest 0.1 at step 2, last 0.025"
    assert len(lines) <= 20
    assert max(map(len, lines)) <= 60
    assert any("0.1 ┤" in line for line in lines)


def test_a_spike_of_one_step_is_seen_in_a_narrow_plot() -> None:
    values = [0.0] * 5000
    values[1234] = 1.0
    top = plot(values, len(values), width=40, height=12, unicode=False)[0]
    assert top.count("*") == 1


@pytest.mark.parametrize("values", [[0.0], [1.0], [0.0, 0.0], [1e-12] * 3, list(range(100))])
@pytest.mark.parametrize(("width", "height"), [(1, 1), (20, 8), (200, 60)])
def test_any_curve_fits_any_terminal(values: Sequence[float], width: int, height: int) -> None:
    for unicode in (True, False):
        lines = plot(values, len(values), width=width, height=height, unicode=unicode)
        assert max(map(len, lines)) <= max(width, 10 + 7)
        assert unicode or all(line.isascii() for line in lines)


@pytest.mark.parametrize("highest", [3e-9, 1e-3, 0.00037, 0.999, 1, 6.1, 12345])
def test_marks_are_few_and_reach_the_highest_value(highest: float) -> None:
    marks = ticks(highest)
    assert 3 <= len(marks) <= 7
    assert marks[0] == 0
    assert marks[-2] < highest <= marks[-1] * (1 + 1e-9)


@pytest.mark.parametrize("num_steps", [1, 2, 3, 7, 100, 12345, 10**7])
def test_step_marks_lie_on_the_axis(num_steps: int) -> None:
    steps = step_ticks(num_steps, 8)
    assert steps[0] == 0
    assert steps[-1] < num_steps
    assert len(steps) <= 10


def test_a_run_of_any_length_is_drawn_in_a_moment(capsys: pytest.CaptureFixture[str]) -> None:
    words = ["scheduler=linear", "scheduler.warmup_steps=50%", "max_steps=10000000000"]
    assert lr.main([*words, "optimizer.lr=0.003"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert "highest 0.003 at step 5,000,000,000, last 6e-13" in lines[-1]
    assert "8,000,000,000" in lines[-2]


def test_pictures_show_the_curve(tmp_path: Path) -> None:
    svg = tmp_path / "lr.svg"
    assert lr.main([*SMALL, "--svg", str(svg), "--json"]) == 0
    [line] = ET.parse(svg).getroot().iterfind("{*}polyline")
    assert len(line.attrib["points"].split()) == len(RATES)


def test_a_long_curve_keeps_its_spikes_in_the_picture(tmp_path: Path) -> None:
    svg = tmp_path / "lr.svg"
    words = ["scheduler=cosine_warm_restarts", "scheduler.T_0=5000", "scheduler.T_mult=1"]
    assert lr.main([*words, "max_steps=20000", f"--svg={svg}", "--at=0"]) == 0
    [line] = ET.parse(svg).getroot().iterfind("{*}polyline")
    heights = [float(point.split(",")[1]) for point in line.attrib["points"].split()]
    peaks = [a for a, b in pairwise(heights) if b - a < -300]
    assert len(peaks) == 3
    assert len(heights) < 2000


def error_output(words: Sequence[str], capsys: pytest.CaptureFixture[str]) -> str:
    assert main(["lr", *words]) == 2
    return capsys.readouterr().err


def test_lengths_that_need_the_data_ask_for_its_size(capsys: pytest.CaptureFixture[str]) -> None:
    epochs = [*SMALL, "max_epochs=2", "max_steps=null"]
    assert "max_epochs: is 2, which has no known number of steps" in error_output(epochs, capsys)
    assert main(["lr", *epochs, "--num-samples", "48", "--json"]) == 0
    assert len(json.loads(capsys.readouterr().out)["lr"]) == 6
    warmup = [*SMALL, "scheduler.warmup_steps=1 epoch"]
    message = error_output(warmup, capsys)
    assert "scheduler.warmup_steps: is 1 epoch, which has no known number of steps" in message
    assert "--num-samples N" in message
    assert main(["lr", *warmup, "--num-samples", "32", "--at", "1,2"]) == 0
    assert capsys.readouterr().out.split() == ["step", "lr", "1", "0.05", "2", "0.1"]


def test_what_only_the_size_of_the_data_shows_has_its_origin_too(
    capsys: pytest.CaptureFixture[str],
) -> None:
    epochs = ["max_epochs=2", "max_steps=null", "scheduler.warmup_steps=9"]
    message = error_output(
        [*SMALL, *epochs, "scheduler.warmup_power=2.0", "--num-samples=48"], capsys
    )
    assert "is 9, but the whole run has 6 steps" in message
    assert "set by command line: scheduler.warmup_steps=9" in message
    assert "set by command line: max_epochs=2" in error_output([*SMALL, *epochs], capsys)
    unknown = [*SMALL, "scheduler.warmup_steps=1 epoch", "scheduler.warmup_power=2.0"]
    assert "set by command line: scheduler.warmup_steps=1 epoch" in error_output(unknown, capsys)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--at", "x"], "'x' are no steps; write --at 0,100,500"),
        (["--at=-1"], "steps start at 0"),
        (["--at", "9" * 99], "no run has 1.000e+99 steps"),
        (["--svg", "lr.PNG"], "lr.PNG is no name for an SVG; write --svg lr.svg or --plot lr.PNG"),
        (["--plot", "lr.jpeg"], "lr.jpeg must end in .png or .pdf; --svg FILE needs no matplotlib"),
        (["--num-samples", "0"], "'0' is no number of samples"),
        (["--svgs", "x"], "did you mean '--svg'?"),
        (["scheduler.warmup_steps=7"], "is 7, but the whole run has 6 steps"),
        (["scheduler.warmup_steps=7 weeks"], "'7 weeks' is not a length"),
    ],
)
def test_wrong_words_are_said(
    words: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert message in error_output([*SMALL, *words], capsys)


def test_a_folder_that_is_not_there_is_an_error(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["lr", *SMALL, "--svg", str(tmp_path / "no" / "lr.svg")]) == 1
    assert "cannot write" in capsys.readouterr().err


def test_pictures_of_matplotlib_or_the_extra_to_install(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    picture = tmp_path / "lr.png"
    installed = find_spec("matplotlib") is not None
    assert main(["lr", *SMALL, "--plot", str(picture)]) == (0 if installed else 2)
    if installed:
        assert picture.read_bytes().startswith(b"\x89PNG")
    else:
        assert "pip install 'trainctl[plots]'" in capsys.readouterr().err
        assert not picture.exists()


def test_nothing_heavy_is_imported(tmp_path: Path) -> None:
    program = (
        "import sys\n"
        "from launcher.cli import main\n"
        f"assert main(['lr', '--svg', {str(tmp_path / 'lr.svg')!r}]) == 0\n"
        "assert not {'torch', 'transformers'} & set(sys.modules)\n"
    )
    subprocess.run([sys.executable, "-c", program], check=True, cwd=Path(__file__).parents[2])
