"""YAML that reads back as the values it was made from, by YAML 1.1's rules and by OmegaConf's."""

from __future__ import annotations

import re
from typing import Any

import yaml
from typing_extensions import override


class _Dumper(yaml.SafeDumper):
    """Quotes what looks like a number to OmegaConf (`1e-3`) but is text; indents lists."""

    @override
    def increase_indent(self, flow: bool = False, indentless: bool = False) -> None:
        del indentless
        super().increase_indent(flow=flow, indentless=False)


_Dumper.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(
        r"[-+]?(\d[\d_]*\.?[\d_]*|\.\d[\d_]*)([eE][-+]?\d+)?|[-+]?\.?(inf|nan)", re.IGNORECASE
    ),
    list("-+.0123456789iInN"),
)


def to_yaml(values: Any) -> str:
    """Values as block YAML in the order they have; short lists stay on one line."""
    return yaml.dump(
        values,
        Dumper=_Dumper,
        sort_keys=False,
        allow_unicode=True,
        default_flow_style=False,
        width=100,
    )
