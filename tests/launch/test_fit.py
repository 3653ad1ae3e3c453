"""The search of accumulation=auto, the words it leaves, and the room that a machine has."""

from __future__ import annotations

from pathlib import Path

import pytest

from launcher.config.load import load_config
from launcher.errors import RankFailed
from launcher.launch._fit import decided_overrides, largest_fitting
from launcher.launch._memory import available_bytes, total_bytes

GIB = 2**30


@pytest.mark.parametrize("candidates", [[1], [1, 7], [1, 2, 4, 8, 16], list(range(1, 40))])
def test_the_largest_is_found_having_been_tried(candidates: list[int]) -> None:
    for limit in range(candidates[-1] + 2):
        tried: list[int] = []

        def fits(size: int, limit: int = limit, tried: list[int] = tried) -> bool:
            tried.append(size)
            return size <= limit

        found = largest_fitting(candidates, fits)
        assert found == max((size for size in candidates if size <= limit), default=None)
        assert len(tried) == len(set(tried)) <= 2 + len(candidates).bit_length()
        # The next larger one is known not to fit, and not supposed not to.
        larger = [size for size in candidates if size > (found or 0)]
        assert not larger or larger[0] in tried


def test_a_trial_that_fails_otherwise_ends_the_search() -> None:
    def fails(size: int) -> bool:
        raise RankFailed(f"a bug with {size}", 1)

    with pytest.raises(RankFailed, match="a bug with 4"):
        largest_fitting([1, 2, 4], fails)


DECIDED = [
    "accumulation=samples",
    "accumulation.micro_batch_size=2",
    "accumulation.samples_per_step=8",
]


def test_plain_overrides_compose_to_the_decision() -> None:
    typed = [
        "seed=3",
        "accumulation=auto",
        "accumulation.samples_per_step=8",
        "++accumulation.memory_limit_gib=2",
        "optimizer.lr=0.1",
    ]
    words = decided_overrides(typed, load_config(typed).provenance, DECIDED)
    assert words == ["seed=3", "optimizer.lr=0.1", *DECIDED]
    config = load_config(words).config
    assert config.model_dump(exclude={"accumulation"}) == load_config(typed).config.model_dump(
        exclude={"accumulation"}
    )


def test_what_a_recipe_sets_does_not_get_in_the_way(tmp_path: Path) -> None:
    (tmp_path / "mine.yaml").write_text(
        "defaults:\n  - config\n  - override accumulation: auto\n  - _self_\n"
        "accumulation:\n  samples_per_step: 8\n  memory_limit_gib: 2.0\n"
    )
    one = load_config([], "mine", [tmp_path])
    words = decided_overrides([], one.provenance, DECIDED)
    assert words == [*DECIDED, "~accumulation.memory_limit_gib"]
    option = load_config(words, "mine", [tmp_path]).config.accumulation
    assert option.model_dump() == {"kind": "samples", "micro_batch_size": 2, "samples_per_step": 8}


def machine(root: Path, cgroup: str, files: dict[str, str]) -> tuple[int, int]:
    """Bytes that are free, and all bytes, of a machine with these files."""
    texts = {
        "proc/meminfo": f"MemTotal: {16 * GIB // 1024} kB\nMemAvailable: {8 * GIB // 1024} kB\n",
        "proc/self/cgroup": cgroup,
        **{f"sys/fs/cgroup/{name}": text for name, text in files.items()},
    }
    for name, text in texts.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return available_bytes(root), total_bytes(root)


VERSION_2 = {
    "memory.max": f"{4 * GIB}\n",
    "memory.current": f"{3 * GIB}\n",
    "memory.stat": f"anon 1\ninactive_file {GIB}\n",
}
VERSION_1 = {
    "memory/job/memory.limit_in_bytes": f"{3 * GIB}\n",
    "memory/job/memory.usage_in_bytes": f"{GIB}\n",
    "memory/job/memory.stat": "total_inactive_file 0\n",
}


@pytest.mark.parametrize(
    ("cgroup", "files", "free", "total"),
    [
        ("", {}, 8, 16),
        ("0::/\n", VERSION_2, 2, 4),
        ("0::/\n", {**VERSION_2, "memory.max": "max\n"}, 8, 16),
        # The limit of a group above holds as well: a job's step is under its job.
        ("0::/job/step\n", VERSION_2, 2, 4),
        ("0::/job\n", {f"job/{name}": text for name, text in VERSION_2.items()}, 2, 4),
        ("5:cpu:/job\n4:memory:/job\n", VERSION_1, 2, 3),
        ("0::/\n", {"memory.max": f"{GIB}\n", "memory.current": f"{2 * GIB}\n"}, 0, 1),
    ],
)
def test_what_a_machine_has_is_what_its_control_groups_leave(
    tmp_path: Path, cgroup: str, files: dict[str, str], free: int, total: int
) -> None:
    assert machine(tmp_path, cgroup, files) == (free * GIB, total * GIB)
