"""Find settings without effect, and their origins."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping

from launcher.config._provenance import COMMAND_LINE
from launcher.config.paths import is_packaged
from launcher.config.problems import leaves
from launcher.config.schema import RunConfig
from launcher.errors import Problem

# Settings that commands read before and after the ranks.
_OF_COMMANDS = {
    "name": "it names the folder of the run",
    "run_root": "it names the folder of all runs",
    "objective": "a sweep reads it",
    "objective_mode": "a sweep reads it",
}


def not_applicable(config: RunConfig) -> dict[str, str]:
    """Return the settings that have no effect in this run, each with the reason."""
    return {
        f"{group}.{field}": reason
        for group, option in config.options()
        for field, reason in option.not_applicable(config).items()
    }


def typed_without_effect(config: RunConfig, origin: Callable[[str], str]) -> Iterator[Problem]:
    """Yield the settings of the command line that have no effect."""
    # Settings in a file are no mistake: an override may have switched off the feature that they
    # belong to. Nor is null, which switches a feature off.
    values = dict(leaves(config.model_dump()))
    for key, reason in not_applicable(config).items():
        typed = origin(key).startswith(COMMAND_LINE)
        if typed and values.get(key, ...) is not None:
            yield Problem(key, f"has no effect: {reason}; leave it out")


def without_effect(
    config: RunConfig, unread: Iterable[str], provenance: Mapping[str, str]
) -> dict[str, str]:
    """Return the user's settings without effect in a run: the origin, and the reason if known."""
    # A typed setting without effect is refused before the run. One in a file is only reported: an
    # override may have switched off the feature that it belongs to.
    reasons = not_applicable(config)
    values = dict(leaves(config.model_dump()))
    switched_off = {key for key in reasons if values.get(key) is None}
    # A config from Python has no origins: the user's keys cannot be distinguished from a preset's.
    in_files = [key for key in reasons if ":" in _origin(key, provenance)]
    keys = {*unread} - reasons.keys() | {*in_files} - switched_off
    origins = {key: _origin(key, provenance) for key in sorted(keys - _OF_COMMANDS.keys())}
    return {
        key: f"{origin}: {reasons[key]}" if key in reasons else origin
        for key, origin in origins.items()
        if origin and not is_packaged(origin)
    }


def _origin(key: str, provenance: Mapping[str, str]) -> str:
    # Provenance has one entry for a list, and `unread` one for each element.
    while key not in provenance and "." in key:
        key = key.rpartition(".")[0]
    return provenance.get(key, "")
