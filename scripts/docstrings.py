"""Read the docstrings of options, for the tables in docs/."""

from __future__ import annotations

import inspect
import re

from launcher.contracts import Option


def source(option: Option) -> str:
    """Return the class's `Source:` on one line, with links to arXiv."""
    text = (inspect.getdoc(type(option)) or "").partition("Source:")[2]
    line = " ".join(text.partition("\n\n")[0].split()).rstrip(".")
    line = re.sub(r"arXiv:(\d+\.\d+)", r"[arXiv:\1](https://arxiv.org/abs/\1)", line)
    return line.replace("|", r"\|")
