"""Folders that `datasets.save_to_disk` wrote."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

from pydantic import Field
from typing_extensions import override

from launcher.contracts import DataOption, DataSplits
from launcher.data._tables.arrow_table import dataset_features, first_row, read_arrow
from launcher.data._tables.table import FileTable, Table, split, warn_of_leaks
from launcher.errors import DataError
from launcher.suggest import closest, did_you_mean

_STATE = "state.json"
_SPLITS = "dataset_dict.json"


class ArrowFolder(DataOption):
    """A folder that `datasets.save_to_disk` wrote, of one data set or of named splits.

    Only Arrow files are read, and no code. Numbers of classes become the names of the classes.
    """

    extra: ClassVar[str | None] = "data"

    path: str = Field(min_length=1)
    """The folder."""
    train_split: str = Field(min_length=1)
    """Split to train on, in a folder with named splits."""
    validation_split: str | None = Field(min_length=1)
    """Split to hold out, in a folder with named splits; null to hold out `validation_fraction` of
    the training split."""
    validation_fraction: float = Field(gt=0, lt=1)
    """Fraction of the records to hold out by a hash of their content, where no split is held
    out."""

    @override
    def preflight(self) -> None:
        for _ in self.peek():
            pass

    @override
    def peek(self) -> Iterator[tuple[str, Mapping[str, Any]]]:
        for folder in self._folders():
            yield from first_row(_files(folder)[0], parquet=False)

    @override
    def build(self) -> DataSplits:
        train, *held_out = map(_read, self._folders())
        if not held_out:
            return split(train, self.validation_fraction)
        warn_of_leaks(train, held_out[0])
        return DataSplits(train, held_out[0])

    def _folders(self) -> Sequence[Path]:
        """Return the folder to train on, and the one to hold out, if any."""
        folder = Path(self.path).expanduser()
        if not folder.is_dir():
            raise DataError(f"data.path: {folder}: there is no such folder")
        if (folder / _STATE).is_file():
            return [folder]
        if not (folder / _SPLITS).is_file():
            raise DataError(
                f"data.path: {folder}: has neither {_STATE} nor {_SPLITS}; give a folder that "
                "datasets.save_to_disk wrote, or use data=parquet for other files"
            )
        splits = sorted(each.parent.name for each in folder.glob(f"*/{_STATE}"))
        wanted = {"train_split": self.train_split, "validation_split": self.validation_split}
        for key, name in wanted.items():
            if name is not None and name not in splits:
                hint = did_you_mean(closest(name, splits))
                there_are = hint or f"; there are: {', '.join(splits) or 'none'}"
                raise DataError(f"data.{key}: {folder} has no split {name}{there_are}")
        return [folder / name for name in wanted.values() if name is not None]


def _files(folder: Path) -> list[Path]:
    """Return the Arrow files of a data set, in order."""
    path = folder / _STATE
    try:
        names = [each["filename"] for each in json.loads(path.read_text())["_data_files"]]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DataError(f"{path}: does not name the files of the data set: {error}") from error
    for name in names:
        # The folder may come from anywhere: it must not name files outside.
        if not isinstance(name, str) or Path(name).name != name or not (folder / name).is_file():
            raise DataError(f"{path}: names {name!r:.80}, which is no file in this folder")
    if not names:
        raise DataError(f"{path}: names no file")
    return [folder / name for name in names]


def _read(folder: Path) -> Table:
    classes = dataset_features(folder)
    tables: list[FileTable] = [read_arrow(path, classes or None) for path in _files(folder)]
    if not sum(len(table.hashes) for table in tables):
        raise DataError(f"{folder}: there is no record")
    return Table([table for table in tables if len(table.hashes)])
