"""RFC 6902: what an admission server answers with."""

from __future__ import annotations

from sidecar.control.injection.object_fields import Json


def difference(before: Json, after: Json, path: str = "") -> list[Json]:
    """The operations that turn ``before`` into ``after``.

    Mappings are gone through; a list or a value that changed is replaced whole.
    """
    operations: list[Json] = [
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
