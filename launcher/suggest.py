"""Suggest corrections of misspelt words, by edit distance."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

_SHOWN = 5
_PREFIX = 3


def edit_distance(a: str, b: str, limit: int) -> int:
    """Return the edit distance of two words, at most `limit + 1`.

    Source: optimal string alignment distance (Damerau 1964, without overlapping exchanges).
    """
    # Not difflib's ratio, which rates swapped letters like two errors.
    if abs(len(a) - len(b)) > limit:
        return limit + 1
    before: list[int] = []
    row = list(range(len(b) + 1))
    for i, left in enumerate(a, 1):
        before, last, row = row, before, [i]
        for j, right in enumerate(b, 1):
            cost = min(before[j] + 1, row[j - 1] + 1, before[j - 1] + (left != right))
            if i > 1 and j > 1 and left == b[j - 2] and a[i - 2] == right:
                cost = min(cost, last[j - 2] + 1)
            row.append(cost)
        if min(row) > limit:
            return limit + 1
    return min(row[-1], limit + 1)


def closest(word: str, options: Iterable[str], limit: int | None = None) -> list[str]:
    """Return the most similar options; otherwise those that begin or end with the word.

    Args:
        word: The word as typed; case, and `-` for `_`, do not matter.
        options: The valid words.
        limit: Largest edit distance; a third of the word's letters if None.
    """
    options = list(options)
    limit = max(1, len(word) // 3) if limit is None else limit
    found: dict[str, int] = {}
    for option in options:
        distance = edit_distance(_folded(word), _folded(option), limit)
        # A word of one wrong letter is not similar; one of two with a letter left out (`l`) is.
        if distance <= limit and distance < len(option):
            found[option] = distance
    if not found and len(word) >= _PREFIX:
        folded = _folded(word)
        return sorted(o for o in options if o.startswith(folded) or o.endswith(f"_{folded}"))
    best = min(found.values(), default=0)
    return sorted(option for option, distance in found.items() if distance == best)


def _folded(word: str) -> str:
    return word.lower().replace("-", "_")


def closest_keys(key: str, known: Iterable[str]) -> list[str]:
    """Return the dotted keys that are most similar to `key`."""
    # By typing errors in its parts, or a missing dot; then without one of its parts
    # (`optimizer.adamw.lr` finds `optimizer.lr`); then by its end (`lr`).
    known = list(known)
    parts = key.split(".")
    similar = [k for k in known if _similar(parts, k.split(".")) or edit_distance(key, k, 1) == 1]
    if found := closest(key, similar, len(key)):
        return found
    shorter = {".".join(parts[:i] + parts[i + 1 :]) for i in range(len(parts) - 1)}
    if found := sorted(shorter & set(known)):
        return found
    # `optimizer.no_decay` finds `optimizer.groups.no_decay`.
    longer = [k for k in known if _without_one(k.split("."), parts)]
    if longer and len(parts) > 1:
        return sorted(longer)
    ends = [k for k in known if k.split(".")[-len(parts) :] == parts]
    if ends:
        return sorted(ends)
    by_end: dict[str, list[str]] = {}
    for k in known:
        end = k.split(".")[-len(parts) :]
        if _similar(parts, end):
            by_end.setdefault(".".join(end), []).append(k)
    return sorted(k for end in closest(key, by_end, len(key)) for k in by_end[end])


def _without_one(longer: Sequence[str], parts: Sequence[str]) -> bool:
    return any([*longer[:i], *longer[i + 1 :]] == [*parts] for i in range(len(longer)))


def _similar(parts: Sequence[str], others: Sequence[str]) -> bool:
    return len(parts) == len(others) and all(
        part == other or closest(part, [other]) for part, other in zip(parts, others, strict=True)
    )


def did_you_mean(found: Sequence[str]) -> str:
    """Return `; did you mean 'x' or 'y'?` for the end of a message; "" if nothing was found."""
    if not found:
        return ""
    shown = [repr(word) for word in found[:_SHOWN]]
    return f"; did you mean {' or '.join(filter(None, [', '.join(shown[:-1]), shown[-1]]))}?"
