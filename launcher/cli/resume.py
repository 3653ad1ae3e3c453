"""`trainctl resume`: go on from the newest good checkpoint of a run."""

from __future__ import annotations

from pathlib import Path

from launcher.cli._arguments import Arguments
from launcher.errors import LaunchError


def main(argv: list[str]) -> int:
    """Resume a run, with changed settings if any are given."""
    parser = Arguments(
        "resume",
        "RUN [key=value]",
        "Go on from the newest good checkpoint of a run, bit for bit. Settings may change; those "
        "that change what is computed must be named with --allow.",
        "trainctl resume runs/default/20260101-120000-a1b2c3",
        "trainctl resume RUN max_steps=2000 optimizer.lr=1e-4",
        "trainctl resume RUN scheduler.warmup_steps=0 --allow scheduler",
    )
    parser.add_argument(
        "--allow",
        action="append",
        default=[],
        metavar="KEY",
        help="a setting that may change what is computed",
    )
    flags, words = parser.split(argv)
    if not words:
        parser.error("a word is missing: the run's directory")
    from launcher.launch import resume, signals_end_launch

    with signals_end_launch():
        resume(_directory(words[0]), words[1:], flags.allow)
    return 0


def _directory(word: str) -> Path:
    path = Path(word).absolute()
    if not path.is_dir():
        raise LaunchError(f"no run directory {path}; a run is in run_root/<name>/<id>")
    if not (path / "config.json").is_file():
        runs = sorted(p.parent for p in path.glob("*/config.json"))
        hint = f"; did you mean {runs[-1]}?" if runs else ""
        raise LaunchError(f"{path} is no run directory: it has no config.json{hint}")
    return path
