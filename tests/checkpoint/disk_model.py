"""A model of a disk: what may remain of recorded writes after a power cut."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from typing_extensions import Buffer, override

from launcher.checkpoint._storage import Storage


@dataclass
class Disk:
    """Files and folders by number, whatever their names are at the moment; 0 is the root."""

    folders: dict[int, dict[str, int]] = field(default_factory=lambda: {0: {}})
    files: dict[int, bytes] = field(default_factory=dict)
    numbers: Iterator[int] = field(default_factory=lambda: itertools.count(1))

    def read(self, path: Path, number: int = 0) -> None:
        """Take over what lies below a path."""
        for entry in path.iterdir():
            child = next(self.numbers)
            self.folders[number][entry.name] = child
            if entry.is_dir():
                self.folders[child] = {}
                self.read(entry, child)
            else:
                self.files[child] = entry.read_bytes()

    def find(self, *parts: str) -> int:
        number = 0
        for part in parts:
            number = self.folders[number][part]
        return number


@dataclass(frozen=True)
class Change:
    """An entry of a folder that came or went; a rename is both."""

    folder: int
    gone: str | None = None
    come: tuple[str, int] | None = None

    def apply(self, folders: dict[int, dict[str, int]]) -> None:
        entries = folders.setdefault(self.folder, {})
        if self.gone is not None:
            entries.pop(self.gone, None)
        if self.come is not None:
            entries[self.come[0]] = self.come[1]


@dataclass(frozen=True)
class Moment:
    """The changes so far, and those that are certain to survive a power cut.

    Attributes:
        after: The last action.
        changes: How many changes of folders were made.
        durable: Which of them were synced.
        written: Bytes written to each new file.
        synced: Bytes of it that were synced.
    """

    after: str
    changes: int
    durable: frozenset[int]
    written: dict[int, int]
    synced: dict[int, int]


class Tape(Storage):
    """Records what a save does below `root`."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.start = Disk()
        self.start.read(root)
        self.disk = Disk(numbers=self.start.numbers)
        self.disk.folders = {number: dict(names) for number, names in self.start.folders.items()}
        self.disk.files = dict(self.start.files)
        self.changes: list[Change] = []
        self.durable: frozenset[int] = frozenset()
        self.written: dict[int, int] = {}
        self.synced: dict[int, int] = {}
        self.moments = [self.moment("nothing")]

    def moment(self, after: str) -> Moment:
        done = len(self.changes)
        return Moment(after, done, self.durable, dict(self.written), dict(self.synced))

    def number(self, path: Path) -> int:
        return self.disk.find(*path.relative_to(self.root).parts)

    def change(self, path: Path, change: Change) -> None:
        change.apply(self.disk.folders)
        self.changes.append(change)
        self.moments.append(self.moment(f"{change} {path.name}"))

    @override
    def mkdir(self, path: Path) -> None:
        super().mkdir(path)
        number = next(self.disk.numbers)
        self.disk.folders[number] = {}
        self.change(path, Change(self.number(path.parent), come=(path.name, number)))

    @override
    def create(self, path: Path) -> int:
        descriptor = super().create(path)
        number = next(self.disk.numbers)
        self.disk.files[number] = b""
        self.written[number] = self.synced[number] = 0
        self.change(path, Change(self.number(path.parent), come=(path.name, number)))
        return descriptor

    @override
    def write(self, descriptor: int, path: Path, data: Buffer) -> int:
        count = super().write(descriptor, path, data)
        number = self.number(path)
        self.disk.files[number] += bytes(memoryview(data)[:count])
        self.written[number] += count
        self.moments.append(self.moment(f"write {path.name}"))
        return count

    @override
    def fsync(self, descriptor: int, path: Path) -> None:
        super().fsync(descriptor, path)
        number = self.number(path)
        self.synced[number] = self.written[number]
        self.moments.append(self.moment(f"fsync {path.name}"))

    @override
    def fsync_folder(self, path: Path) -> None:
        super().fsync_folder(path)
        number = self.number(path)
        changed = enumerate(self.changes)
        self.durable |= {place for place, change in changed if change.folder == number}
        self.moments.append(self.moment(f"fsync_folder {path.name}"))

    @override
    def rename(self, old: Path, new: Path) -> None:
        assert old.parent == new.parent
        number = self.number(old)
        super().rename(old, new)
        self.change(old, Change(self.number(old.parent), old.name, (new.name, number)))

    @override
    def unlink(self, path: Path) -> None:
        super().unlink(path)
        self.change(path, Change(self.number(path.parent), gone=path.name))

    @override
    def rmdir(self, path: Path) -> None:
        super().rmdir(path)
        self.change(path, Change(self.number(path.parent), gone=path.name))


def survivors(moment: Moment) -> Iterator[frozenset[int]]:
    """Sets of changes that may be on the disk: every certain one, and of the others some."""
    pending = [place for place in range(moment.changes) if place not in moment.durable]
    choices = [(), tuple(pending)]
    for number, place in enumerate(pending):
        choices.append((place,))
        choices.append(tuple(pending[: number + 1]))
        choices.append(tuple(pending[:number] + pending[number + 1 :]))
    yield from {moment.durable | frozenset(choice) for choice in choices}


Image = frozenset[tuple[str, bytes | None]]


def image(tape: Tape, moment: Moment, kept: frozenset[int], share: float) -> Image:
    """Return the disk when some changes survive, and a share of the bytes that were not synced."""
    folders = {number: dict(names) for number, names in tape.start.folders.items()}
    for place in sorted(kept):
        tape.changes[place].apply(folders)

    def walk(number: int, path: str) -> Iterator[tuple[str, bytes | None]]:
        if number in tape.disk.files:
            synced = moment.synced.get(number, len(tape.disk.files[number]))
            written = moment.written.get(number, synced)
            yield path, tape.disk.files[number][: synced + int(share * (written - synced))]
            return
        yield path, None
        for name, child in folders.get(number, {}).items():
            yield from walk(child, f"{path}/{name}")

    return frozenset(walk(0, "."))


def write_image(image: Image, root: Path) -> None:
    for name, data in sorted(image, key=lambda entry: entry[0]):
        if data is None:
            (root / name).mkdir()
        else:
            (root / name).write_bytes(data)
