"""CopyObject, and the copying of ranges into parts.

Sources: "CopyObject", "UploadPartCopy", "Copying, moving, and renaming objects".
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from urllib.parse import unquote

from tests.support.strict_s3.attributes import (
    ARCHIVED,
    ENCRYPTION,
    REDIRECT,
    STORAGE_CLASS,
    read_encryption,
)
from tests.support.strict_s3.call import Call, etag_for, now_s
from tests.support.strict_s3.conditions import check_source
from tests.support.strict_s3.data_files import Segment, cut
from tests.support.strict_s3.errors import S3Error
from tests.support.strict_s3.http_front import Answer
from tests.support.strict_s3.limits import MIB
from tests.support.strict_s3.object_operations import attributes_of, store
from tests.support.strict_s3.state import Bucket, Part, StoredObject
from tests.support.strict_s3.xml_answers import iso_time, quoted, xml_answer

_RANGE = re.compile(r"bytes=(\d+)-(\d+)")
_PIECE_BYTES = MIB


@dataclass(frozen=True)
class Source:
    """What is copied; its bytes stay while it is copied."""

    bucket: Bucket
    found: StoredObject


def copy_object(call: Call) -> Answer:
    """CopyObject."""
    call.check_key()
    directive = _directive(call, "x-amz-metadata-directive")
    tagging = _directive(call, "x-amz-tagging-directive")
    with open_source(call) as source:
        found = source.found
        if found.size > call.limits.max_copy_bytes:
            raise _source_too_large(call)
        _check_onto_itself(call, source, directive)
        asked = attributes_of(call)
        if directive == "COPY":
            asked = asked.with_metadata_of(found.attributes)
        if tagging == "COPY":
            call.allow("GetObjectTagging", found.key, source.bucket)
            if found.attributes.tags:
                call.allow("PutObjectTagging")
            asked = asked.with_tags(found.attributes.tags)
        call.check_quota(found.size)
        etag = etag_for(_whole_md5(call, found), asked)
        made = StoredObject(call.key, found.segments, found.size, etag, now_s(), asked)
        store(call, made)
    fields = [("LastModified", iso_time(made.modified_s)), ("ETag", quoted(etag))]
    return xml_answer("CopyObjectResult", fields, asked.encryption_headers())


@contextlib.contextmanager
def open_part_source(call: Call) -> Iterator[Part]:
    """The part that UploadPartCopy asks for, while its bytes stay.

    Raises:
        S3Error: InvalidArgument for a range that is not well-formed, or not inside the source;
            InvalidRequest for a source that is too large without a range, or too small with one.
    """
    with open_source(call, twice=call.bucket.settings.like_ceph) as source:
        found = source.found
        header = call.headers.get("x-amz-copy-source-range")
        first, last = 0, found.size - 1
        if header is not None:
            first, last = _source_range(header, found.size)
            if found.size <= call.limits.min_ranged_source_bytes:
                raise S3Error(
                    "InvalidRequest",
                    "The specified copy source is not supported as a byte-range copy source",
                )
        size = last - first + 1
        limit = call.limits.max_copy_bytes if header is None else call.limits.max_part_bytes
        if size > limit:
            raise _source_too_large(call)
        call.check_quota(size)
        segments = tuple(cut(found.segments, first, size))
        yield Part(segments, size, md5_of(call, segments), now_s())


@contextlib.contextmanager
def open_source(call: Call, *, twice: bool = False) -> Iterator[Source]:
    """What ``x-amz-copy-source`` names, if the conditions hold.

    Args:
        twice: decode the name twice, as Ceph's gateway does.

    Raises:
        S3Error: InvalidArgument, NoSuchBucket, NoSuchKey, AccessDenied, PreconditionFailed,
            InvalidObjectState.
    """
    name, slash, rest = call.headers["x-amz-copy-source"].removeprefix("/").partition("/")
    escaped, _, version = rest.partition("?")
    if version:
        raise S3Error("NotImplemented", "This server keeps no versions.")
    try:
        key = unquote(escaped, errors="strict")
        key = unquote(key, errors="strict") if twice else key
    except UnicodeDecodeError:
        key = ""
    if not slash or not key:
        raise S3Error("InvalidArgument", "Invalid copy source object key")
    bucket = call.state.bucket(unquote(name))
    call.allow("GetObject", key, bucket)
    if key not in bucket.objects:
        call.allow("ListBucket", key, bucket)
    with bucket.pinned(key) as found:
        if not bucket.settings.like_ceph:
            check_source(found, call.headers)
        if found.attributes.storage_class in ARCHIVED:
            raise S3Error(
                "InvalidObjectState", "Operation is not valid for the source object's storage class"
            )
        yield Source(bucket, found)


def md5_of(call: Call, segments: tuple[Segment, ...]) -> str:
    """Hex digits; reads all of it."""
    digest = hashlib.md5(usedforsecurity=False)
    size = sum(segment.size for segment in segments)
    for extent in call.state.data.extents(segments, 0, size):
        with extent.path.open("rb", buffering=0) as file:
            at, end = extent.offset, extent.offset + extent.size
            while at < end:
                piece = os.pread(file.fileno(), min(_PIECE_BYTES, end - at), at)
                digest.update(piece)
                at += len(piece)
    return digest.hexdigest()


def _whole_md5(call: Call, found: StoredObject) -> str:
    """The digest of a whole object: an object made of parts becomes one piece when it is copied."""
    plain = found.attributes.encryption.get(ENCRYPTION) == "AES256"
    if plain and "-" not in found.etag:
        return found.etag
    return md5_of(call, found.segments)


def _directive(call: Call, name: str) -> str:
    value = call.headers.get(name, "COPY")
    if value not in {"COPY", "REPLACE"}:
        raise S3Error("InvalidArgument", fields={"ArgumentName": name, "ArgumentValue": value})
    return value


def _source_range(header: str, size: int) -> tuple[int, int]:
    match = _RANGE.fullmatch(header)
    if match is None or int(match[1]) > int(match[2]):
        raise S3Error(
            "InvalidArgument",
            "The x-amz-copy-source-range value must be of the form bytes=first-last where first "
            "and last are the zero-based offsets of the first and last bytes to copy",
        )
    first, last = int(match[1]), int(match[2])
    if last >= size:
        message = f"Range specified is not valid for source object of size: {size}"
        raise S3Error("InvalidArgument", message)
    return first, last


def _check_onto_itself(call: Call, source: Source, directive: str) -> None:
    same = source.bucket.name == call.bucket_name and source.found.key == call.key
    changes = (
        directive == "REPLACE"
        or STORAGE_CLASS in call.headers
        or REDIRECT in call.headers
        or read_encryption(call.headers)
    )
    if same and not changes:
        raise S3Error(
            "InvalidRequest",
            "This copy request is illegal because it is trying to copy an object to itself without "
            "changing the object's metadata, storage class, website redirect location or "
            "encryption attributes.",
        )


def _source_too_large(call: Call) -> S3Error:
    return S3Error(
        "InvalidRequest",
        "The specified copy source is larger than the maximum allowable size for a copy source: "
        f"{call.limits.max_copy_bytes}",
    )
