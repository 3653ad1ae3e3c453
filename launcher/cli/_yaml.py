"""Write YAML that PyYAML and OmegaConf read back as the same values."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

import yaml
from typing_extensions import override


class _Dumper(yaml.SafeDumper):
    """Quotes text that OmegaConf reads as a number (`1e-3`), or that is not printable."""

    @override
    def ignore_aliases(self, data: Any) -> bool:
        # Equal lists would be written as `&id001` and `*id001`.
        return True

    @override
    def increase_indent(self, flow: bool = False, indentless: bool = False) -> None:
        super().increase_indent(flow=flow, indentless=False)

    def text(self, value: str) -> yaml.ScalarNode:
        """Represent a string, in double quotes if it is not printable."""
        # Other styles would lose line breaks and control characters.
        plain = value.isprintable()
        return self.represent_scalar("tag:yaml.org,2002:str", value, style=None if plain else '"')

    def sequence(self, values: Sequence[Any]) -> yaml.SequenceNode:
        """Represent a list, on one line if it has only scalars."""
        flat = not any(isinstance(value, dict | list) for value in values)
        return self.represent_sequence("tag:yaml.org,2002:seq", values, flow_style=flat)


_Dumper.add_representer(str, _Dumper.text)
_Dumper.add_representer(list, _Dumper.sequence)
# OmegaConf reads `1e-3` as a number, PyYAML as a string: such a string must be quoted.
_Dumper.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(
        r"[-+]?(\d[\d_]*\.?[\d_]*|\.\d[\d_]*)([eE][-+]?\d+)?\Z|[-+]?\.?(inf|nan)\Z", re.IGNORECASE
    ),
    list("-+.0123456789iInN"),
)


def to_yaml(values: Any) -> str:
    """Return JSON values as block YAML, in their order."""
    text: str = yaml.dump(values, Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=100)
    return text
