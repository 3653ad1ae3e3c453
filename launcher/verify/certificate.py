"""The certificate of a config: SAMENESS.json, where it is, and what has changed since.

`trainctl verify` writes it to `<run_root>/sameness/<name>/`, the newest one of each name of a
config; `trainctl run` looks for it there.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from launcher.config import derive
from launcher.config.problems import leaves
from launcher.errors import LaunchError
from launcher.run_dir import write_atomically

if TYPE_CHECKING:
    from launcher.config.schema import RunConfig
    from launcher.verify.result import Verification

CERTIFICATE = "SAMENESS.json"
"""Name of the file; SAMENESS.html next to it shows the same."""
# Most changes that the line at the start of a run names.
_NAMED = 4
# Settings that no step reads, and those that a cell replaces: the engine and the batch are looked
# up by themselves.
_WITHOUT_EFFECT = frozenset(
    {
        "name",
        "run_root",
        "objective_mode",
        "log_every_steps",
        "eval_every_steps",
        "eval_max_samples",
        "final_eval_max_samples",
        "max_consecutive_skips",
        "observer",
        "logging",
        "checkpoint",
        "launch",
        "parallelism",
        "accumulation",
    }
)


def folder_of(config: RunConfig) -> Path:
    """Return the folder where the certificate of a config is written and looked for."""
    return (Path(config.run_root).expanduser() / "sameness" / config.name).absolute()


def write(found: Verification, folder: Path | None = None) -> Path:
    """Write the result, equal or not, as JSON and HTML, and return the path of the JSON.

    `folder` is None for the place where `trainctl run` looks.
    """
    from launcher.verify.html import page

    place = folder or folder_of(found.config)
    path = place / CERTIFICATE
    save(path.with_suffix(".html"), page(found))
    save(path, as_json(found))
    return path


def as_json(found: Verification) -> str:
    """Return the result as the text of a JSON file."""
    return json.dumps(found.to_json(), indent=1, allow_nan=False) + "\n"


def save(path: Path, text: str) -> None:
    """Write a file and create the folder that it is in."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(path, text)
    except OSError as error:
        raise LaunchError(f"cannot write {path}: {error.strerror}") from error


def status(config: RunConfig) -> str | None:
    """Return one line: whether a config is certified, or what changed since then."""
    path = folder_of(config) / CERTIFICATE
    ranks = config.launch.ranks
    try:
        stored: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        return _judged(config, stored)
    except FileNotFoundError:
        # One process is the reference itself: there is nothing to advise.
        if ranks == 1:
            return None
        return "not certified: `trainctl verify` compares this engine with one process"
    # The file is for information only: whatever is wrong with it must not stop the run.
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return f"not certified: {path} is damaged"


def _judged(config: RunConfig, stored: Mapping[str, Any]) -> str:
    if changes := list(_changes(config, stored)):
        more = f" and {len(changes) - _NAMED} more" if len(changes) > _NAMED else ""
        return f"not certified: changed since: {', '.join(changes[:_NAMED])}{more}"
    own = config.parallelism.model_dump(mode="json")
    ranks = config.launch.ranks
    # By values, not by name: a preset may have changed since, or the user may have set one field.
    names = {name for name, values in stored["engines"].items() if values == own}
    cells = [c for c in stored["cells"] if c["engine"] in names and c["ranks"] == ranks]
    ran = [cell for cell in cells if cell["status"] != "refused"]
    where = f"{config.parallelism.kind} on {ranks} rank{'s' if ranks > 1 else ''}"
    if not ran:
        return f"not certified: {where} was not compared by the last `trainctl verify`"
    if any(cell["status"] != "equal" for cell in ran):
        return f"not certified: {where} does not train as one process does (`trainctl verify`)"
    shrunk = " of a smaller model" if stored["shrunk"] else ""
    return (
        f"certified: {where} trains as one process does ({stored['steps']} steps{shrunk}, "
        f"{stored['time'][:10]})"
    )


def _changes(config: RunConfig, stored: Mapping[str, Any]) -> Iterator[str]:
    from launcher.verify.result import versions

    before, after = (
        dict(leaves(each)) for each in (stored["config"], config.model_dump(mode="json"))
    )
    for key in sorted(before.keys() | after.keys()):
        old, new = before.get(key), after.get(key)
        if key.partition(".")[0] not in _WITHOUT_EFFECT and old != new:
            yield f"{key} {old} → {new}"
    batch = derive.batch_plan(config).samples_per_step
    # A shrunk comparison had a batch of its own, so that the config's batch was never certified.
    if not stored["shrunk"] and batch != stored["samples_per_step"]:
        yield f"samples per step {stored['samples_per_step']} → {batch}"
    # Another version may compute in another order, or have the defect that the old one had not.
    now = versions()
    for package, version in stored["versions"].items():
        if now.get(package) != version:
            yield f"{package} {version} → {now.get(package, 'none')}"
