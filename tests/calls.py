"""Generates calls from the schemas that the list of tools shows, which keep to a small part of JSON Schema."""

from typing import Any

from hypothesis import strategies as st

JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**53), 2**53) | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda parts: st.lists(parts, max_size=3) | st.dictionaries(st.text(max_size=8), parts, max_size=3),
    max_leaves=6,
)
INTEGER_MAX = 2**53 - 1


def fitting(schema: dict[str, Any]) -> st.SearchStrategy[Any]:
    """Values that a listed schema allows."""
    match schema["type"]:
        case "string" if "enum" in schema:
            return st.sampled_from(schema["enum"])
        case "string" if "pattern" in schema:
            return st.from_regex(schema["pattern"], fullmatch=True)
        case "string":
            text = st.characters(exclude_categories=["Cs"], exclude_characters="\0")
            return st.text(text, min_size=schema.get("minLength", 0), max_size=min(schema.get("maxLength", 40), 40))
        case "integer":
            return st.integers(schema.get("minimum", -INTEGER_MAX), schema.get("maximum", INTEGER_MAX))
        case "number":
            return st.floats(schema["minimum"], schema["maximum"])
        case "boolean":
            return st.booleans()
        case "array":
            most = min(schema["maxItems"], 4)
            return st.lists(fitting(schema["items"]), min_size=schema.get("minItems", 0), max_size=most)
        case "object":
            return _object(schema)
        case other:
            raise AssertionError(f"no listed schema has the type {other}")


def _object(schema: dict[str, Any]) -> st.SearchStrategy[dict[str, Any]]:
    required = schema.get("required", ())
    listed = {name: fitting(part) for name, part in schema["properties"].items()}
    named = st.fixed_dictionaries(
        {name: values for name, values in listed.items() if name in required},
        optional={name: values for name, values in listed.items() if name not in required},
    )
    if schema.get("additionalProperties") is False:
        return named
    others = st.dictionaries(st.text(max_size=8), JSON, max_size=2)

    def joined(pair: tuple[dict[str, Any], dict[str, Any]]) -> dict[str, Any]:
        return pair[0] | pair[1]

    return st.tuples(others, named).map(joined)
