"""Fields of Kubernetes objects as plain values, each checked for its type when it is read.

An API server has checked the objects that it sends, but a file given to ``sidecar inject`` may hold
anything.
"""

from __future__ import annotations

from typing import Any, TypeAlias

from sidecar.errors import ManifestInvalid

JsonObject: TypeAlias = dict[str, Any]


def get_mapping(parent: JsonObject, key: str, where: str) -> JsonObject:
    """``parent[key]``, or an empty mapping if it is absent or null.

    Args:
        where: path to ``parent``, for the error.

    Raises:
        ManifestInvalid: it is something else.
    """
    value = parent.get(key)
    _check(value is None or isinstance(value, dict), key, where, "mapping")
    return {} if value is None else value


def get_mappings(parent: JsonObject, key: str, where: str) -> list[JsonObject]:
    """A list of mappings, empty if it is absent or null; else as :func:`get_mapping`."""
    value = [] if parent.get(key) is None else parent[key]
    is_right = isinstance(value, list) and all(isinstance(item, dict) for item in value)
    _check(is_right, key, where, "list of mappings")
    return value


def get_string(parent: JsonObject, key: str, where: str) -> str:
    """A string, empty if it is absent or null; else as :func:`get_mapping`."""
    value = parent.get(key)
    _check(value is None or isinstance(value, str), key, where, "string")
    return value or ""


def get_whole_number(parent: JsonObject, key: str, where: str) -> int | None:
    """A whole number from 0, or None if it is absent or null; else as :func:`get_mapping`."""
    value = parent.get(key)
    _check(value is None or (type(value) is int and value >= 0), key, where, "whole number from 0")
    return value


def _check(is_right: bool, key: str, where: str, kind: str) -> None:
    if not is_right:
        raise ManifestInvalid(f"{where}.{key}: must be a {kind}")
