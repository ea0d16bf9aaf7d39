"""Preconditions of reads, writes and copies.

Sources: "GetObject", "Conditional requests", "How to prevent object overwrites with conditional
writes", "CopyObject", "UploadPartCopy".
"""

from __future__ import annotations

from collections.abc import Mapping
from email.utils import parsedate_to_datetime

from tests.support.strict_s3.errors import S3Error
from tests.support.strict_s3.state import StoredObject

_SOURCE = "x-amz-copy-source-"


def check_read(found: StoredObject, headers: Mapping[str, str]) -> None:
    """Raises S3Error: PreconditionFailed, NotModified."""
    match = _matches(headers.get("if-match"), found)
    if match is False:
        raise S3Error("PreconditionFailed", fields={"Condition": "If-Match"})
    if match is None and _changed_since(headers.get("if-unmodified-since"), found):
        raise S3Error("PreconditionFailed", fields={"Condition": "If-Unmodified-Since"})
    other = _matches(headers.get("if-none-match"), found)
    unchanged = _changed_since(headers.get("if-modified-since"), found) is False
    if other or (other is None and unchanged):
        raise S3Error("NotModified", headers={"ETag": f'"{found.etag}"'})


def check_source(found: StoredObject, headers: Mapping[str, str]) -> None:
    """Conditions of a copy. Raises S3Error: PreconditionFailed."""
    own = {
        name.removeprefix(_SOURCE): value
        for name, value in headers.items()
        if name.startswith(_SOURCE)
    }
    try:
        check_read(found, own)
    except S3Error as error:
        raise S3Error("PreconditionFailed", fields=error.fields) from None


def check_write(
    found: StoredObject | None, key: str, headers: Mapping[str, str], *, bare: bool
) -> None:
    """Conditions of a write, and of a deletion.

    Args:
        found: what is there now.
        bare: compare as Ceph's gateway does, with the ETag without its quotes.

    Raises:
        S3Error: PreconditionFailed, NoSuchKey, NotImplemented.
    """
    for name in ("if-modified-since", "if-unmodified-since"):
        if name in headers:
            raise S3Error("NotImplemented", fields={"Header": name})
    absent, match = headers.get("if-none-match"), headers.get("if-match")
    if absent is not None:
        if absent != "*" or match is not None:
            raise S3Error("NotImplemented", fields={"Header": "If-None-Match"})
        if found is not None:
            raise S3Error("PreconditionFailed", fields={"Condition": "If-None-Match"})
    if match is not None and bare:
        if found is None or match not in {"*", found.etag}:
            raise S3Error("PreconditionFailed", fields={"Condition": "If-Match"})
    elif match is not None:
        if found is None:
            raise S3Error("NoSuchKey", fields={"Key": key})
        if not _matches(match, found):
            raise S3Error("PreconditionFailed", fields={"Condition": "If-Match"})


def _matches(wanted: str | None, found: StoredObject) -> bool | None:
    """Whether the condition matches; None if there is none."""
    if wanted is None:
        return None
    return wanted == "*" or found.etag in {word.strip().strip('"') for word in wanted.split(",")}


def _changed_since(date: str | None, found: StoredObject) -> bool | None:
    """None if there is no condition, or one that is no date, which HTTP ignores."""
    if date is None:
        return None
    try:
        return found.modified_s > parsedate_to_datetime(date).timestamp()
    except ValueError:
        return None
