"""`trainctl resume`: continue a run from its newest valid checkpoint."""

from __future__ import annotations

from pathlib import Path

from launcher.cli._arguments import Arguments
from launcher.cli._console import announce
from launcher.errors import LaunchError
from launcher.run_dir import RunDir


def main(argv: list[str]) -> int:
    """Resume a run, with changed settings if any are given."""
    parser = Arguments(
        "resume",
        "RUN [key=value]",
        "Continue a run, bit for bit, from its newest good checkpoint. Settings may change; those "
        "that affect the result require --allow KEY.",
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
        newest = _newest_below(Path("runs"))
        hint = f"; the newest is {newest}" if newest else ""
        parser.error(f"a word is missing: the run's directory{hint}")
    from launcher.launch import StartOptions, follow, outer_world, resume, signals_end_launch
    from launcher.launch._early import EarlyRank, folder_of

    path = run_directory(words[0])
    # Importing torch in the ranks takes seconds, in which nothing else is printed.
    announce(f"resuming {_short(path)}: its ranks start in a few seconds")
    with signals_end_launch():
        if (world := outer_world()) is None:
            # It imports torch while we verify the checkpoint and compose the changes.
            with EarlyRank(folder_of(RunDir(path))) as early:
                resume(path, words[1:], flags.allow, StartOptions(early=early))
            return 0
        if not world.is_first:
            return follow(world)
        with world.released():
            changes = [*words[1:], f"launch.processes={world.size}"]
            resume(path, changes, flags.allow, StartOptions(node=world))
    return 0


def run_directory(word: str) -> Path:
    """Return the run directory that a word names, or raise LaunchError with a suggestion."""
    # Users type the run's name, its checkpoint or config.json: each gets the path to write.
    path = Path(word).expanduser().absolute()
    if RunDir(path).is_run():
        return path
    if run := next((each for each in path.parents if RunDir(each).is_run()), None):
        raise LaunchError(f"{word} is in a run directory; write `trainctl resume {_short(run)}`")
    newest = _newest_below(path) or _newest_below(Path("runs", word)) or _newest_below(Path("runs"))
    hint = f"; did you mean {_short(newest)}?" if newest else ""
    what = "is no run directory" if path.is_dir() else "does not exist"
    if path.is_file():
        what = "is a file"
    raise LaunchError(f"{path} {what}; a run is in run_root/<name>/<id>{hint}")


def _newest_below(folder: Path) -> Path | None:
    """Return the run directory in a folder that was changed last."""
    found = [*folder.glob("*/config.json"), *folder.glob("*/*/config.json")]
    runs = [file.parent for file in found if RunDir(file.parent).is_run()]
    return max(runs, key=lambda run: run.stat().st_mtime_ns, default=None)


def _short(path: Path) -> str:
    absolute = path.absolute()
    here = Path.cwd()
    return str(absolute.relative_to(here) if absolute.is_relative_to(here) else absolute)
