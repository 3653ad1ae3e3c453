"""Search of accumulation=auto for the largest micro-batch that fits, by the launching process."""

from __future__ import annotations

import json
import shutil
import signal
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from typing_extensions import override

from launcher.config.schema import RunConfig
from launcher.contracts import AccumulationOption, MicroBatchSearch
from launcher.errors import LaunchError, OutOfMemory, RankFailed
from launcher.launch import StartOptions
from launcher.launch._start import start
from launcher.run_dir import RunDir, write_atomically

# Every trial starts new ranks: one that runs out of memory leaves no other waiting in a collective,
# and the peak of a trial starts from zero.
_GROUP = "accumulation"
# Exit statuses of a process that ran out of memory: killed by the kernel, or crashed in a library
# that does not check its allocations.
_KILLED = {
    128 + number for number in (signal.SIGKILL, signal.SIGABRT, signal.SIGSEGV, signal.SIGBUS)
}


@dataclass(frozen=True, slots=True)
class Trial:
    """Result of a trial: largest peak and smallest limit of a rank, None if none recorded one."""

    micro_batch_size: int
    fits: bool
    peak_mib: float | None
    limit_mib: float | None

    @override
    def __str__(self) -> str:
        verdict = "fits" if self.fits else "does not fit"
        # The peak of a trial that ran out of memory is not what it would have used.
        peak = f" ({self.peak_mib:,.0f} MiB)" if self.fits and self.peak_mib is not None else ""
        return f"{self.micro_batch_size} {verdict}{peak}"


@dataclass(slots=True)
class _Trials:
    config: RunConfig
    search: MicroBatchSearch
    run_dir: RunDir
    lock: Sequence[int]
    quiet: bool
    done: list[Trial] = field(default_factory=list)

    def __call__(self, micro_batch_size: int) -> bool:
        trial_dir = self.run_dir.trial(micro_batch_size)
        option = self.search.at_most(micro_batch_size)
        config = self.config.model_copy(update={"accumulation": option})
        try:
            # An interrupted search leaves the directory: its rank-N.json would pass for results of
            # this trial.
            shutil.rmtree(trial_dir.path, ignore_errors=True)
            trial_dir.path.mkdir(parents=True)
            write_atomically(trial_dir.config, config.to_json())
            shutil.copyfile(self.run_dir.env, trial_dir.env)
        except OSError as error:
            raise LaunchError(f"cannot write to {trial_dir.path}: {error.strerror}") from error
        trial = _trial(config, trial_dir, self.lock, micro_batch_size)
        self.done.append(trial)
        self.say(f"{', ' if len(self.done) > 1 else 'accumulation=auto: micro-batch '}{trial}")
        return trial.fits

    def say(self, text: str) -> None:
        if not self.quiet:
            print(text, end="", flush=True)  # noqa: T201 - a trial takes seconds to minutes

    @property
    def limit(self) -> str:
        limits = [trial.limit_mib for trial in self.done if trial.limit_mib is not None]
        return f" into {min(limits):,.0f} MiB" if limits else ""


def find_micro_batch_size(
    config: RunConfig, run_dir: RunDir, lock: Sequence[int], *, quiet: bool = False
) -> RunConfig:
    """Return the config with the largest micro-batch that fits, and write it to config.json.

    Raises:
        OutOfMemory: Not even a micro-batch of 1 fits.
        TrainctlError: The ranks cannot start with any size.
    """
    search = config.accumulation.search
    if search is None:
        return config
    trials = _Trials(config, search, run_dir, lock, quiet)
    layout = config.parallelism.layout(config.launch.ranks)
    candidates = search.candidates(seq_len=config.task.seq_len, ranks=layout.data_ranks)
    try:
        found = largest_fitting(candidates, trials)
        if found is None:
            raise _nothing_fits(trials)
        decided = search.decided(found)
        words = [f"accumulation={decided.kind}", *_words(decided)]
        trials.say(f"{trials.limit}: {' '.join(words)}")
    finally:
        if trials.done:
            trials.say("\n")
    # Written down, so that the run and every resume have the same micro-batch, whatever else uses
    # the device then.
    config = config.model_copy(update={"accumulation": decided})
    _write_decision(config, run_dir, words, _reason(trials, found))
    return config


def largest_fitting(candidates: Sequence[int], fits: Callable[[int], bool]) -> int | None:
    """Return the largest of the ascending candidates that fits, or None."""
    # Every answer comes from a trial, none from extrapolation: memory is not linear in the size.
    # The largest first: for a small model one trial is enough.
    if fits(candidates[-1]):
        return candidates[-1]
    fitting, failing = -1, len(candidates) - 1
    while failing - fitting > 1:
        middle = (fitting + failing) // 2
        if fits(candidates[middle]):
            fitting = middle
        else:
            failing = middle
    return candidates[fitting] if fitting >= 0 else None


def decided_overrides(
    typed: Sequence[str], origins: Mapping[str, str], decided: Sequence[str]
) -> list[str]:
    """Return overrides that compose the decided config, in place of those that were typed."""
    kept = [word for word in typed if word.lstrip("+~").partition("=")[0].split(".")[0] != _GROUP]
    named = {word.partition("=")[0] for word in decided}
    # Keys of `auto` that a recipe sets would be unknown keys of the decided option.
    stray = [
        key
        for key, origin in origins.items()
        if key.startswith(f"{_GROUP}.")
        and key not in {*named, f"{_GROUP}.kind"}
        and not origin.startswith("command line")
        and Path(origin.partition(":")[0]).parent.name != _GROUP
    ]
    return [*kept, *decided, *(f"~{key}" for key in stray)]


def _trial(
    config: RunConfig, trial_dir: RunDir, lock: Sequence[int], micro_batch_size: int
) -> Trial:
    try:
        start(config, trial_dir, lock, StartOptions())
        fits = True
    except OutOfMemory:
        fits = False
    except RankFailed as error:
        # Another rank may have run out of memory while the first was waiting for it.
        measured = _measured(trial_dir)
        # Anything else that ends a rank is a defect, and not an answer of the search.
        if error.exit_status not in _KILLED and all(each["fits"] for each in measured):
            raise
        fits = False
    measured = _measured(trial_dir)
    return Trial(
        micro_batch_size,
        fits and all(each["fits"] for each in measured),
        max((each["peak_mib"] for each in measured), default=None),
        min((each["limit_mib"] for each in measured), default=None),
    )


def _measured(trial_dir: RunDir) -> list[dict[str, float]]:
    paths = sorted(trial_dir.path.glob("rank-*.json"))
    return [json.loads(path.read_text(encoding="utf-8")) for path in paths]


def _words(decided: AccumulationOption) -> list[str]:
    values = decided.model_dump(mode="json", exclude={"kind"})
    return [f"{_GROUP}.{key}={value}" for key, value in values.items()]


def _reason(trials: _Trials, found: int) -> str:
    tried = ", ".join(map(str, sorted(trials.done, key=lambda trial: trial.micro_batch_size)))
    return f"accumulation=auto: {found} is the largest that fits{trials.limit}; tried: {tried}"


def _nothing_fits(trials: _Trials) -> OutOfMemory:
    return OutOfMemory(
        f"accumulation=auto: not even a micro-batch of 1 fits{trials.limit}; lower task.seq_len, "
        "choose a smaller model or an optimizer with less state, or raise "
        f"accumulation.memory_limit_gib (see {trials.run_dir.trial(1).log(0)})"
    )


def _write_decision(config: RunConfig, run_dir: RunDir, words: Sequence[str], reason: str) -> None:
    # config.json last: killed before it, the next start searches again.
    try:
        origins = run_dir.read_provenance()
        typed = run_dir.overrides.read_text(encoding="utf-8").splitlines()
        plain = decided_overrides(typed, origins, words)
        values = config.accumulation.model_dump(mode="json")
        kept = {k: v for k, v in origins.items() if not k.startswith(f"{_GROUP}.")}
        for key in values:
            name = f"{_GROUP}.{key}"
            is_kept = key not in {"kind", "micro_batch_size"} and name in origins
            kept[name] = origins[name] if is_kept else reason
        write_atomically(run_dir.decisions, "".join(f"{word}\n" for word in plain))
        write_atomically(run_dir.provenance, json.dumps(kept, indent=1) + "\n")
        run_dir.write_config(config.to_json())
    except OSError as error:
        raise LaunchError(f"cannot write to {run_dir.path}: {error.strerror}") from error
