"""Records a run as the picture that the README shows: `python scripts/record.py [WORDS]`.

The words go to `trainctl run`. The middle of a long run is left out, and said to be.
"""

from __future__ import annotations

import re
import subprocess
import sys
import tempfile
from pathlib import Path

from rich.console import Console
from rich.text import Text

PICTURE = Path(__file__).resolve().parents[1] / "docs" / "run.svg"
SHOWN = 8
"""Logged steps that are shown at the start, and as many at the end."""


def main() -> None:
    """Run, and draw what was printed."""
    words = ["run", *sys.argv[1:]]
    with tempfile.TemporaryDirectory() as folder:
        done = subprocess.run(
            [sys.executable, "-m", "launcher", *words],
            cwd=folder,
            capture_output=True,
            text=True,
            check=True,
        )
    lines = done.stdout.replace(folder, "~").splitlines()
    steps = [number for number, line in enumerate(lines) if line.startswith("step ")]
    if len(steps) > 2 * SHOWN:
        left_out = slice(steps[SHOWN], steps[-SHOWN])
        lines[left_out] = ["⋮"]
    console = Console(record=True, width=100, file=sys.stderr)
    console.print(Text(f"$ trainctl {' '.join(words)}", style="bold"))
    for line in lines:
        style = "cyan" if "eval_" in line else "dim" if line.startswith("train longer") else ""
        console.print(Text(line, style=style))
    PICTURE.parent.mkdir(exist_ok=True)
    # The reader's own monospace font will do: a picture must not load anything from elsewhere.
    picture = re.sub(
        r"@font-face \{.*?\}", "", console.export_svg(title="trainctl"), flags=re.DOTALL
    )
    PICTURE.write_text(picture, encoding="utf-8")


if __name__ == "__main__":
    main()
