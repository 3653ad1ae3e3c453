"""Check that the data has the columns that the task needs."""

from __future__ import annotations

from launcher.contracts import DataSplits, Task
from launcher.errors import DataError


def check_columns(splits: DataSplits, task: Task, *, task_kind: str, data_kind: str) -> None:
    """Refuse records that lack a column of the task.

    Raises:
        DataError: Names the source, its columns, and the missing ones.
    """
    parts = {"train": splits.train, "validation": splits.validation, "test": splits.test}
    for name, records in parts.items():
        if records is None:
            continue
        if missing := [column for column in task.columns if column not in records.columns]:
            raise DataError(
                f"task={task_kind} needs the columns {', '.join(task.columns)}, but the {name} "
                f"part of data={data_kind} has no {', '.join(missing)} (it has: "
                f"{', '.join(records.columns) or 'none'}); choose another data or task"
            )
