"""Writes docs/schedules.md: `python scripts/schedules_table.py`.

One row per preset of conf/scheduler: its shape over a run, description and source.
"""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from launcher.cli._presets import presets, summary
from launcher.config import derive
from launcher.config.load import load_config
from launcher.config.schema import RunConfig
from scripts.docstrings import source

PAGE = Path(__file__).resolve().parents[1] / "docs" / "schedules.md"
COMMAND = "python scripts/schedules_table.py"
STEPS, WIDTH = 1200, 24
LEVELS = "▁▂▃▄▅▆▇█"
HEAD = f"""\
# Schedules

`{COMMAND}` writes this page. A *shape* is the learning rate of the preset
over a whole run; `trainctl lr scheduler=NAME` draws it for your run, and
`trainctl list scheduler.KIND` explains its settings. Schedules that depend on a score are drawn
without one.

Conventions are those of Transformers and torch, off-by-ones included: the tests compare every
schedule with their values, to 1e-12. A step whose update is skipped (loss or gradients not finite,
loss scale overflowed) counts as a step. A length is in steps, or a fraction (`5%`), or has a unit:
`2 epochs`, `10k samples`, `1B tokens`. Each kind but `adafactor` starts with a warm-up over
`warmup_steps`, which rises as the power `warmup_power`.

| preset | kind | shape | description | source |
|---|---|---|---|---|
"""


def shape(config: RunConfig) -> str:
    """The learning rate over the run, in blocks; its highest is a full one."""
    schedule = derive.schedule(config, derive.horizon(config, num_samples=10**6))
    rates = [schedule.lr(step, {}) for step in range(STEPS)]
    known = [rate for rate in rates if rate is not None]
    if not known or config.scheduler.kind == "adafactor":
        return "the optimizer's own"
    top, wide = max(known), STEPS // WIDTH
    means = [sum(known[start : start + wide]) / wide for start in range(0, STEPS, wide)]
    return f"`{''.join(LEVELS[round(mean / top * (len(LEVELS) - 1))] for mean in means)}`"


def row(preset: str, path: Path) -> str:
    """A preset's line of the table."""
    optimizer = "adafactor" if preset == "adafactor" else "adamw"
    words = [f"optimizer={optimizer}", f"scheduler={preset}", f"max_steps={STEPS}"]
    config = load_config(words).config
    cells = [preset, config.scheduler.kind, shape(config), summary(path), source(config.scheduler)]
    return f"| {' | '.join(cells)} |\n"


def page() -> str:
    """The whole page."""
    return HEAD + "".join(row(preset, path) for preset, path in presets("scheduler").items())


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
