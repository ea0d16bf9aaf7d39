"""The properties of Google's objects, and the fields that repeat them. Imports no SDK.

Source: "Objects", https://cloud.google.com/storage/docs/json_api/v1/objects. Holds and retention
belong to one version and are not repeated. Reading grants of single objects needs a permission that
few logins have, so a new version gets the bucket's default.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Mapping
from typing import Any

from sidecar.mounter.store.interface import Properties
from sidecar.mounter.store.object_properties import DISTINCT

_DEFAULT_TYPE = "application/octet-stream"
_KEY = "kmsKeyName"
_CLASS = "storageClass"
SHOWN = (
    "cacheControl",
    "contentDisposition",
    "contentEncoding",
    "contentLanguage",
    "contentType",
    "customTime",
    _KEY,
    _CLASS,
)
_KEY_VERSION = "/cryptoKeyVersions/"
_HEADERS = {
    "cacheControl": "cache-control",
    "contentDisposition": "content-disposition",
    "contentEncoding": "content-encoding",
    "contentLanguage": "content-language",
    "contentType": "content-type",
    "customTime": "x-goog-custom-time",
    _KEY: "x-goog-encryption-kms-key-name",
    _CLASS: "x-goog-storage-class",
}
"""In the XML API; "HTTP headers", https://cloud.google.com/storage/docs/xml-api/reference-headers."""
_METADATA = "x-goog-meta-"
_NAME = re.compile("[a-z0-9-]+")
_VALUE = re.compile("[!-~](?:[ -~]*[!-~])?")
"""Values that a header carries unchanged; names of headers have no case."""


def properties_in(item: Mapping[str, Any]) -> Properties:
    """From an object resource. Raises TypeError or ValueError if a value is not text."""
    return _shown(tuple(map(item.get, SHOWN)))


@functools.lru_cache(DISTINCT)
def _shown(values: tuple[str | None, ...]) -> Properties:
    found = {name: value for name, value in zip(SHOWN, values, strict=True) if value}
    "".join(found.values()).encode()  # raises unless all are texts
    if _KEY in found:  # responses name it with its version, requests without
        found[_KEY] = found[_KEY].partition(_KEY_VERSION)[0]
    return found


def fields_of(properties: Properties) -> dict[str, str]:
    """Fields of a resource that give a new object these properties."""
    return {name: value for name, value in properties.items() if name != _KEY}


def headers_of(properties: Properties, metadata: Mapping[str, str]) -> dict[str, str] | None:
    """Headers of the XML API that give a new object these. None if headers cannot carry them."""
    headers = {_HEADERS[name]: value for name, value in properties.items()}
    headers |= {_METADATA + name: value for name, value in metadata.items()}
    named = all(map(_NAME.fullmatch, metadata))
    return headers if named and all(map(_VALUE.fullmatch, headers.values())) else None


def content_type(properties: Properties) -> str:
    """For a header of the part with the content: some servers look for it there only."""
    said = properties.get("contentType", "")
    return said if said.isascii() and said.isprintable() and said else _DEFAULT_TYPE


def component_of(properties: Properties) -> Properties:
    """The properties of a component for an object with these properties."""
    return {name: value for name, value in properties.items() if name in {_KEY, _CLASS}}


def key_query(properties: Properties, name: str = _KEY) -> dict[str, str]:
    """The parameter of a request that names the encryption key of a new object."""
    return {name: properties[_KEY]} if _KEY in properties else {}
