"""Objects: content, attributes, conditions, ranges, deletion."""

from __future__ import annotations

import base64
import hashlib
import io
import time
from email.utils import formatdate

import pytest

from tests.servers.raw import Raw

KMS = {
    "x_amz_server_side_encryption": "aws:kms",
    "x_amz_server_side_encryption_aws_kms_key_id": "key-1",
}
ATTRIBUTES = {
    "content_type": "text/csv",
    "content_encoding": "gzip",
    "cache_control": "no-store",
    "content_disposition": "attachment",
    "content_language": "de",
    "expires": "Thu, 01 Dec 1994 16:00:00 GMT",
    "x_amz_meta_colour": "red",
    "x_amz_website_redirect_location": "/other",
    "x_amz_storage_class": "STANDARD_IA",
    **KMS,
}


def test_another_client_reads_and_writes(raw: Raw) -> None:
    client = raw.server.client()
    content = bytes(range(256)) * 40_000
    client.put_object(raw.bucket, "ü/ö +", io.BytesIO(content), len(content), part_size=5 << 20)
    response = client.get_object(raw.bucket, "ü/ö +")
    assert response.read() == content
    response.release_conn()
    assert [item.object_name for item in client.list_objects(raw.bucket, "ü/")] == ["ü/ö +"]


def test_attributes_come_back(raw: Raw) -> None:
    raw("PUT", "key", b"content", **ATTRIBUTES, x_amz_tagging="a=1&b=2")
    for method in ("GET", "HEAD"):
        reply = raw(method, "key")
        for name, value in ATTRIBUTES.items():
            assert reply.headers[name.replace("_", "-")] == value
        assert reply.headers["x-amz-tagging-count"] == "2"
        assert reply.headers["content-length"] == "7"


def test_what_is_default(raw: Raw) -> None:
    md5 = hashlib.md5(b"content").hexdigest()
    assert raw("PUT", "key", b"content").etag == f'"{md5}"'
    headers = raw("HEAD", "key").headers
    assert headers["content-type"] == "binary/octet-stream"
    assert headers["x-amz-server-side-encryption"] == "AES256"
    assert "x-amz-storage-class" not in headers


def test_what_kms_encrypts_has_no_md5_as_etag(raw: Raw) -> None:
    assert hashlib.md5(b"content").hexdigest() not in raw("PUT", "key", b"content", **KMS).etag


def test_metadata_that_is_not_ascii_comes_back_encoded(raw: Raw) -> None:
    raw("PUT", "key", x_amz_meta_a="ü")
    assert raw("HEAD", "key").headers["x-amz-meta-a"] == "=?UTF-8?B?w7w=?="


@pytest.mark.parametrize(
    ("key", "headers", "refusal"),
    [
        ("x" * 1024, {}, "200"),
        ("x" * 1025, {}, "400 KeyTooLongError"),
        ("ü" * 512, {}, "200"),
        ("ü" * 513, {}, "400 KeyTooLongError"),
        ("key", {"x_amz_meta_a": "x" * 2047}, "200"),
        ("key", {"x_amz_meta_a": "x" * 2048}, "400 MetadataTooLarge"),
        ("key", {"x_amz_storage_class": "COLD"}, "400 InvalidStorageClass"),
        ("key", {"x_amz_acl": "everybody"}, "400 InvalidArgument"),
        ("key", {"x_amz_server_side_encryption": "rot13"}, "400 InvalidArgument"),
        ("key", {"x_amz_tagging": "&".join(f"t{i}=1" for i in range(11))}, "400 BadRequest"),
        ("key", {"x_amz_tagging": f"{'t' * 129}=1"}, "400 InvalidTag"),
        ("key", {"x_amz_tagging": f"t={'1' * 257}"}, "400 InvalidTag"),
        ("key", {"if_unmodified_since": formatdate(usegmt=True)}, "501 NotImplemented"),
    ],
)
def test_what_an_object_may_be(raw: Raw, key: str, headers: dict[str, str], refusal: str) -> None:
    assert raw("PUT", key, **headers).refusal == refusal


def test_a_key_is_utf8(raw: Raw) -> None:
    assert raw.send("GET", f"/{raw.bucket}/%ff", {}, b"").refusal == "400 InvalidURI"


def test_content_that_is_too_large(raw: Raw) -> None:
    raw.server.limits(max_put_bytes=7)
    assert raw("PUT", "key", b"content").refusal == "200"
    reply = raw("PUT", "key", b"content+")
    assert reply.refusal == "400 EntityTooLarge"
    assert (reply.text("ProposedSize"), reply.text("MaxSizeAllowed")) == ("8", "7")


def test_conditional_writes(raw: Raw) -> None:
    assert raw("PUT", "key", if_match='"x"').refusal == "404 NoSuchKey"
    first = raw("PUT", "key", b"1", if_none_match="*")
    assert first.refusal == "200"
    assert raw("PUT", "key", b"2", if_none_match="*").refusal == "412 PreconditionFailed"
    assert raw("PUT", "key", b"2", if_match='"x"').refusal == "412 PreconditionFailed"
    assert raw("PUT", "key", b"2", if_none_match=first.etag).refusal == "501 NotImplemented"
    assert raw("GET", "key").body == b"1"
    assert raw("PUT", "key", b"2", if_match=first.etag).refusal == "200"
    assert raw("DELETE", "key", if_match=first.etag).refusal == "412 PreconditionFailed"


def test_conditional_reads(raw: Raw) -> None:
    etag = raw("PUT", "key", b"content").etag
    past, future = (formatdate(time.time() + delta, usegmt=True) for delta in (-9, 9))
    assert raw("GET", "key", if_match=etag).status == 200
    assert raw("GET", "key", if_match='"x"').refusal == "412 PreconditionFailed"
    assert raw("GET", "key", if_none_match='"x"').status == 200
    unchanged = raw("GET", "key", if_none_match=etag)
    assert (unchanged.status, unchanged.body, unchanged.etag) == (304, b"", etag)
    assert raw("GET", "key", if_modified_since=past).status == 200
    assert raw("GET", "key", if_modified_since=future).status == 304
    assert raw("GET", "key", if_unmodified_since=past).status == 412
    assert raw("GET", "key", if_unmodified_since=future).status == 200
    # ETag conditions have precedence: "GetObject".
    assert raw("GET", "key", if_match=etag, if_unmodified_since=past).status == 200
    assert raw("GET", "key", if_none_match=etag, if_modified_since=past).status == 304


@pytest.mark.parametrize(
    ("wanted", "status", "content_range", "body"),
    [
        ("bytes=0-0", 206, "bytes 0-0/10", b"0"),
        ("bytes=3-", 206, "bytes 3-9/10", b"3456789"),
        ("bytes=8-99", 206, "bytes 8-9/10", b"89"),
        ("bytes=-2", 206, "bytes 8-9/10", b"89"),
        ("bytes=-99", 206, "bytes 0-9/10", b"0123456789"),
        ("bytes=5-4", 200, None, b"0123456789"),
        ("bytes=0-1,3-4", 200, None, b"0123456789"),
    ],
)
def test_ranges(raw: Raw, wanted: str, status: int, content_range: str, body: bytes) -> None:
    raw("PUT", "key", b"0123456789")
    reply = raw("GET", "key", range=wanted)
    assert (reply.status, reply.headers.get("content-range")) == (status, content_range)
    assert reply.body == body


@pytest.mark.parametrize("wanted", ["bytes=10-", "bytes=10-20", "bytes=-0"])
def test_a_range_outside_of_the_object(raw: Raw, wanted: str) -> None:
    raw("PUT", "key", b"0123456789")
    reply = raw("GET", "key", range=wanted)
    assert reply.refusal == "416 InvalidRange"
    assert reply.text("ActualObjectSize") == "10"


@pytest.mark.parametrize("kind", ["GLACIER", "DEEP_ARCHIVE"])
def test_an_archived_object_has_no_content(raw: Raw, kind: str) -> None:
    raw("PUT", "key", b"content", x_amz_storage_class=kind)
    assert raw("GET", "key").refusal == "403 InvalidObjectState"
    assert raw("HEAD", "key").headers["x-amz-storage-class"] == kind
    copy = raw("PUT", "copy", x_amz_copy_source=f"{raw.bucket}/key")
    assert copy.refusal == "403 InvalidObjectState"


def test_what_is_absent_is_deleted_too(raw: Raw) -> None:
    raw("PUT", "key")
    assert [raw("DELETE", "key").status for _ in range(2)] == [204, 204]
    assert raw("GET", "key").refusal == "404 NoSuchKey"


def delete_document(*keys: str, quiet: bool = False) -> bytes:
    objects = "".join(f"<Object><Key>{key}</Key></Object>" for key in keys)
    return f"<Delete>{objects}<Quiet>{str(quiet).lower()}</Quiet></Delete>".encode()


def delete_many(raw: Raw, body: bytes, **headers: str):
    digest = base64.b64encode(hashlib.md5(body).digest()).decode()
    return raw("POST", None, body, query={"delete": ""}, **(headers or {"content_md5": digest}))


def test_many_are_deleted(raw: Raw) -> None:
    raw("PUT", "a&b")
    reply = delete_many(raw, delete_document("a&amp;b", "absent"))
    assert reply.texts("Deleted/Key") == ["a&b", "absent"]
    assert delete_many(raw, delete_document("x", quiet=True)).texts("Deleted/Key") == []
    assert raw("HEAD", "a&b").status == 404


def test_a_bulk_deletion_needs_a_digest(raw: Raw) -> None:
    body = delete_document("a")
    sha256 = base64.b64encode(hashlib.sha256(body).digest()).decode()
    bad = base64.b64encode(bytes(16)).decode()
    assert delete_many(raw, body, x_id="none").refusal == "400 InvalidRequest"
    assert delete_many(raw, body, content_md5=bad).refusal == "400 BadDigest"
    assert delete_many(raw, body, x_amz_checksum_sha256=sha256).refusal == "200"
    # The name of an algorithm without a checksum is not enough.
    assert delete_many(raw, body, x_amz_sdk_checksum_algorithm="CRC32").refusal == (
        "400 InvalidRequest"
    )


def test_a_bulk_deletion_is_of_a_thousand(raw: Raw) -> None:
    assert delete_many(raw, delete_document(*map(str, range(1000)))).refusal == "200"
    assert delete_many(raw, delete_document(*map(str, range(1001)))).refusal == "400 MalformedXML"
    assert delete_many(raw, delete_document()).refusal == "400 MalformedXML"


def test_tags(raw: Raw) -> None:
    raw("PUT", "key", b"content", x_amz_tagging="a=1")
    before = raw("HEAD", "key").headers
    body = b"<Tagging><TagSet><Tag><Key>b</Key><Value>2</Value></Tag></TagSet></Tagging>"
    assert raw("PUT", "key", body, query={"tagging": ""}).refusal == "200"
    found = raw("GET", "key", query={"tagging": ""})
    assert found.texts("TagSet/Tag/Key") == ["b"]
    assert found.texts("TagSet/Tag/Value") == ["2"]
    assert raw("DELETE", "key", query={"tagging": ""}).status == 204
    assert raw("GET", "key", query={"tagging": ""}).texts("TagSet/Tag") == []
    after = raw("HEAD", "key").headers
    assert (after["etag"], after["last-modified"]) == (before["etag"], before["last-modified"])


def test_acls(raw: Raw) -> None:
    raw.server.settings(raw.bucket, acls=True)
    raw("PUT", "key", x_amz_acl="public-read")
    found = raw("GET", "key", query={"acl": ""})
    assert found.texts(".//Permission") == ["FULL_CONTROL", "READ"]
    assert found.texts(".//URI") == ["http://acs.amazonaws.com/groups/global/AllUsers"]
    assert raw("PUT", "key", query={"acl": ""}, x_amz_grant_read='id="someone"').status == 200
    assert raw("GET", "key", query={"acl": ""}).texts(".//Grantee/ID") == [
        "strict-owner",
        "someone",
    ]
    # What was given out is taken back.
    document = raw("GET", "key", query={"acl": ""}).body
    assert raw("PUT", "key", document, query={"acl": ""}).status == 200
    raw.server.settings(raw.bucket, acls=False)
    assert raw("PUT", "other", x_amz_acl="public-read").refusal == (
        "400 AccessControlListNotSupported"
    )


@pytest.mark.parametrize(
    ("method", "query"),
    [
        ("GET", {"versionId": "1"}),
        ("GET", {"attributes": ""}),
        ("GET", {"response-content-type": "text/html"}),
        ("GET", {"partNumber": "1"}),
        ("POST", {"restore": ""}),
    ],
)
def test_what_is_not_made_says_so(raw: Raw, method: str, query: dict[str, str]) -> None:
    raw("PUT", "key")
    assert raw(method, "key", query=query).refusal == "501 NotImplemented"


def test_an_object_that_is_replaced_is_read_to_its_end(raw: Raw) -> None:
    client = raw.server.client()
    content = bytes(8 << 20)
    raw("PUT", "key", content)
    response = client.get_object(raw.bucket, "key")
    head = response.read(1000)
    raw("PUT", "key", b"new")
    assert head + response.read() == content
    response.release_conn()
    assert raw("GET", "key").body == b"new"
