"""Compare the columns of data with those that a task reads."""

from __future__ import annotations

from collections.abc import Sequence

from launcher.config.schema import RunConfig
from launcher.contracts import Column
from launcher.errors import DataError
from launcher.suggest import closest, did_you_mean


def check_first_records(config: RunConfig) -> None:
    """Raise DataError if the first record of a file lacks a column of the task, or its type."""
    columns = config.task.column_specs()
    if not columns:
        return
    for place, record in config.data.peek():
        for column in columns:
            if column.name not in record:
                raise missing_column(column, list(record), place)
            column.check(record[column.name], place)


def missing_column(column: Column, names: Sequence[str], place: str) -> DataError:
    """Return the error for records without a column that the task reads."""
    hint = did_you_mean(closest(column.name, names)).removeprefix("; ")
    there_are = f"there are {', '.join(names)}" if names else "there are none"
    return DataError(
        f"{place}: no column {column.name}, {there_are}; {hint or 'name the right one:'} "
        f"{column.key}=NAME"
    )
