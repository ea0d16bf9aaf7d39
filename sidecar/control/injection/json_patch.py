"""JSON Patch (RFC 6902), the form in which an admission server answers."""

from __future__ import annotations

from sidecar.control.injection.object_fields import JsonObject


def difference(
    before: JsonObject, after: JsonObject, keys: tuple[str, ...] = ()
) -> list[JsonObject]:
    """The operations that turn ``before`` into ``after``.

    Mappings are compared key by key. A list or a value that differs is replaced as a whole.

    Args:
        keys: the path to both values.
    """
    operations: list[JsonObject] = [
        {"op": "remove", "path": _pointer(*keys, key)} for key in before if key not in after
    ]
    for key, value in after.items():
        if key not in before:
            operations.append({"op": "add", "path": _pointer(*keys, key), "value": value})
        elif value is before[key]:
            continue
        elif isinstance(value, dict) and isinstance(before[key], dict):
            operations += difference(before[key], value, (*keys, key))
        elif value != before[key]:
            operations.append({"op": "replace", "path": _pointer(*keys, key), "value": value})
    return operations


def _pointer(*keys: str) -> str:
    """A JSON Pointer (RFC 6901). Only for differences: a key may be as long as the document."""
    return "".join("/" + key.replace("~", "~0").replace("/", "~1") for key in keys)
