"""The Content-Type of a new object, by the ending of its name."""

from __future__ import annotations

import mimetypes
import re
from typing import Final

# Only the standard library's types: /etc/mime.types differs from image to image.
_TYPES: Final = mimetypes.MimeTypes().types_map[True]
_COMPRESSED: Final = {
    ".bz2": "application/x-bzip2",
    ".gz": "application/gzip",
    ".xz": "application/x-xz",
    ".zst": "application/zstd",
}
"""The library calls these encodings. As a Content-Encoding they would make clients unpack."""
_TEMPORARY: Final = re.compile(r"\.(?P<rsync>.+)\.[A-Za-z0-9]{6}|(?P<name>.+)\.(?:part|te?mp)")
"""A name that is replaced when the file is complete. ``rsync``: by its receiver.c."""


def content_type(key: str) -> str | None:
    """The type of an object; None if the ending says nothing.

    A temporary name has the type of the name that it will be renamed to.
    """
    name = key.rpartition("/")[2]
    if temporary := _TEMPORARY.fullmatch(name):
        name = temporary["rsync"] or temporary["name"]
    stem, dot, ending = name.rpartition(".")
    if not (stem and dot):
        return None
    ending = f".{ending.lower()}"
    return _COMPRESSED.get(ending) or _TYPES.get(ending)
