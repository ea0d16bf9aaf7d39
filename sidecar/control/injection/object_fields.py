"""Kubernetes objects as plain values: the parts that are read must have the right shape.

An API server has checked the shape of what it sends; a file given to ``sidecar inject`` may
hold anything.
"""

from __future__ import annotations

from typing import Any, TypeAlias

from sidecar.errors import ManifestInvalid

Json: TypeAlias = dict[str, Any]


def mapping(parent: Json, key: str, where: str) -> Json:
    """``parent[key]``, or an empty mapping where it is absent or null.

    Raises:
        ManifestInvalid: it is something else; ``where`` is the path to ``parent``.
    """
    value = parent.get(key)
    if value is None:
        return {}
    if not isinstance(value, dict):
        raise ManifestInvalid(f"{where}.{key}: must be a mapping")
    return value


def mappings(parent: Json, key: str, where: str) -> list[Json]:
    """``parent[key]`` as a list of mappings, or an empty list where it is absent or null.

    Raises:
        ManifestInvalid: it is something else; ``where`` is the path to ``parent``.
    """
    value = parent.get(key)
    if value is None:
        return []
    if not isinstance(value, list) or not all(isinstance(item, dict) for item in value):
        raise ManifestInvalid(f"{where}.{key}: must be a list of mappings")
    return value


def text(parent: Json, key: str, where: str) -> str:
    """``parent[key]``, or an empty string where it is absent or null.

    Raises:
        ManifestInvalid: it is something else; ``where`` is the path to ``parent``.
    """
    value = parent.get(key)
    if value is None:
        return ""
    if not isinstance(value, str):
        raise ManifestInvalid(f"{where}.{key}: must be a string")
    return value


def number(parent: Json, key: str, where: str) -> int | None:
    """``parent[key]`` as a whole number, or None where it is absent or null.

    Raises:
        ManifestInvalid: it is something else, or negative; ``where`` is the path to ``parent``.
    """
    value = parent.get(key)
    if value is None:
        return None
    if not isinstance(value, int) or isinstance(value, bool) or value < 0:
        raise ManifestInvalid(f"{where}.{key}: must be a whole number from 0")
    return value
