"""The properties of blobs, and the headers that repeat them. Imports no SDK.

Source: "Put Blob", "Put Block List", "Copy Blob", "List Blobs", "Get Blob Properties",
https://learn.microsoft.com/rest/api/storageservices/. Holds and immutability policies belong to
one version and are not repeated.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping

from sidecar.mounter.store.interface import Properties
from sidecar.mounter.store.object_properties import DISTINCT, Group, Repeated

TAGS, _TIER, _ENCRYPTION = "tags", "access tier", "encryption"
TAG_COUNT = "x-ms-tag-count"
_ACCESS_TIER = "x-ms-access-tier"
_SCOPE = "x-ms-encryption-scope"
_LISTED = {
    "Cache-Control": "x-ms-blob-cache-control",
    "Content-Disposition": "x-ms-blob-content-disposition",
    "Content-Encoding": "x-ms-blob-content-encoding",
    "Content-Language": "x-ms-blob-content-language",
    "Content-Type": "x-ms-blob-content-type",
    "AccessTier": _ACCESS_TIER,
    "EncryptionScope": _SCOPE,
    "TagCount": TAG_COUNT,
}
_HEADERS = (
    *(name.removeprefix("x-ms-blob-") for name in _LISTED.values()),
    "x-ms-access-tier-inferred",
)
_CONTENT = frozenset(name for name in _LISTED.values() if name.startswith("x-ms-blob-"))
_TYPE = "x-ms-blob-content-type"
_DEFAULT_TYPE = "application/octet-stream"
_UNREADABLE_TIER = "Archive"


def listed_properties(fields: Mapping[str, str], namespace: str) -> Properties:
    """From the properties of a blob in a listing, by their tags."""
    return _chosen(tuple(map(fields.get, _tags_of(namespace))))


@functools.lru_cache(4)
def _tags_of(namespace: str) -> tuple[str, ...]:
    return tuple(f"{namespace}{name}" for name in (*_LISTED, "AccessTierInferred"))


def properties_in(fields: Mapping[str, str]) -> Properties:
    """From the headers of a response about a blob."""
    return _chosen(tuple(map(fields.get, _HEADERS)))


@functools.lru_cache(DISTINCT)
def _chosen(values: tuple[str | None, ...]) -> Properties:
    """The properties that a new blob would not have anyway.

    Args:
        values: in the order of ``_LISTED``, and whether the tier is inferred.
    """
    *said, inferred = values
    found = {name: value for name, value in zip(_LISTED.values(), said, strict=True) if value}
    if found.get(_TYPE) == _DEFAULT_TYPE:
        del found[_TYPE]
    if inferred == "true":
        found.pop(_ACCESS_TIER, None)
    if found.get(TAG_COUNT) == "0":
        del found[TAG_COUNT]
    return found


def repeated(properties: Properties, tags: str) -> Repeated:
    """For a new blob.

    Args:
        tags: as ``x-ms-tags`` has them; empty for none.
    """
    plain = {name: value for name, value in properties.items() if name in _CONTENT}
    copied = repeated_by_copy(properties, tags)
    return Repeated(plain, {**copied.groups, **scope_of(properties).groups})


def repeated_by_copy(properties: Properties, tags: str) -> Repeated:
    """For Copy Blob, which copies content headers; the scope is the container's then."""
    groups: dict[str, Group] = {}
    if tags:
        groups[TAGS] = Group({"x-ms-tags": tags})
    if properties.get(_ACCESS_TIER, _UNREADABLE_TIER) != _UNREADABLE_TIER:
        groups[_TIER] = Group({_ACCESS_TIER: properties[_ACCESS_TIER]})
    return Repeated({}, groups)


def scope_of(properties: Properties) -> Repeated:
    """For a block of a blob with these properties."""
    scope = properties.get(_SCOPE)
    return Repeated({}, {_ENCRYPTION: Group({_SCOPE: scope})} if scope else {})
