"""Operations on one object, and deletion of many.

Sources: "PutObject", "GetObject", "HeadObject", "DeleteObject", "DeleteObjects",
"GetObjectTagging", "PutObjectTagging", "DeleteObjectTagging", "GetObjectAcl", "PutObjectAcl".
"""

from __future__ import annotations

import dataclasses
import re
from email.utils import formatdate

from tests.support.strict_s3.attributes import (
    ARCHIVED,
    GRANT_HEADERS,
    Attributes,
    check_tags,
    names_acl,
    read_attributes,
    read_grants,
)
from tests.support.strict_s3.call import Call, etag_for, now_s
from tests.support.strict_s3.conditions import check_read, check_write
from tests.support.strict_s3.errors import S3Error
from tests.support.strict_s3.http_front import Answer
from tests.support.strict_s3.state import Bucket, StoredObject
from tests.support.strict_s3.xml_answers import parse_document, quoted, xml_answer

OWNER = "strict-owner"
_RANGE = re.compile(r"bytes=(\d*)-(\d*)")


def put_object(call: Call) -> Answer:
    """PutObject."""
    call.check_key()
    attributes = attributes_of(call)
    check_write(
        call.bucket.objects.get(call.key),
        call.key,
        call.headers,
        bare=call.bucket.settings.like_ceph,
    )
    with call.received(call.limits.max_put_bytes) as (segments, md5):
        etag = etag_for(md5, attributes)
        size = sum(segment.size for segment in segments)
        made = StoredObject(call.key, segments, size, etag, now_s(), attributes)
        store(call, made)
    return Answer(200, {"ETag": quoted(etag), **attributes.encryption_headers()})


def store(call: Call, made: StoredObject) -> None:
    """Put an object if the request's conditions hold at this moment.

    Raises S3Error: PreconditionFailed, NoSuchKey.
    """
    bucket = call.bucket
    with bucket.lock:
        check_write(
            bucket.objects.get(made.key),
            made.key,
            call.headers,
            bare=call.bucket.settings.like_ceph,
        )
        bucket.put(made)


def attributes_of(call: Call) -> Attributes:
    """The new object's attributes, if the login may set them. Raises S3Error."""
    call.allow("PutObject")
    attributes = read_attributes(call.headers, call.limits, call.bucket.settings.encryption)
    if attributes.tags:
        call.allow("PutObjectTagging")
    if names_acl(call.headers):
        _check_acl(call, attributes.grants)
    return attributes


def get_object(call: Call) -> Answer:
    """GetObject: all of it, or one range."""
    _refuse_overrides(call)
    _allow_read(call)
    found, release = call.bucket.pin(call.key)
    try:
        check_read(found, call.headers)
        _check_active(found)
        wanted = _range(call.headers.get("range", ""), found.size)
    except S3Error:
        release()
        raise
    headers = _headers(found)
    first, last = wanted or (0, found.size - 1)
    if wanted:
        headers["Content-Range"] = f"bytes {first}-{last}/{found.size}"
    extents = call.state.data.extents(found.segments, first, last - first + 1)
    return Answer(206 if wanted else 200, headers, extents=extents, release=release)


def head_object(call: Call) -> Answer:
    """HeadObject, also of what is archived."""
    _refuse_overrides(call)
    _allow_read(call)
    with call.bucket.lock:
        found = call.bucket.object(call.key)
    check_read(found, call.headers)
    wanted = _range(call.headers.get("range", ""), found.size)
    headers = _headers(found)
    if wanted:
        first, last = wanted
        headers["Content-Range"] = f"bytes {first}-{last}/{found.size}"
        return Answer(206, headers, promised=last - first + 1)
    return Answer(200, headers, promised=found.size)


def delete_object(call: Call) -> Answer:
    """DeleteObject: deleting an absent object succeeds, too."""
    call.allow("DeleteObject")
    with call.bucket.lock:
        check_write(
            call.bucket.objects.get(call.key),
            call.key,
            call.headers,
            bare=call.bucket.settings.like_ceph,
        )
        call.bucket.remove(call.key)
    return Answer(204)


def delete_objects(call: Call) -> Answer:
    """DeleteObjects: each key has a result of its own."""
    payload = call.payload()
    if not payload.has_digest:
        raise S3Error(
            "InvalidRequest",
            "Missing required header for this request: Content-MD5 OR x-amz-checksum-*",
        )
    asked = parse_document(payload.read(call.limits.max_document_bytes), "Delete")
    keys = [item.findtext("Key") for item in asked.iterfind("Object")]
    if not 1 <= len(keys) <= call.limits.max_deletes or not all(keys):
        raise S3Error("MalformedXML")
    results: list[tuple[str, object]] = []
    bucket = call.bucket
    for key in filter(None, keys):
        try:
            call.allow("DeleteObject", key)
        except S3Error as error:
            fields = [("Key", key), ("Code", error.code), ("Message", str(error))]
            results.append(("Error", fields))
            continue
        with bucket.lock:
            bucket.remove(key)
        if asked.findtext("Quiet") != "true":
            results.append(("Deleted", [("Key", key)]))
    return xml_answer("DeleteResult", results)


def get_object_tagging(call: Call) -> Answer:
    """GetObjectTagging."""
    call.allow("GetObjectTagging")
    with call.bucket.lock:
        tags = call.bucket.object(call.key).attributes.tags
    items = [("Tag", [("Key", name), ("Value", text)]) for name, text in tags.items()]
    return xml_answer("Tagging", [("TagSet", items)])


def put_object_tagging(call: Call) -> Answer:
    """PutObjectTagging."""
    call.allow("PutObjectTagging")
    asked = parse_document(call.document(), "Tagging")
    pairs = [(tag.findtext("Key") or "", tag.findtext("Value") or "") for tag in asked.iter("Tag")]
    tags = check_tags(pairs, call.limits)
    _change(call.bucket, call.key, lambda attributes: attributes.with_tags(tags))
    return Answer(200)


def delete_object_tagging(call: Call) -> Answer:
    """DeleteObjectTagging."""
    call.allow("DeleteObjectTagging")
    _change(call.bucket, call.key, lambda attributes: attributes.with_tags({}))
    return Answer(204)


def get_object_acl(call: Call) -> Answer:
    """GetObjectAcl."""
    call.allow("GetObjectAcl")
    with call.bucket.lock:
        grants = call.bucket.object(call.key).attributes.grants
    everything = (f"id={OWNER}", "FULL_CONTROL")
    items = []
    for who, permission in (everything, *grants):
        kind, _, value = who.partition("=")
        grantee = ("ID" if kind == "id" else "URI", value)
        items.append(("Grant", [("Grantee", [grantee]), ("Permission", permission)]))
    owner = ("Owner", [("ID", OWNER), ("DisplayName", OWNER)])
    return xml_answer("AccessControlPolicy", [owner, ("AccessControlList", items)])


def put_object_acl(call: Call) -> Answer:
    """PutObjectAcl, by headers or by a document."""
    if names_acl(call.headers):
        grants = read_grants(call.headers)
    else:
        asked = parse_document(call.document(), "AccessControlPolicy")
        grants = tuple(
            (
                f"id={grant.findtext('Grantee/ID')}"
                if grant.find("Grantee/ID") is not None
                else f"uri={grant.findtext('Grantee/URI')}",
                grant.findtext("Permission") or "",
            )
            for grant in asked.iter("Grant")
        )
        if any(what not in {"WRITE", *GRANT_HEADERS.values()} for _, what in grants):
            raise S3Error("MalformedXML")
        grants = tuple(grant for grant in grants if grant[0] != f"id={OWNER}")
    _check_acl(call, grants)
    _change(call.bucket, call.key, lambda attributes: attributes.with_grants(grants))
    return Answer(200)


def _check_acl(call: Call, grants: tuple[tuple[str, str], ...]) -> None:
    call.allow("PutObjectAcl")
    owner_only = not grants and call.headers.get("x-amz-acl") == "bucket-owner-full-control"
    if not (call.bucket.settings.acls or owner_only):
        raise S3Error("AccessControlListNotSupported")


def _change(bucket: Bucket, key: str, change: object) -> None:
    """Change tags or an ACL in place: ETag and time stay."""
    assert callable(change)
    with bucket.lock:
        found = bucket.object(key)
        bucket.put(dataclasses.replace(found, attributes=change(found.attributes)))


def _allow_read(call: Call) -> None:
    call.allow("GetObject")
    if call.key not in call.bucket.objects:
        call.allow("ListBucket")


def _check_active(found: StoredObject) -> None:
    if found.attributes.storage_class in ARCHIVED:
        fields = {"StorageClass": found.attributes.storage_class}
        raise S3Error("InvalidObjectState", fields=fields)


def _headers(found: StoredObject) -> dict[str, str]:
    return {
        "ETag": quoted(found.etag),
        "Last-Modified": formatdate(found.modified_s, usegmt=True),
        "Accept-Ranges": "bytes",
        **found.attributes.headers(),
    }


def _range(header: str, size: int) -> tuple[int, int] | None:
    """First and last byte; None for all: several ranges, or none that is well-formed.

    Raises S3Error: InvalidRange.
    """
    found = _RANGE.fullmatch(header.strip())
    if found is None or not (found[1] or found[2]):
        return None
    if found[1]:
        first, last = int(found[1]), int(found[2] or size)
        if last < first:
            return None
    else:
        first, last = max(size - int(found[2]), 0), size - 1
    if first >= size:
        fields = {"RangeRequested": header, "ActualObjectSize": size}
        raise S3Error("InvalidRange", fields=fields)
    return first, min(last, size - 1)


def _refuse_overrides(call: Call) -> None:
    for name in call.query:
        if name.startswith("response-") or name == "partNumber":
            raise S3Error("NotImplemented", fields={"Query": name})
