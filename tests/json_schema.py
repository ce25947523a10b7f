"""Check a value against the part of JSON Schema (2020-12) that this repository's schemas use; an unknown word is an error."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

TYPES: dict[str, tuple[type, ...]] = {
    "object": (dict,),
    "array": (list,),
    "string": (str,),
    "number": (int, float),
    "integer": (int,),
    "boolean": (bool,),
    "null": (type(None),),
}
WORDS = {
    "$schema",
    "$defs",
    "title",
    "description",
    "$ref",
    "oneOf",
    "anyOf",
    "type",
    "const",
    "enum",
    "minimum",
    "maximum",
}
WORDS |= {"required", "properties", "additionalProperties", "items"}


def violations(value: Any, schema: Mapping[str, Any], root: Mapping[str, Any], path: str = "$") -> Iterator[str]:
    """Yield where and how ``value`` departs from ``schema``, whose references are into ``root``."""
    assert set(schema) <= WORDS, f"words that this checker does not know: {set(schema) - WORDS}"
    if "$ref" in schema:
        yield from violations(value, root["$defs"][schema["$ref"].removeprefix("#/$defs/")], root, path)
    for word, wanted in (("oneOf", 1), ("anyOf", None)):
        if word in schema:
            fitting = sum(not list(violations(value, option, root, path)) for option in schema[word])
            if fitting != wanted if wanted else not fitting:
                yield f"{path}: fits {fitting} of {word}"
    if "type" in schema:
        names = [schema["type"]] if isinstance(schema["type"], str) else schema["type"]
        if not any(isinstance(value, TYPES[n]) and (n == "boolean" or not isinstance(value, bool)) for n in names):
            yield f"{path}: {value!r:.60} is no {names}"
            return
    if "const" in schema and value != schema["const"]:
        yield f"{path}: {value!r:.60} is not {schema['const']!r}"
    if "enum" in schema and value not in schema["enum"]:
        yield f"{path}: {value!r:.60} is none of {schema['enum']}"
    if isinstance(value, int | float) and not schema.get("minimum", value) <= value <= schema.get("maximum", value):
        yield f"{path}: {value} is out of range"
    if isinstance(value, dict):
        yield from (f"{path}: {name} is missing" for name in schema.get("required", []) if name not in value)
        for name, item in value.items():
            further = schema.get("properties", {}).get(name, schema.get("additionalProperties", {}))
            if further is False:
                yield f"{path}: {name} is not foreseen"
            else:
                yield from violations(item, further, root, f"{path}.{name}")
    if isinstance(value, list):
        for index, item in enumerate(value):
            yield from violations(item, schema.get("items", {}), root, f"{path}[{index}]")
