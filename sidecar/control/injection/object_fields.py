"""Fields of Kubernetes objects as plain values, each checked for its type where it is read.

An API server has checked the objects that it sends. A file given to ``sidecar inject`` may hold
anything. What a field means is decided elsewhere.
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
    if value is None:
        return {}
    if not isinstance(value, dict):
        raise ManifestInvalid(f"{where}.{key}: must be a mapping")
    return value


def get_mappings(parent: JsonObject, key: str, where: str) -> list[JsonObject]:
    """``parent[key]`` as a list of mappings, or an empty list if it is absent or null.

    Args:
        where: path to ``parent``, for the error.

    Raises:
        ManifestInvalid: it is something else.
    """
    value = parent.get(key)
    if value is None:
        return []
    if not isinstance(value, list) or not all(isinstance(item, dict) for item in value):
        raise ManifestInvalid(f"{where}.{key}: must be a list of mappings")
    return value


def get_string(parent: JsonObject, key: str, where: str) -> str:
    """``parent[key]``, or an empty string if it is absent or null.

    Args:
        where: path to ``parent``, for the error.

    Raises:
        ManifestInvalid: it is something else.
    """
    value = parent.get(key)
    if value is None:
        return ""
    if not isinstance(value, str):
        raise ManifestInvalid(f"{where}.{key}: must be a string")
    return value


def get_whole_number(parent: JsonObject, key: str, where: str) -> int | None:
    """``parent[key]`` as a whole number from 0, or None if it is absent or null.

    Args:
        where: path to ``parent``, for the error.

    Raises:
        ManifestInvalid: it is something else.
    """
    value = parent.get(key)
    if value is None:
        return None
    if not isinstance(value, int) or isinstance(value, bool) or value < 0:
        raise ManifestInvalid(f"{where}.{key}: must be a whole number from 0")
    return value
