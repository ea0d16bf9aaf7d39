"""Which operation a request is: "Amazon S3 API operations"."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from urllib.parse import unquote

from tests.support.strict_s3 import (
    bucket_operations,
    copy_operations,
    listing,
    multipart_operations,
    object_operations,
)
from tests.support.strict_s3.call import Call
from tests.support.strict_s3.errors import S3Error
from tests.support.strict_s3.http_front import Answer, Request

OPERATIONS: Mapping[str, Callable[[Call], Answer]] = {
    "AbortMultipartUpload": multipart_operations.abort_multipart_upload,
    "CompleteMultipartUpload": multipart_operations.complete_multipart_upload,
    "CopyObject": copy_operations.copy_object,
    "CreateBucket": bucket_operations.create_bucket,
    "CreateMultipartUpload": multipart_operations.create_multipart_upload,
    "DeleteBucket": bucket_operations.delete_bucket,
    "DeleteObject": object_operations.delete_object,
    "DeleteObjectTagging": object_operations.delete_object_tagging,
    "DeleteObjects": object_operations.delete_objects,
    "GetBucketLocation": bucket_operations.get_bucket_location,
    "GetBucketOwnershipControls": bucket_operations.get_bucket_ownership_controls,
    "GetObject": object_operations.get_object,
    "GetObjectAcl": object_operations.get_object_acl,
    "GetObjectTagging": object_operations.get_object_tagging,
    "HeadBucket": bucket_operations.head_bucket,
    "HeadObject": object_operations.head_object,
    "ListBuckets": bucket_operations.list_buckets,
    "ListMultipartUploads": listing.list_multipart_uploads,
    "ListObjects": listing.list_objects,
    "ListObjectsV2": listing.list_objects_v2,
    "ListParts": multipart_operations.list_parts,
    "PutObject": object_operations.put_object,
    "PutObjectAcl": object_operations.put_object_acl,
    "PutObjectTagging": object_operations.put_object_tagging,
    "UploadPart": multipart_operations.upload_part,
    "UploadPartCopy": multipart_operations.upload_part_copy,
}

# By method and the query that tells what is meant; an empty one is the resource itself.
_OF_BUCKET = {
    ("GET", ""): "ListObjects",
    ("GET", "location"): "GetBucketLocation",
    ("GET", "ownershipControls"): "GetBucketOwnershipControls",
    ("GET", "uploads"): "ListMultipartUploads",
    ("HEAD", ""): "HeadBucket",
    ("PUT", ""): "CreateBucket",
    ("DELETE", ""): "DeleteBucket",
    ("POST", "delete"): "DeleteObjects",
}
_OF_OBJECT = {
    ("GET", ""): "GetObject",
    ("HEAD", ""): "HeadObject",
    ("PUT", ""): "PutObject",
    ("DELETE", ""): "DeleteObject",
    ("GET", "tagging"): "GetObjectTagging",
    ("PUT", "tagging"): "PutObjectTagging",
    ("DELETE", "tagging"): "DeleteObjectTagging",
    ("GET", "acl"): "GetObjectAcl",
    ("PUT", "acl"): "PutObjectAcl",
    ("POST", "uploads"): "CreateMultipartUpload",
    ("PUT", "uploadId"): "UploadPart",
    ("POST", "uploadId"): "CompleteMultipartUpload",
    ("DELETE", "uploadId"): "AbortMultipartUpload",
    ("GET", "uploadId"): "ListParts",
}
_COPIES = {"PutObject": "CopyObject", "UploadPart": "UploadPartCopy"}
_MEANT = {query for _, query in (*_OF_BUCKET, *_OF_OBJECT)} - {""}
_PARAMETERS = frozenset({
    "continuation-token",
    "delimiter",
    "encoding-type",
    "fetch-owner",
    "key-marker",
    "list-type",
    "marker",
    "max-keys",
    "max-parts",
    "max-uploads",
    "part-number-marker",
    "partNumber",
    "prefix",
    "start-after",
    "upload-id-marker",
    "x-id",
})  # fmt: skip


@dataclass(frozen=True)
class Route:
    """What a request is about.

    Attributes:
        bucket: empty for the service itself.
        key: empty for the bucket itself.
    """

    operation: str
    bucket: str
    key: str
    query: Mapping[str, str]


def route(request: Request) -> Route:
    """Path-style: ``/bucket/key``. Raises S3Error: InvalidURI, MethodNotAllowed, NotImplemented."""
    try:
        bucket, _, key = unquote(request.path.removeprefix("/"), errors="strict").partition("/")
        query = {
            unquote(name.replace("+", " "), errors="strict"): unquote(
                value.replace("+", " "), errors="strict"
            )
            for name, _, value in (word.partition("=") for word in request.query.split("&") if word)
        }
    except UnicodeDecodeError:
        raise S3Error("InvalidURI") from None
    if not request.path.startswith("/") or "\0" in key:
        raise S3Error("InvalidURI")
    return Route(_operation(request, bucket, key, query), bucket, key, query)


def _operation(request: Request, bucket: str, key: str, query: Mapping[str, str]) -> str:
    meant = [name for name in query if name in _MEANT]
    unknown = [
        name
        for name in query
        if name not in _MEANT | _PARAMETERS and not name.startswith("response-")
    ]
    if unknown or len(meant) > 1:
        raise S3Error("NotImplemented", fields={"Query": ", ".join(unknown or meant)})
    if not bucket:
        if request.method != "GET":
            raise S3Error("MethodNotAllowed")
        return "ListBuckets"
    table = _OF_OBJECT if key else _OF_BUCKET
    operation = table.get((request.method, meant[0] if meant else ""))
    if operation is None:
        raise S3Error("MethodNotAllowed")
    if operation == "ListObjects" and query.get("list-type") == "2":
        return "ListObjectsV2"
    if operation == "UploadPart" and "partNumber" not in query:
        raise S3Error("MethodNotAllowed")
    if "x-amz-copy-source" in request.headers:
        return _COPIES.get(operation, operation)
    return operation
