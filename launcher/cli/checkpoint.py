"""`trainctl checkpoint VERB`: look at checkpoints, verify, export and convert them.

None needs a GPU, the ranks that wrote the checkpoint, or memory for the whole model.
"""

from __future__ import annotations

import json
import re
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

from launcher.cli._arguments import Arguments
from launcher.cli._console import announce, bold, print_json, table
from launcher.errors import CheckpointError
from launcher.run_dir import RunDir, step_of

if TYPE_CHECKING:
    from launcher.checkpoint import Entry, Listed, SavedCheckpoint

VERBS = {
    "list": "the checkpoints of a run: step, time, size, ranks, state, best and last",
    "verify": "read every byte and compare it with its checksum; names each damaged file",
    "show": "contents: tensors and their shards, counters, what differs from the run's config",
    "export": "write the model in the format of transformers",
    "convert": "rewrite it into another number of files, or into one file of tensors",
}
_MANIFEST = "manifest.json"


def main(argv: list[str]) -> int:
    """Run one of the verbs of `checkpoint`."""
    verbs = table([(f"  {verb}", says) for verb, says in VERBS.items()])
    arguments = Arguments(
        "checkpoint",
        "VERB",
        f"Look at checkpoints, export and convert them.\n\n{verbs}",
        "trainctl checkpoint list runs/default/20260101-120000-a1b2c3",
        "trainctl checkpoint verify RUN",
    )
    chosen = arguments.verb(argv, VERBS)
    if chosen is None:
        return 0
    verb, rest = chosen
    own: dict[str, Callable[[list[str]], int]] = {
        "list": _list,
        "verify": _verify,
        "show": _show,
        "export": _export,
        "convert": _convert,
    }
    return own[verb](rest)


def _list(argv: list[str]) -> int:
    """List the checkpoints of a run."""
    arguments = Arguments(
        "checkpoint list",
        "RUN",
        "List a run's checkpoints. `complete` means that every file has its size; `trainctl "
        "checkpoint verify` reads the bytes.",
        "trainctl checkpoint list runs/default/20260101-120000-a1b2c3",
        json=True,
    )
    flags, words = arguments.words(argv, at_least=1, at_most=1)
    from launcher.checkpoint import listed

    found = listed(_run(words[0]))
    if flags.json:
        print_json([_listed_facts(each) for each in found])
    elif not found:
        print("no checkpoints")
    else:
        head = ("checkpoint", "saved", "size", "ranks", "engine", "status")
        print(table([head, *map(_listed_row, found)]))
    return 0


def _listed_facts(each: Listed) -> dict[str, Any]:
    return {
        "path": str(each.path),
        "step": each.step,
        "time": each.time,
        "bytes": each.num_bytes,
        "ranks": each.ranks,
        "engine": each.engine,
        "status": each.status,
        "faults": list(each.faults),
        "best": each.best,
        "last": each.last,
    }


def _listed_row(each: Listed) -> tuple[str, ...]:
    marks = [name for name, is_it in (("best", each.best), ("last", each.last)) if is_it]
    return (
        each.path.name,
        time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(each.time)),
        _size(each.num_bytes),
        "-" if each.ranks is None else str(each.ranks),
        each.engine or "-",
        ", ".join([each.status, *marks, *each.faults]),
    )


def _verify(argv: list[str]) -> int:
    """Compare every byte with its checksum."""
    arguments = Arguments(
        "checkpoint verify",
        "RUN | CHECKPOINT",
        "Read every file of a checkpoint, or of all checkpoints of a run, and compare it with its "
        "checksum. Names each damaged file, changes nothing, and exits with 14 if there is one.",
        "trainctl checkpoint verify runs/default/20260101-120000-a1b2c3",
        "trainctl checkpoint verify RUN/checkpoints/step-00001000",
        json=True,
    )
    flags, words = arguments.words(argv, at_least=1, at_most=1)
    from launcher.checkpoint import SavedCheckpoint

    results = []
    for path in _checkpoints(words[0]):
        announce(f"reading {path}")
        try:
            saved = SavedCheckpoint(path)
            saved.verify()
            size, error = saved.num_bytes, ""
        except CheckpointError as damaged:
            size, error = 0, str(damaged)
        results.append({"path": str(path), "ok": not error, "bytes": size, "error": error})
        if not flags.json:
            print(error or f"{path}: ok, {_size(size)}", flush=True)
    if flags.json:
        print_json(results)
    return CheckpointError.exit_status if any(each["error"] for each in results) else 0


def _show(argv: list[str]) -> int:
    """Print what a checkpoint contains."""
    arguments = Arguments(
        "checkpoint show",
        "RUN | CHECKPOINT",
        "Print what a checkpoint contains (of a run: its newest): who wrote it, the counters, the "
        "bytes of model and optimizer, and what its config differs in from that of the run now. "
        "Reads no tensor.",
        "trainctl checkpoint show RUN",
        "trainctl checkpoint show RUN --tensors 'model.*embed'",
        json=True,
    )
    help_ = "list the tensors whose name matches this regular expression (. for all)"
    arguments.add_argument("--tensors", metavar="PATTERN", help=help_)
    flags, words = arguments.words(argv, at_least=1, at_most=1)
    pattern = _pattern(arguments, "--tensors", flags.tensors)
    saved = _saved(words[0])
    entries = saved.entries()
    facts = _facts(saved, entries)
    shown = [] if pattern is None else [each for each in entries if pattern.search(each.name)]
    if flags.json:
        print_json({**facts, "tensors": [_entry_facts(each) for each in shown]})
        return 0
    print(_facts_text(saved, facts))
    if pattern is not None:
        rows = [_entry_row(each) for each in shown]
        head = ("tensor", "shape", "dtype", "shards", "bytes")
        print(f"\n{table([head, *rows])}" if rows else f"\nno tensor matches {pattern.pattern!r}")
    return 0


def _facts(saved: SavedCheckpoint, entries: Sequence[Entry]) -> dict[str, Any]:
    parts: dict[str, dict[str, int]] = {}
    for entry in entries:
        part = parts.setdefault(entry.name.partition(".")[0], {"tensors": 0, "bytes": 0})
        part["tensors"] += 1
        part["bytes"] += entry.num_bytes
    manifest = saved.manifest
    return {
        "path": str(saved.path),
        "run": manifest.run_id,
        "step": manifest.step,
        "parent_step": manifest.parent_step,
        "ranks": manifest.world_size,
        "engine": json.loads(saved.config)["parallelism"]["kind"],
        "versions": manifest.versions,
        "data_fingerprint": manifest.data_fingerprint,
        "bytes": saved.num_bytes,
        "parts": parts,
        "train_state": saved.train_state,
        "config_differences": _differences(saved),
    }


def _differences(saved: SavedCheckpoint) -> list[dict[str, Any]]:
    """Return what differs between the checkpoint's config and that of the run it lies in."""
    run_dir = RunDir(saved.path.parent.parent)
    if not run_dir.is_run():
        return []
    from launcher.cli.config import difference_facts
    from launcher.config.explain import diff

    own, now = json.loads(saved.config), json.loads(run_dir.config.read_bytes())
    return [difference_facts(each) for each in diff(own, now)]


def _facts_text(saved: SavedCheckpoint, facts: dict[str, Any]) -> str:
    state = {k: v for k, v in facts["train_state"].items() if v is not None and v != {}}
    versions = ", ".join(f"{name} {version}" for name, version in facts["versions"].items())
    rows = [
        ("  run", facts["run"]),
        ("  saved after", "no other" if (p := facts["parent_step"]) is None else f"step {p}"),
        ("  written by", f"{facts['engine']} on {facts['ranks']} ranks ({versions})"),
        ("  data", facts["data_fingerprint"]),
        *(
            (f"  {name}", f"{part['tensors']} tensors, {_size(part['bytes'])}")
            for name, part in facts["parts"].items()
        ),
        *((f"  {name}", json.dumps(value)) for name, value in state.items()),
    ]
    differences = [
        (f"  {each['key']}", _value(each, "left"), _value(each, "right"))
        for each in facts["config_differences"]
    ]
    head = f"{bold(str(saved.path))}: step {facts['step']}, {_size(facts['bytes'])}\n{table(rows)}"
    if not differences:
        return head
    return f"{head}\n\n{table([('config', 'checkpoint', 'run now'), *differences])}"


def _value(difference: dict[str, Any], side: str) -> str:
    return json.dumps(difference[side], ensure_ascii=False) if side in difference else "-"


def _entry_facts(entry: Entry) -> dict[str, Any]:
    return {
        "name": entry.name,
        "shape": list(entry.shape),
        "dtype": entry.dtype,
        "shards": entry.shards,
        "bytes": entry.num_bytes,
    }


def _entry_row(entry: Entry) -> tuple[str, ...]:
    shape = " × ".join(map(str, entry.shape)) or "scalar"
    return (entry.name, shape, entry.dtype, str(entry.shards), _size(entry.num_bytes))


def _export(argv: list[str]) -> int:
    """Export the model of a checkpoint."""
    arguments = Arguments(
        "checkpoint export",
        "RUN | CHECKPOINT -o DIR",
        "Write the model of a checkpoint (of a run: its newest) in the format of transformers: "
        "config, tokenizer and safetensors, byte for byte what the run would have exported at that "
        "step, whatever engine wrote the checkpoint. Memory: the largest tensor. The disk needs "
        "room for the weights twice.",
        "trainctl checkpoint export RUN -o model",
        "trainctl checkpoint export RUN/checkpoints/step-00001000 -o model --dtype bfloat16",
    )
    from launcher.contracts import DType

    arguments.add_argument("-o", "--output", metavar="DIR", type=Path, required=True, help="folder")
    help_ = "number format of the weights (default: checkpoint.export_dtype of the config)"
    arguments.add_argument("--dtype", choices=get_args(DType), help=help_)
    flags, words = arguments.words(argv, at_least=1, at_most=1)
    path = _newest(words[0])
    announce(f"exporting {path}")
    from launcher.training.exporting import export_checkpoint

    export_checkpoint(path, flags.output.expanduser().absolute(), flags.dtype)
    print(f"exported {path} to {flags.output}")
    return 0


def _convert(argv: list[str]) -> int:
    """Rewrite a checkpoint."""
    arguments = Arguments(
        "checkpoint convert",
        "RUN | CHECKPOINT -o PATH",
        "Rewrite a checkpoint (of a run: its newest). --parts N: the same checkpoint with its "
        "tensors in N files. --to safetensors|torch: one file with the tensors under their names, "
        "model and optimizer. Memory: the largest shard of a tensor. A checkpoint's folder `state` "
        "is in the format of torch.distributed.checkpoint already: torch's tools read it.",
        "trainctl checkpoint convert RUN --parts 1 -o copy/step-00001000",
        "trainctl checkpoint convert RUN --to safetensors --tensors '^model' -o weights.st",
    )
    add = arguments.add_argument
    add("-o", "--output", metavar="PATH", type=Path, required=True, help="what to write")
    add("--parts", metavar="N", type=int, help="number of files of a checkpoint")
    add("--to", choices=("safetensors", "torch"), help="one file in this format")
    text = "with --to: only tensors whose name matches this regular expression"
    add("--tensors", metavar="PATTERN", help=text)
    flags, words = arguments.words(argv, at_least=1, at_most=1)
    if (flags.to is None) == (flags.parts is None):
        arguments.error("write either --parts N or --to FORMAT")
    if flags.parts is not None and flags.parts < 1:
        arguments.error(f"--parts must be at least 1, but is {flags.parts}")
    if flags.tensors is not None and flags.to is None:
        arguments.error("--tensors needs --to: a checkpoint has all tensors of a run")
    pattern = _pattern(arguments, "--tensors", flags.tensors)
    from launcher.checkpoint import write_parts, write_tensors

    saved = _saved(words[0])
    announce(f"verifying {saved.path}")
    saved.verify()
    output = flags.output.expanduser().absolute()
    if flags.parts is not None:
        write_parts(saved, output, flags.parts)
    else:
        names = [each.name for each in saved.entries()]
        chosen = [name for name in names if pattern is None or pattern.search(name)]
        if not chosen:
            arguments.error(f"no tensor matches {flags.tensors!r}")
        write_tensors(saved, output, chosen, flags.to)
    print(f"converted {saved.path} to {flags.output}")
    return 0


def _pattern(arguments: Arguments, flag: str, text: str | None) -> re.Pattern[str] | None:
    try:
        return None if text is None else re.compile(text)
    except re.error as error:
        arguments.error(f"{flag}: {text!r} is no regular expression: {error}")


def _run(word: str) -> RunDir:
    from launcher.cli.resume import run_directory

    path = Path(word).expanduser().absolute()
    # The checkpoint of a run, or its folder of checkpoints, names the run, too.
    return next(
        (RunDir(each) for each in (path, *path.parents) if RunDir(each).is_run()),
        None,
    ) or RunDir(run_directory(word))


def _checkpoints(word: str) -> list[Path]:
    """Return the checkpoint that a word names, or all published ones of a run."""
    path = Path(word).expanduser().absolute()
    if (path / _MANIFEST).exists() or path.parent.name == "checkpoints":
        return [path]
    run_dir = _run(word)
    steps = {path: step_of(path) for path in run_dir.checkpoints.glob("step-*")}
    found = {path: step for path, step in steps.items() if step is not None}
    if not found:
        raise CheckpointError(f"{run_dir.path} has no checkpoints")
    return sorted(found, key=lambda path: found[path])


def _newest(word: str) -> Path:
    return _checkpoints(word)[-1]


def _saved(word: str) -> SavedCheckpoint:
    from launcher.checkpoint import SavedCheckpoint

    return SavedCheckpoint(_newest(word))


def _size(num_bytes: int) -> str:
    from launcher.cli.memory import size_text

    return size_text(num_bytes)
