"""The Content-Type of a new object, by the ending of its name. Knows no store."""

from __future__ import annotations

import mimetypes
import re
from typing import Final

# Of the standard library alone: what /etc/mime.types adds differs from image to image.
_TYPES: Final = mimetypes.MimeTypes().types_map[True]
_COMPRESSED: Final = {
    ".bz2": "application/x-bzip2",
    ".gz": "application/gzip",
    ".xz": "application/x-xz",
    ".zst": "application/zstd",
}
"""To the library these are encodings. As Content-Encoding, clients would unpack what they read."""
_TEMPORARY: Final = re.compile(r"\.(?P<rsync>.+)\.[A-Za-z0-9]{6}|(?P<name>.+)\.(?:part|te?mp)")
"""A name that another one replaces when the file is complete. ``rsync``: of its receiver.c."""


def content_type(key: str) -> str | None:
    """The type of an object; None where the ending tells none.

    A temporary name has that of the name that it will be renamed to.
    """
    name = key.rpartition("/")[2]
    if temporary := _TEMPORARY.fullmatch(name):
        name = temporary["rsync"] or temporary["name"]
    stem, dot, ending = name.rpartition(".")
    if not (stem and dot):
        return None
    ending = f".{ending.lower()}"
    return _COMPRESSED.get(ending) or _TYPES.get(ending)
