"""Errors, and the exit status of each.

    TrainctlError
    ├── UsageError         2   the command line has words that the verb does not accept
    ├── ConfigError        2   every problem at once: key, what is wrong, what to do, who set it
    ├── LaunchError        3   the run cannot be started: its directory, lock, ports, devices
    ├── NonFinite         10   loss or gradient norm is not finite; the weights are untouched
    │   └── Diverged      10   the weights are not finite, or all updates are skipped
    ├── OutOfMemory       11   the device is full; what would fit
    ├── Hang              12   which rank is missing, and where it hangs
    ├── DataError         13   file, place in it, what was expected
    ├── CheckpointError   14   which file, what to do
    │   └── LostRank      14   which rank did not answer during a save or a load
    ├── NotTheSame        15   trainctl verify: which engine trains otherwise, and where it begins
    ├── RankFailed         1   a rank exited without a result; 128 + n if signal n did it
    │   └── ConnectionLost 1   ranks lost each other, and none recorded a cause
    ├── Preempted         75   state saved; requeue me
    └── Interrupted      130   state saved after Ctrl-C

A TrainctlError is for the user to fix and prints without a traceback; anything else is a bug,
prints with its traceback and exits 1. Only `launcher.cli` turns an exception into text and status.
"""

# `trainctl --help` imports this module: typing_extensions, for `override`, would make it a fifth
# slower, so `explicit-override` is ignored here.

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, ClassVar

# Exit statuses above it are those of processes that a signal killed.
_SIGNALLED = 128


class TrainctlError(Exception):
    """Base of all errors that the user can fix: a message and an exit status."""

    exit_status: ClassVar[int] = 1
    is_transient: ClassVar[bool] = False
    """True if new processes may not meet the error again: a kill, a lost connection, a hang."""

    def attributes(self) -> dict[str, Any]:
        """Return the error's attributes as JSON values."""
        return {name: value for name, value in vars(self).items() if name != "__notes__"}

    @classmethod
    def from_record(cls, message: str, attributes: Mapping[str, Any]) -> "TrainctlError":
        """Build the error from its message and `attributes`."""
        # Without the constructor, whose parameters differ by class.
        error = cls.__new__(cls)
        Exception.__init__(error, message)
        for name, value in attributes.items():
            # JSON has no tuples.
            setattr(error, name, tuple(value) if isinstance(value, list) else value)
        return error


class UsageError(TrainctlError):
    """The command line has a word that the verb does not accept."""

    exit_status = 2


@dataclass(frozen=True, slots=True)
class Problem:
    """One problem of a config.

    Attributes:
        key: Dotted path of the setting, e.g. `optimizer.lr`; "" for a problem of no single key.
        message: What is wrong and what to do, without the key.
        origin: Where the value was set: `file:line: text` or `command line: word`; "" if unknown.
    """

    key: str
    message: str
    origin: str = ""

    def __str__(self) -> str:  # type: ignore[explicit-override]
        head = f"{self.key}: {self.message}" if self.key else self.message
        return f"{head}\n      set by {self.origin}" if self.origin else head


class ConfigError(TrainctlError):
    """The config cannot be run; carries every problem that was found."""

    exit_status = 2

    def __init__(self, problems: Sequence[Problem]) -> None:
        self.problems = tuple(problems)
        count = f"{len(problems)} problem{'s' if len(problems) != 1 else ''} in the config"
        super().__init__("\n".join([count, *(f"  {problem}" for problem in problems)]))

    def attributes(self) -> dict[str, Any]:  # type: ignore[explicit-override]
        """Return the problems."""
        return {"problems": [asdict(problem) for problem in self.problems]}

    @classmethod
    def from_record(  # type: ignore[explicit-override]
        cls, message: str, attributes: Mapping[str, Any]
    ) -> "ConfigError":
        """Build the error from its problems."""
        del message  # the constructor makes it from the problems
        return cls([Problem(**each) for each in attributes["problems"]])

    def __reduce__(self) -> tuple[Any, ...]:  # type: ignore[explicit-override]
        # Pickle would call the constructor with the message alone.
        return type(self), (self.problems,)


class LaunchError(TrainctlError):
    """The run cannot be started: its directory, lock, devices or ranks."""

    exit_status = 3


class NonFinite(TrainctlError):
    """The loss or the gradient norm is not finite; raised before the optimizer step.

    Attributes:
        indices: Indices in the training set of the samples of the micro-batches concerned.
    """

    exit_status = 10

    def __init__(self, message: str, indices: Sequence[int] = ()) -> None:
        # NumPy's integers are no JSON values.
        self.indices = tuple(int(index) for index in indices)
        super().__init__(message)


class Diverged(NonFinite):
    """The weights are not finite, or too many updates in a row were skipped."""


class OutOfMemory(TrainctlError):
    """The device has no memory left for the step."""

    exit_status = 11


class Hang(TrainctlError):
    """A rank made no progress within `launch.timeout_s`.

    Attributes:
        missing: The ranks that the others wait for.
    """

    exit_status = 12
    is_transient = True

    def __init__(self, message: str, missing: Sequence[int] = ()) -> None:
        self.missing = tuple(missing)
        super().__init__(message)


class DataError(TrainctlError):
    """The data cannot be read, or is not in the configured format."""

    exit_status = 13


class CheckpointError(TrainctlError):
    """A checkpoint cannot be written or loaded."""

    exit_status = 14


class LostRank(CheckpointError):
    """A rank did not answer during a save or load; its own error has the reason."""

    is_transient = True


class NotTheSame(TrainctlError):
    """A training on another engine, number of ranks or cut differs from that of one process."""

    exit_status = 15


class RankFailed(TrainctlError):
    """A rank exited without writing its result: a crash, or a kill.

    Attributes:
        exit_status: 1, or 128 + the number of the signal that killed the rank.
    """

    def __init__(self, message: str, exit_status: int) -> None:
        self.exit_status = exit_status  # type: ignore[misc] # what a shell would report
        super().__init__(message)

    @property
    def is_transient(self) -> bool:  # type: ignore[override,explicit-override]
        """True if a signal killed the rank, as the kernel does when the machine has no memory."""
        return self.exit_status > _SIGNALLED


class ConnectionLost(RankFailed):
    """A rank lost its connection to another, and no rank recorded a cause."""

    is_transient = True


class Preempted(TrainctlError):
    """A signal asked the run to end; its state is saved and `trainctl resume` continues it."""

    exit_status = 75


class Interrupted(TrainctlError):
    """Ctrl-C ended the run; its state is saved."""

    exit_status = 130


def record(error: TrainctlError) -> dict[str, Any]:
    """Return an error as JSON values; `revive` is the inverse."""
    # A rank writes them to RUN_DIR/result/rank-N.json, where users and scripts read them too.
    return {
        "error": type(error).__name__,
        "message": str(error),
        "exit_status": error.exit_status,
        "attributes": error.attributes(),
        "notes": list(getattr(error, "__notes__", ())),
    }


def revive(values: Mapping[str, Any]) -> TrainctlError:
    """Build the error that `record` describes; a `RankFailed` if its class is unknown here."""
    message: str = values["message"]
    error_class = next((c for c in _classes(TrainctlError) if c.__name__ == values["error"]), None)
    if error_class is None:
        # A class of an option package, which the launcher has not imported.
        error: TrainctlError = RankFailed(f"{values['error']}: {message}", values["exit_status"])
    else:
        error = error_class.from_record(message, values["attributes"])
    for note in values["notes"]:
        error.add_note(note)
    return error


def _classes(root: type[TrainctlError]) -> Iterator[type[TrainctlError]]:
    yield root
    for error_class in root.__subclasses__():
        yield from _classes(error_class)
