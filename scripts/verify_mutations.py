"""Mutation score of `trainctl verify`: plants defects in our engines, and counts those it finds.

    python scripts/verify_mutations.py          # all of them, and the runs without a defect

Exits with 1 if a defect is missed beyond one in forty, or a run without a defect is called
different.
"""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from launcher.verify.compare import Difference
from tests.verify import mutations


def main() -> int:
    """Print the list and the score."""
    planted = [(mutation.changes, name) for name, mutation in mutations.MUTATIONS.items()]
    sound = [(changes, None) for changes in mutations.SOUND]
    references = mutations.references_of([changes for changes, _ in [*planted, *sound]])
    missed = crashed = 0
    for (_, name), found in zip(planted, mutations.judged(planted, references), strict=True):
        missed += found is None
        crashed += isinstance(found, str)
        print(f"{_word(found, 'MISSED', 'found')}  {name}: {_text(found)}")
    alarms = 0
    for (changes, _), found in zip(sound, mutations.judged(sound, references), strict=True):
        alarms += found is not None
        words = ", ".join(f"{key}={value}" for key, value in changes.items())
        print(f"{_word(found, 'equal', 'ALARM')}  {words}: {_text(found)}")
    total = len(planted)
    # A crash shows nothing: the defect may have been planted in the wrong place.
    caught = total - missed - crashed
    print(f"{caught} of {total} planted defects found ({crashed} crashed)")
    print(f"{alarms} false alarms in {len(sound)} runs without a defect")
    return int(caught < total - total // 40 or alarms > 0)


def _word(found: Difference | str | None, nothing: str, something: str) -> str:
    if found is None:
        return f"{nothing:7}"
    return f"{'crashed' if isinstance(found, str) else something:7}"


def _text(found: Difference | str | None) -> str:
    if found is None:
        return "equal"
    return found if isinstance(found, str) else f"step {found.step}: {found.text}"


if __name__ == "__main__":
    sys.exit(main())
