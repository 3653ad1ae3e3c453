"""Load a verified checkpoint into the live tensors of this rank."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from launcher.checkpoint import _manifest
from launcher.checkpoint._manifest import Manifest
from launcher.checkpoint._ranks import Ranks
from launcher.checkpoint._state import State, full_shape, local_tensor
from launcher.contracts import Snapshot, param_of
from launcher.errors import CheckpointError

if TYPE_CHECKING:
    from launcher.checkpoint._index import Index

T = TypeVar("T")
# Shape of the full tensor and dtype, by name.
Specs = Mapping[str, tuple[tuple[int, ...], Any]]

# Most names of tensors in a message.
_NAMED = 5
# Prefixes of entries that are returned as new tensors. Generators have no live tensors; a run that
# resumes in another number format does not use the state of the old one.
_FRESH = ("rng.", "precision.")


def rng_prefix(rank: int) -> str:
    return f"rng.rank{rank}."


def restore(path: Path, manifest: Manifest, live: State, ranks: Ranks) -> Snapshot:
    """Fill the live tensors, after all ranks have agreed that the checkpoint is of this model.

    Raises:
        CheckpointError: It is of another model, its content is refused, or it cannot be read.
    """
    opened: list[Index] = []

    def describe() -> tuple[Specs, Specs]:
        from launcher.checkpoint._index import Index

        sizes = {name: record.size for name, record in manifest.files.items()}
        opened.append(_readable(path, lambda: Index(path, sizes)))
        return opened[0].describe(), {
            name: (full_shape(value), local_tensor(value).dtype) for name, value in live.items()
        }

    # Two rounds: no rank changes its tensors before all have found that the checkpoint fits. The
    # index is one file, so that rank 0's is compared.
    ranks.share(
        describe, lambda specs: _check_same_model(path, specs[0][0], [own for _, own in specs])
    )
    read: list[Snapshot] = []
    ranks.share(
        lambda: read.append(
            _readable(path, lambda: _read(path, manifest, opened[0], live, ranks.rank))
        ),
        lambda _: None,
    )
    return read[0]


def _read(path: Path, manifest: Manifest, index: Index, live: State, rank: int) -> Snapshot:
    saved = index.describe()
    prefix = rng_prefix(rank)
    fresh = index.read(name for name in saved if name.startswith((prefix, "precision.")))
    filled = {
        name: value for name, value in live.items() if name in saved and not name.startswith(_FRESH)
    }
    index.fill(filled)
    rng = {name: tensor for name, tensor in fresh.items() if name.startswith(prefix)}
    train_state = _read_object(path / _manifest.TRAIN_STATE)
    if train_state.get("step") != manifest.step:
        raise CheckpointError(
            f"{path / _manifest.TRAIN_STATE}: step must be {manifest.step} as in "
            f"{_manifest.NAME}, but is {train_state.get('step')!r}"
        )
    return Snapshot(
        step=manifest.step,
        engine={**filled, **{name: fresh[name] for name in fresh.keys() - rng.keys()}},
        train_state=train_state,
        rng={name.removeprefix(prefix): tensor for name, tensor in rng.items()},
        config=(path / _manifest.CONFIG).read_text("utf-8"),
        data_fingerprint=manifest.data_fingerprint,
    )


def _readable(path: Path, read: Callable[[], T]) -> T:
    try:
        return read()
    except OSError as error:
        raise CheckpointError(f"{path} verified but could then not be read: {error}") from error


def _check_same_model(path: Path, saved: Specs, lives: Sequence[Specs]) -> None:
    """Compare saved names, shapes and dtypes with the live tensors of all ranks."""
    # All optimizer entries of a parameter may be missing: no update had reached it. The state of a
    # number format is not compared: a run may resume in another format.
    saved = {name: spec for name, spec in saved.items() if not name.startswith(_FRESH)}
    pairs = {
        (name, spec) for live in lives for name, spec in live.items() if not name.startswith(_FRESH)
    }
    names = {name for name, _ in pairs}
    differing = [
        f"{name} is {_describe(saved[name])}, expected {_describe(spec)}"
        for name, spec in pairs
        if name in saved and saved[name] != spec
    ]
    params = {name.removeprefix("model.") for name in names if name.startswith("model.")}
    reached = {param_of(name, params) for name in saved} | {None}
    problems = {
        "missing in the checkpoint": {
            name for name in names - saved.keys() if param_of(name, params) in reached
        },
        "unexpected in the checkpoint": saved.keys() - names,
        "different": differing,
    }
    if any(problems.values()):
        lines = (f"{what}: {_some(found)}" for what, found in problems.items() if found)
        raise CheckpointError(
            "\n  ".join([f"{path} is a checkpoint of another model or optimizer", *lines])
        )


def _describe(spec: tuple[tuple[int, ...], Any]) -> str:
    shape, dtype = spec
    return f"{shape} {str(dtype).removeprefix('torch.')}"


def _some(names: Any) -> str:
    shown = sorted(names)
    more = f" and {len(shown) - _NAMED} more" if len(shown) > _NAMED else ""
    return ", ".join(shown[:_NAMED]) + more


def _read_object(path: Path) -> dict[str, Any]:
    try:
        values = json.loads(path.read_text("utf-8"))
    except ValueError as error:
        raise CheckpointError(f"{path}: {error}") from error
    if not isinstance(values, dict):
        raise CheckpointError(f"{path}: found a {type(values).__name__}, expected an object")
    return values
