"""Multipart uploads.

Sources: "CreateMultipartUpload", "UploadPart", "UploadPartCopy", "CompleteMultipartUpload",
"AbortMultipartUpload", "ListParts", "ListMultipartUploads", "Amazon S3 multipart upload limits".
"""

from __future__ import annotations

import hashlib
import itertools
from xml.etree.ElementTree import Element

from tests.support.strict_s3.call import Call, etag_for, now_s
from tests.support.strict_s3.conditions import check_write
from tests.support.strict_s3.copy_operations import open_part_source
from tests.support.strict_s3.errors import S3Error
from tests.support.strict_s3.http_front import Answer
from tests.support.strict_s3.limits import Limits
from tests.support.strict_s3.object_operations import OWNER, attributes_of, store
from tests.support.strict_s3.state import Part, StoredObject, Upload
from tests.support.strict_s3.xml_answers import (
    iso_time,
    parse_document,
    quoted,
    xml_answer,
)


def create_multipart_upload(call: Call) -> Answer:
    """CreateMultipartUpload: the object's attributes are fixed here."""
    call.check_key()
    attributes = attributes_of(call)
    upload = call.bucket.begin(call.key, attributes)
    fields = [("Bucket", call.bucket_name), ("Key", call.key), ("UploadId", upload.upload_id)]
    return xml_answer("InitiateMultipartUploadResult", fields, attributes.encryption_headers())


def upload_part(call: Call) -> Answer:
    """UploadPart: a part of any size up to the largest; the smallest is checked at the end."""
    upload, number = _target(call)
    with call.received(call.limits.max_part_bytes) as (segments, md5):
        size = sum(segment.size for segment in segments)
        etag = etag_for(md5, upload.attributes)
        _put_part(call, number, Part(segments, size, etag, now_s()))
    return Answer(200, {"ETag": quoted(etag), **upload.attributes.encryption_headers()})


def upload_part_copy(call: Call) -> Answer:
    """UploadPartCopy."""
    upload, number = _target(call)
    with open_part_source(call) as part:
        _put_part(call, number, part)
    fields = [("LastModified", iso_time(part.modified_s)), ("ETag", quoted(part.etag))]
    return xml_answer("CopyPartResult", fields, upload.attributes.encryption_headers())


def complete_multipart_upload(call: Call) -> Answer:
    """CompleteMultipartUpload. Its time is the upload's beginning ("System-defined metadata")."""
    call.allow("PutObject")
    bucket = call.bucket
    with bucket.lock:
        if bucket.settings.like_ceph and call.query["uploadId"] not in bucket.uploads:
            raise S3Error("InternalError")
        upload = bucket.upload(call.key, call.query["uploadId"])
    asked = parse_document(call.document(), "CompleteMultipartUpload")
    with bucket.lock:
        bucket.upload(call.key, upload.upload_id)  # another may have been faster
        parts = _chosen(asked, upload, call.limits)
        check_write(
            bucket.objects.get(call.key),
            call.key,
            call.headers,
            bare=call.bucket.settings.like_ceph,
        )
        digest = hashlib.md5(usedforsecurity=False)
        for _, part in parts:
            digest.update(bytes.fromhex(part.etag))
        etag = f"{etag_for(digest.hexdigest(), upload.attributes)}-{len(parts)}"
        segments = tuple(segment for _, part in parts for segment in part.segments)
        size = sum(part.size for _, part in parts)
        made = StoredObject(call.key, segments, size, etag, upload.begun_s, upload.attributes)
        store(call, made)
        bucket.end(upload)
    fields = [
        ("Location", f"http://{call.headers['host']}{call.request.path}"),
        ("Bucket", call.bucket_name),
        ("Key", call.key),
        ("ETag", quoted(etag)),
    ]
    headers = upload.attributes.encryption_headers()
    return xml_answer("CompleteMultipartUploadResult", fields, headers)


def abort_multipart_upload(call: Call) -> Answer:
    """AbortMultipartUpload."""
    call.allow("AbortMultipartUpload")
    with call.bucket.lock:
        call.bucket.end(call.bucket.upload(call.key, call.query["uploadId"]))
    return Answer(204)


def list_parts(call: Call) -> Answer:
    """ListParts."""
    call.allow("ListMultipartUploadParts")
    limit = min(_number(call, "max-parts", call.limits.max_page), call.limits.max_page)
    after = _number(call, "part-number-marker", 0)
    with call.bucket.lock:
        upload = call.bucket.upload(call.key, call.query["uploadId"])
        numbers = sorted(number for number in upload.parts if number > after)
        page = [(number, upload.parts[number]) for number in numbers[:limit]]
    fields: list[tuple[str, object]] = [
        ("Bucket", call.bucket_name),
        ("Key", call.key),
        ("UploadId", upload.upload_id),
        ("Owner", [("ID", OWNER), ("DisplayName", OWNER)]),
        ("StorageClass", upload.attributes.storage_class),
        ("PartNumberMarker", after),
        ("MaxParts", limit),
        ("IsTruncated", str(len(numbers) > limit).lower()),
    ]
    if page:
        fields.append(("NextPartNumberMarker", page[-1][0]))
    for number, part in page:
        line = [
            ("PartNumber", number),
            ("LastModified", iso_time(part.modified_s)),
            ("ETag", quoted(part.etag)),
            ("Size", part.size),
        ]
        fields.append(("Part", line))
    return xml_answer("ListPartsResult", fields)


def _target(call: Call) -> tuple[Upload, int]:
    """The upload, and the part's number. Raises S3Error: InvalidArgument, NoSuchUpload."""
    call.allow("PutObject")
    text, most = call.query["partNumber"], call.limits.max_parts
    number = int(text) if text.isascii() and text.isdigit() else 0
    if not 1 <= number <= most:
        message = f"Part number must be an integer between 1 and {most}, inclusive"
        fields = {"ArgumentName": "partNumber", "ArgumentValue": text}
        raise S3Error("InvalidArgument", message, fields=fields)
    with call.bucket.lock:
        return call.bucket.upload(call.key, call.query["uploadId"]), number


def _put_part(call: Call, number: int, part: Part) -> None:
    """Raises S3Error: NoSuchUpload, where it ended in the meantime."""
    bucket = call.bucket
    with bucket.lock:
        bucket.put_part(bucket.upload(call.key, call.query["uploadId"]), number, part)


def _chosen(asked: Element, upload: Upload, limits: Limits) -> list[tuple[int, Part]]:
    """The parts that a document names.

    Raises S3Error: MalformedXML, InvalidPartOrder, InvalidPart, EntityTooSmall, EntityTooLarge.
    """
    try:
        named = [
            (int(item.findtext("PartNumber") or ""), (item.findtext("ETag") or "").strip('"'))
            for item in asked.iterfind("Part")
        ]
    except ValueError:
        raise S3Error("MalformedXML") from None
    if not 1 <= len(named) <= limits.max_parts:
        raise S3Error("MalformedXML")
    numbers = [number for number, _ in named]
    if any(before >= after for before, after in itertools.pairwise(numbers)):
        raise S3Error("InvalidPartOrder", fields={"UploadId": upload.upload_id})
    parts = []
    for number, etag in named:
        part = upload.parts.get(number)
        if part is None or part.etag != etag:
            fields = {"UploadId": upload.upload_id, "PartNumber": number, "ETag": etag}
            raise S3Error("InvalidPart", fields=fields)
        parts.append((number, part))
    for number, part in parts[:-1]:
        if part.size < limits.min_part_bytes:
            fields = {
                "ProposedSize": part.size,
                "MinSizeAllowed": limits.min_part_bytes,
                "PartNumber": number,
                "ETag": part.etag,
            }
            raise S3Error("EntityTooSmall", fields=fields)
    size = sum(part.size for _, part in parts)
    if size > limits.max_object_bytes:
        fields = {"ProposedSize": size, "MaxSizeAllowed": limits.max_object_bytes}
        raise S3Error("EntityTooLarge", fields=fields)
    return parts


def _number(call: Call, name: str, default: int) -> int:
    text = call.query.get(name, "")
    if not text:
        return default
    if not (text.isascii() and text.isdigit()):
        raise S3Error("InvalidArgument", fields={"ArgumentName": name, "ArgumentValue": text})
    return int(text)
