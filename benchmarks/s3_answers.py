"""The XML of S3's requests and answers."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from xml.sax.saxutils import escape, unescape

from benchmarks.memory_objects import Objects

LISTING_TIME = "2026-01-01T00:00:00.000Z"
_PAGE_NAMES = 1000


def document(name: str, content: str) -> bytes:
    """A document of S3's with this root."""
    opening = f'<{name} xmlns="http://s3.amazonaws.com/doc/2006-03-01/">'
    return f'<?xml version="1.0" encoding="UTF-8"?>{opening}{content}</{name}>'.encode()


def elements(content: Mapping[str, object]) -> str:
    """One element for each, with its text."""
    return "".join(f"<{name}>{escape(str(text))}</{name}>" for name, text in content.items())


def error(code: str) -> bytes:
    """An error's document."""
    return f"<Error><Code>{code}</Code><Message>{code}</Message></Error>".encode()


def texts(sent: bytes, name: str) -> list[str]:
    """The texts of all elements of this name in a client's document."""
    found: Iterable[str] = re.findall(f"<{name}>(.*?)</{name}>", sent.decode(), re.S)
    return [unescape(text, {"&quot;": '"', "&#34;": '"', "&apos;": "'"}) for text in found]


def page(objects: Objects, fields: Mapping[str, str]) -> bytes:
    """A page of ListObjects, of either version."""
    prefix, delimiter = fields.get("prefix", ""), fields.get("delimiter", "")
    after = max(fields.get(name, "") for name in ("continuation-token", "start-after", "marker"))
    most = min(int(fields.get("max-keys", _PAGE_NAMES)), _PAGE_NAMES)
    entries: dict[str, str] = {}
    is_cut = False
    for key, one in objects.every():
        if not key.startswith(prefix):
            continue
        name, found, _ = key[len(prefix) :].partition(delimiter) if delimiter else (key, "", "")
        entry = prefix + name + found if found else key
        if entry <= after or entry in entries:
            continue
        if len(entries) == most:  # 0 in a request that only checks the bucket
            is_cut = most > 0
            break
        entries[entry] = (
            f"<CommonPrefixes>{elements({'Prefix': entry})}</CommonPrefixes>"
            if found
            else "<Contents>"
            + elements(
                {
                    "Key": key,
                    "Size": one.size_bytes,
                    "ETag": one.etag,
                    "LastModified": LISTING_TIME,
                    "StorageClass": "STANDARD",
                }
            )
            + "</Contents>"
        )
    about: dict[str, object] = {
        "Name": "bucket",
        "Prefix": prefix,
        "KeyCount": len(entries),
        "MaxKeys": most,
        "IsTruncated": "true" if is_cut else "false",
    }
    if delimiter:
        about["Delimiter"] = delimiter
    if is_cut:
        about |= dict.fromkeys(("NextContinuationToken", "NextMarker"), list(entries)[-1])
    return document("ListBucketResult", elements(about) + "".join(entries.values()))
