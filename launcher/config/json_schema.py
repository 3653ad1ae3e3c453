"""JSON schema of a resolved config: a group is a union over its kinds, discriminated by `kind`."""

from __future__ import annotations

from typing import Any

from pydantic.json_schema import models_json_schema

from launcher.config.schema import RunConfig
from launcher.contracts import GROUPS
from launcher.registry import kinds, option_class


def json_schema() -> dict[str, Any]:
    """The schema, in JSON Schema 2020-12; editors complete and check config.json with it."""
    options = {
        (group, kind): option_class(group, kind) for group in GROUPS for kind in kinds(group)
    }
    by_class, shared = models_json_schema(
        [(cls, "validation") for cls in dict.fromkeys(options.values())]
    )
    schema = RunConfig.model_json_schema()
    definitions = {**schema.get("$defs", {}), **shared["$defs"]}
    for group in GROUPS:
        mapping = {}
        for kind in kinds(group):
            cls = options[group, kind]
            reference = by_class[cls, "validation"]["$ref"]
            definition = definitions[reference.rpartition("/")[2]]
            # `kind` is the module's name, whether or not the class says so in its own annotation.
            definition["properties"]["kind"] |= {"const": kind}
            mapping[kind] = reference
        schema["properties"][group] = {
            "description": RunConfig.model_fields[group].description,
            "oneOf": [{"$ref": reference} for reference in mapping.values()],
            "discriminator": {"propertyName": "kind", "mapping": mapping},
        }
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        **schema,
        "$defs": definitions,
    }
