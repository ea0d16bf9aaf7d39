"""Listings of objects and uploads.

Sources: "ListObjectsV2", "ListObjects", "ListMultipartUploads", "Organizing objects using
prefixes".
"""

from __future__ import annotations

import base64
import binascii
from bisect import bisect_left, bisect_right
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from tests.support.strict_s3.call import Call
from tests.support.strict_s3.errors import S3Error
from tests.support.strict_s3.http_front import Answer
from tests.support.strict_s3.object_operations import OWNER
from tests.support.strict_s3.state import StoredObject
from tests.support.strict_s3.xml_answers import iso_time, quoted, url_encoded, xml_answer

_TOKEN = b"strict:"


@dataclass
class Page:
    """One answer's lines.

    Attributes:
        lines: keys, and common prefixes (True), in their order.
        truncated: whether there is more.
    """

    lines: list[tuple[str, bool]] = field(default_factory=list)
    truncated: bool = False

    @property
    def keys(self) -> list[str]:
        """Keys alone."""
        return [text for text, common in self.lines if not common]

    @property
    def prefixes(self) -> list[str]:
        """Common prefixes alone."""
        return [text for text, common in self.lines if common]

    @property
    def last(self) -> str:
        """The line after which the next page begins."""
        return self.lines[-1][0] if self.lines else ""


def page_of(keys: Sequence[str], prefix: str, delimiter: str, after: str, limit: int) -> Page:
    """Keys that begin with ``prefix`` and come after ``after``; common prefixes count as one."""
    page = Page()
    at = max(bisect_left(keys, prefix), bisect_right(keys, after) if after else 0)
    while at < len(keys) and keys[at].startswith(prefix):
        key = keys[at]
        cut = key.find(delimiter, len(prefix)) if delimiter else -1
        if cut < 0:
            line, at = (key, False), at + 1
        else:
            common = key[: cut + len(delimiter)]
            at = bisect_left(keys, common[:-1] + chr(ord(common[-1]) + 1), at)
            if common == after:
                continue  # it was the last line of the page before
            line = (common, True)
        if len(page.lines) == limit:
            page.truncated = limit > 0
            break
        page.lines.append(line)
    return page


def list_objects_v2(call: Call) -> Answer:
    """ListObjectsV2."""
    token = call.query.get("continuation-token")
    like_ceph = call.bucket.settings.like_ceph
    after = call.query.get("start-after", "")
    if token is not None:
        after = token if like_ceph else _from_token(token)
    listed, found = _list(call, after)
    encode = _encoding(call)
    fields = _common(call, listed, encode)
    fields.append(("KeyCount", len(listed.lines)))
    if token is not None:
        fields.append(("ContinuationToken", token))
    if listed.truncated:
        following = listed.last if like_ceph else _to_token(listed.last)
        fields.append(("NextContinuationToken", following))
    if "start-after" in call.query:
        fields.append(("StartAfter", encode(call.query["start-after"])))
    owner = call.query.get("fetch-owner") == "true"
    return xml_answer("ListBucketResult", fields + _lines(listed, found, encode, owner=owner))


def list_objects(call: Call) -> Answer:
    """ListObjects, the first version: markers are keys."""
    marker = call.query.get("marker", "")
    listed, found = _list(call, marker)
    encode = _encoding(call)
    fields = [*_common(call, listed, encode), ("Marker", encode(marker))]
    if listed.truncated and call.query.get("delimiter"):
        fields.append(("NextMarker", encode(listed.last)))
    return xml_answer("ListBucketResult", fields + _lines(listed, found, encode, owner=True))


def list_multipart_uploads(call: Call) -> Answer:
    """ListMultipartUploads: by key, and those of one key by their beginning."""
    call.allow("ListBucketMultipartUploads")
    limit = _limit(call, "max-uploads")
    prefix, delimiter = call.query.get("prefix", ""), call.query.get("delimiter", "")
    marker, id_marker = call.query.get("key-marker", ""), call.query.get("upload-id-marker", "")
    with call.bucket.lock:
        uploads = sorted(
            call.bucket.uploads.values(),
            key=lambda upload: (upload.key, upload.begun_s, upload.upload_id),
        )
    if marker:
        of_key = [upload for upload in uploads if upload.key == marker]
        ids = [upload.upload_id for upload in of_key]
        rest = of_key[ids.index(id_marker) + 1 :] if id_marker in ids else []
        uploads = rest + [upload for upload in uploads if upload.key > marker]
    encode = _encoding(call)
    lines: list[tuple[str, object]] = []
    next_key, next_id, truncated = "", "", False
    seen: set[str] = set()
    for upload in uploads:
        if not upload.key.startswith(prefix):
            continue
        cut = upload.key.find(delimiter, len(prefix)) if delimiter else -1
        common = upload.key[: cut + len(delimiter)] if cut >= 0 else ""
        if common and (common in seen or common == marker):
            continue
        if len(lines) == limit:
            truncated = True
            break
        if common:
            seen.add(common)
            lines.append(("CommonPrefixes", [("Prefix", encode(common))]))
            next_key, next_id = common, ""
            continue
        owner = [("ID", OWNER), ("DisplayName", OWNER)]
        line = [
            ("Key", encode(upload.key)),
            ("UploadId", upload.upload_id),
            ("Initiator", owner),
            ("Owner", owner),
            ("StorageClass", upload.attributes.storage_class),
            ("Initiated", iso_time(upload.begun_s)),
        ]
        lines.append(("Upload", line))
        next_key, next_id = upload.key, upload.upload_id
    fields: list[tuple[str, object]] = [
        ("Bucket", call.bucket_name),
        ("KeyMarker", encode(marker)),
        ("UploadIdMarker", id_marker),
        ("Prefix", encode(prefix)),
        ("Delimiter", encode(delimiter)),
        ("MaxUploads", limit),
        ("IsTruncated", str(truncated).lower()),
    ]
    if "encoding-type" in call.query:
        fields.append(("EncodingType", "url"))
    if truncated:
        fields += [("NextKeyMarker", encode(next_key)), ("NextUploadIdMarker", next_id)]
    return xml_answer("ListMultipartUploadsResult", fields + lines)


def _list(call: Call, after: str) -> tuple[Page, dict[str, StoredObject]]:
    prefix, delimiter = call.query.get("prefix", ""), call.query.get("delimiter", "")
    call.allow("ListBucket", prefix)
    with call.bucket.lock:
        keys, objects = call.bucket.listed()
        page = page_of(keys, prefix, delimiter, after, _limit(call, "max-keys"))
        return page, {key: objects[key] for key in page.keys}


def _common(call: Call, page: Page, encode: Callable[[str], str]) -> list[tuple[str, object]]:
    fields: list[tuple[str, object]] = [
        ("Name", call.bucket_name),
        ("Prefix", encode(call.query.get("prefix", ""))),
        ("MaxKeys", _limit(call, "max-keys")),
        ("IsTruncated", str(page.truncated).lower()),
    ]
    if call.query.get("delimiter"):
        fields.append(("Delimiter", encode(call.query["delimiter"])))
    if "encoding-type" in call.query:
        fields.append(("EncodingType", "url"))
    return fields


def _lines(
    page: Page, found: dict[str, StoredObject], encode: Callable[[str], str], *, owner: bool
) -> list[tuple[str, object]]:
    lines: list[tuple[str, object]] = []
    for key in page.keys:
        listed = found[key]
        line: list[tuple[str, object]] = [
            ("Key", encode(key)),
            ("LastModified", iso_time(listed.modified_s)),
            ("ETag", quoted(listed.etag)),
            ("Size", listed.size),
            ("StorageClass", listed.attributes.storage_class),
        ]
        if owner:
            line.append(("Owner", [("ID", OWNER), ("DisplayName", OWNER)]))
        lines.append(("Contents", line))
    lines += [("CommonPrefixes", [("Prefix", encode(common))]) for common in page.prefixes]
    return lines


def _limit(call: Call, name: str) -> int:
    text = call.query.get(name, "") or str(call.limits.max_page)
    if not (text.isascii() and text.isdigit()):
        raise S3Error("InvalidArgument", fields={"ArgumentName": name, "ArgumentValue": text})
    return min(int(text), call.limits.max_page)


def _encoding(call: Call) -> Callable[[str], str]:
    kind = call.query.get("encoding-type")
    if kind not in {None, "url"}:
        raise S3Error("InvalidArgument", "Invalid Encoding Method specified in Request")
    return str if kind is None else url_encoded


def _to_token(last: str) -> str:
    """Opaque, and with characters that must be escaped in a query."""
    return base64.b64encode(_TOKEN + last.encode()).decode()


def _from_token(token: str) -> str:
    try:
        text = base64.b64decode(token, validate=True)
    except (binascii.Error, ValueError):
        text = b""
    if not text.startswith(_TOKEN):
        raise S3Error("InvalidArgument", "The continuation token provided is incorrect")
    return text.removeprefix(_TOKEN).decode()
