"""Versions of S3's objects: what pins an object, and the headers that require it."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping
from typing import Final, NamedTuple

from sidecar.mounter.store.interface import Condition, ProvisionalVersion

IF_NONE_MATCH: Final = "if-none-match"
IF_MATCH: Final = "if-match"
SOURCE: Final = "x-amz-copy-source"
SOURCE_IF_MATCH: Final = "x-amz-copy-source-if-match"

_NO_ETAG = "~"
_DIGEST_CHARACTERS = 16


class TimeAndSize(NamedTuple):
    """The version of an object without an ETag: weaker than an ETag, but not nothing.

    A server that lists no ETag may still return one when it is written to. A read of that
    version is Stale.
    """

    mtime_s: int
    size_bytes: int

    def __str__(self) -> str:
        return f"{_NO_ETAG}{self.mtime_s}-{self.size_bytes}"

    @classmethod
    def parse(cls, version: str) -> TimeAndSize | None:
        """From the text of a version; None if it is of another kind."""
        if not version.startswith(_NO_ETAG):
            return None
        found = _TIME_AND_SIZE.fullmatch(version, len(_NO_ETAG))
        return cls(int(found[1]), int(found[2])) if found else None


_TIME_AND_SIZE = re.compile(r"(-?[0-9]{1,20})-([0-9]{1,20})")


def etag_of(value: str | None) -> str:
    """An ETag without its quotes; empty for None."""
    return (value or "").removeprefix("W/").strip('"')


def version_of(etag: str | None, mtime_s: float, size_bytes: int) -> str:
    """The version of an object by a response."""
    return etag_of(etag) or str(TimeAndSize(int(mtime_s), size_bytes))


def provisional_version(
    etag: str, size_bytes: int, metadata: Mapping[str, str]
) -> ProvisionalVersion:
    """The version of what this mount made. Its metadata have our time of the file in ns."""
    lines = "".join(f"{name}:{value}\n" for name, value in sorted(metadata.items()))
    digest = hashlib.sha256(lines.encode()).hexdigest()[:_DIGEST_CHARACTERS]
    return ProvisionalVersion(etag, size_bytes, digest)


def if_match(name: str, version: str, *, quoted: bool = True) -> dict[str, str]:
    """The header ``name`` that requires a version; empty if the version is no ETag."""
    if TimeAndSize.parse(version) or ProvisionalVersion.parse(version):
        return {}
    return {name: f'"{version}"' if quoted else version}


def condition_headers(condition: Condition | None, *, quoted: bool) -> dict[str, str]:
    """The headers that state the condition of a write.

    Args:
        quoted: whether an ETag has quotes, as HTTP demands.
    """
    if condition is None:
        return {}
    if condition.absent:
        return {"if-none-match": "*"}
    if condition.version is None:
        return {}
    return if_match("if-match", condition.version, quoted=quoted)


def unmet_conditions(source: str) -> dict[str, dict[str, str]]:
    """Headers for PUTs of an existing object, each with a condition that does not hold.

    Args:
        source: the object, as the source of a copy onto itself.
    """
    wrong = f'"{"0" * 32}"'
    copy = {SOURCE: source, "x-amz-metadata-directive": "REPLACE"}
    return {
        IF_NONE_MATCH: {IF_NONE_MATCH: "*"},
        IF_MATCH: {IF_MATCH: wrong},
        SOURCE_IF_MATCH: {SOURCE_IF_MATCH: wrong, **copy},
    }
