"""JSON Patch (RFC 6902), the form in which an admission server answers. Knows no pods."""

from __future__ import annotations

from sidecar.control.injection.object_fields import JsonObject


def difference(before: JsonObject, after: JsonObject, path: str = "") -> list[JsonObject]:
    """The operations that turn ``before`` into ``after``.

    Mappings are compared key by key. A list or a value that differs is replaced as a whole.
    """
    operations: list[JsonObject] = [
        {"op": "remove", "path": f"{path}/{_escaped(key)}"} for key in before if key not in after
    ]
    for key, value in after.items():
        place = f"{path}/{_escaped(key)}"
        if key not in before:
            operations.append({"op": "add", "path": place, "value": value})
        elif isinstance(value, dict) and isinstance(before[key], dict):
            operations += difference(before[key], value, place)
        elif value != before[key]:
            operations.append({"op": "replace", "path": place, "value": value})
    return operations


def _escaped(key: str) -> str:
    return key.replace("~", "~0").replace("/", "~1")
