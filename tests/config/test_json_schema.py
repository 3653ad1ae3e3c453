from __future__ import annotations

import json
from typing import Any

from launcher.config.schema import RunConfig, json_schema
from launcher.contracts import GROUPS
from launcher.registry import kinds


def references(schema: Any) -> set[str]:
    if isinstance(schema, dict):
        own = {schema["$ref"]} if "$ref" in schema else set()
        return own.union(*map(references, schema.values()))
    if isinstance(schema, list):
        return set().union(*map(references, schema))
    return set()


def test_it_is_json_and_complete() -> None:
    schema = json.loads(json.dumps(json_schema()))
    assert set(schema["properties"]) == set(RunConfig.model_fields) == set(schema["required"])
    assert schema["additionalProperties"] is False
    names = {f"#/$defs/{name}" for name in schema["$defs"]}
    assert references(schema) <= names


def test_each_group_is_a_union_by_kind() -> None:
    schema = json_schema()
    for group in GROUPS:
        union = schema["properties"][group]
        mapping = union["discriminator"]["mapping"]
        assert tuple(sorted(mapping)) == kinds(group)
        assert [one["$ref"] for one in union["oneOf"]] == list(mapping.values())
        for kind, reference in mapping.items():
            definition = schema["$defs"][reference.removeprefix("#/$defs/")]
            assert definition["properties"]["kind"]["const"] == kind
            assert definition["additionalProperties"] is False
            assert '"default":' not in json.dumps(definition["properties"])


def test_every_field_is_documented() -> None:
    for name, definition in json_schema()["$defs"].items():
        for key, field in definition.get("properties", {}).items():
            assert key == "kind" or field.get("description"), f"{name}.{key} has no docstring"
