"""Source text of Python's standard library, which every machine has."""

from __future__ import annotations

from pydantic import Field
from typing_extensions import override

from launcher.contracts import DataOption, DataSplits
from launcher.data._files import FilePart, TextRecords, is_held_out, scan_file
from launcher.data._stdlib import names, no_source, root


class StandardLibrary(DataOption):
    """The source text of this Python's standard library without tests, about 11 MB.

    The files, their order and the split are the same on every machine with a complete installation
    of the same Python version.
    """

    validation_fraction: float = Field(gt=0, lt=1)
    """Share of the files that are held out, by a hash of their path."""

    @override
    def preflight(self) -> None:
        if not any(root().glob("*.py")):
            raise no_source()

    @override
    def build(self) -> DataSplits:
        folder = root()
        splits: dict[bool, list[FilePart]] = {True: [], False: []}
        for name in sorted(names(folder)):
            found = scan_file(folder / name, label=name)
            # An __init__.py may be empty; the rest is UTF-8 by Python's rules.
            if isinstance(found, FilePart):
                splits[is_held_out(name, self.validation_fraction)].append(found)
        if not splits[False]:
            raise no_source()
        return DataSplits(train=TextRecords(splits[False]), validation=TextRecords(splits[True]))
