"""The command line: `trainctl VERB words`.

A verb is a module of this package with `main(argv) -> int`, imported when it is called, and a line
in `VERBS` for help and completion. Verbs parse words, call the packages below and print. Only here
an exception becomes text and an exit status (`launcher.errors` lists them).
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from contextlib import suppress
from importlib import import_module

# Here and not in the modules of the verbs: --help and Tab completion would import all of them.
VERBS = {
    "run": "compose a config and train; -m runs one job per combination of values",
    "resume": "continue a run, bit for bit, from its newest good checkpoint",
    "join": "start this machine's ranks of a run on several machines",
    "check": "find the problems of a config without starting anything",
    "plan": "memory, speed and traffic of a config before a start, and what makes it fit",
    "verify": "prove that a config trains the same on other engines, ranks and accumulations",
    "checkpoint": "list, verify, show, export and convert the checkpoints of a run",
    "config": "show, explain or compare resolved configs",
    "list": "config groups, their kinds and presets, and the fields of a kind",
    "recipes": "complete, named experiments",
    "lr": "the learning rate of every step, without a run",
    "env": "versions, devices, cores and memory of this machine",
    "completion": "the shell's tab completion",
    "version": "the version of trainctl",
}
_MODULES = {"list": "listing"}  # a module `list` would hide the builtin in this package
# Verbs of other tools, and those of `config` without it.
_MEANT = {
    **dict.fromkeys(("train", "fit", "launch", "start", "sft", "pretrain", "finetune"), "run"),
    **dict.fromkeys(("continue", "restart", "restore"), "resume"),
    **dict.fromkeys(("validate", "test", "dry-run"), "check"),
    **dict.fromkeys(("show", "explain", "diff", "params", "memory"), "config VERB"),
    **dict.fromkeys(("compare", "prove", "certify", "sameness"), "verify"),
    **dict.fromkeys(("ls", "options", "groups"), "list"),
    **dict.fromkeys(("multirun", "sweep"), "run -m KEY=A,B"),
    **dict.fromkeys(("doctor", "info"), "env"),
    "estimate-memory": "plan",
    "cfg": "config show",
    **dict.fromkeys(("checkpoints", "ckpt"), "checkpoint list"),
    **dict.fromkeys(("export", "convert"), "checkpoint VERB"),
    "schema": "config schema",
    "recipe": "recipes",
}
_BROKEN_PIPE = 128 + 13  # what a shell reports for a program that SIGPIPE killed


def main(argv: list[str] | None = None) -> int:
    """Run one verb, and return the exit status.

    Args:
        argv: The words after `trainctl`; those of this process if None.
    """
    words = sys.argv[1:] if argv is None else list(argv)
    traceback = "--traceback" in words
    # Before the verb's own parser, so that every verb has the flag, at any position.
    words = [word for word in words if word != "--traceback"]
    _open_standard_streams()
    with suppress(AttributeError):
        # A word of the command line need not be valid UTF-8, and not every terminal can show ×.
        sys.stdout.reconfigure(errors="backslashreplace")  # type: ignore[union-attr] # tests replace it
    try:
        status = _run(words)
        # Here, where BrokenPipeError is handled, and not at the interpreter's exit.
        sys.stdout.flush()
    # argparse ends --help so, after printing it.
    except SystemExit as end:
        return end.code if isinstance(end.code, int) else 0
    except BrokenPipeError:
        _forget_stdout()
        return _BROKEN_PIPE
    except KeyboardInterrupt:
        from launcher.errors import Interrupted

        print("trainctl: interrupted", file=sys.stderr)
        return Interrupted.exit_status
    except Exception as error:
        from launcher.errors import TrainctlError

        # A defect of trainctl: Python prints the traceback and exits with 1.
        if not isinstance(error, TrainctlError):
            error.add_note("This is a mistake in trainctl, not in your config; please report it.")
            raise
        if traceback:
            sys.excepthook(type(error), error, error.__traceback__)
        lines = [f"trainctl: error: {error}", *getattr(error, "__notes__", ())]
        print("\n".join(lines), file=sys.stderr)
        return error.exit_status
    return status


def _run(words: Sequence[str]) -> int:
    verb, *rest = words or ["help"]
    if verb in {"-V", "--version"}:
        verb = "version"
    elif verb in {"-h", "--help", "help"}:
        if not rest:
            print(_help())
            return 0
        verb, rest = rest[0], [*rest[1:], "--help"]
    if verb not in VERBS:
        print(f"trainctl: error: {_unknown(verb, words)}", file=sys.stderr)
        return 2
    # Imported only now: `trainctl version` must not wait for Hydra or pydantic.
    status: int = import_module(f"launcher.cli.{_MODULES.get(verb, verb)}").main(rest)
    return status


def _help() -> str:
    from launcher.cli._console import bold, table

    return "\n".join(
        [
            f"{bold('usage:')} trainctl VERB [group=option] [key=value] [options]",
            "",
            "Train a model from one resolved config; resume it bit for bit.",
            "",
            bold("verbs:"),
            table([(f"  {verb}", says) for verb, says in VERBS.items()]),
            "",
            bold("examples:"),
            "  trainctl run",
            "  trainctl run optimizer=sgd optimizer.lr=0.1 max_steps=200",
            "  trainctl config explain optimizer.lr",
            "",
            "`trainctl VERB --help` lists its options; --traceback shows the origin of an error.",
        ]
    )


def _unknown(verb: str, words: Sequence[str]) -> str:
    # A forgotten verb: `trainctl optimizer=sgd`.
    if "=" in verb:
        import shlex

        return f"a verb must come first; did you mean `trainctl run {shlex.join(words)}`?"
    from launcher.suggest import closest, did_you_mean

    if meant := _MEANT.get(verb.lower(), "").replace("VERB", verb.lower()):
        return f"no verb {verb!r}; write `trainctl {meant}`"
    hint = did_you_mean(closest(verb, VERBS)) or f"; it can be: {', '.join(VERBS)}"
    return f"no verb {verb!r}{hint}"


def _open_standard_streams() -> None:
    """Open /dev/null in place of closed standard streams (`2>&-`)."""
    for number, name in enumerate(("stdin", "stdout", "stderr")):
        try:
            os.fstat(number)
        except OSError:
            # Otherwise the next file that is opened, such as a checkpoint, gets this number, and
            # messages are written into it. `open` returns the lowest free number, which is this.
            os.open(os.devnull, os.O_RDWR)
            os.set_inheritable(number, True)
            setattr(sys, name, os.fdopen(number, "r" if number == 0 else "w", closefd=False))


def _forget_stdout() -> None:
    """Redirect stdout to /dev/null after its reader has closed the pipe."""
    # The interpreter flushes stdout at exit, and would print a traceback of BrokenPipeError.
    with suppress(OSError, ValueError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
