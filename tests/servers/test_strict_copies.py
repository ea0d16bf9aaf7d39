"""CopyObject and UploadPartCopy."""

from __future__ import annotations

import hashlib
import time
from email.utils import formatdate
from urllib.parse import quote

import pytest

from sidecar.units import MIB
from tests.servers.raw import Raw
from tests.servers.test_strict_objects import ATTRIBUTES, KMS


def copy(raw: Raw, source: str, target: str, **headers: str):
    return raw("PUT", target, x_amz_copy_source=quote(f"{raw.bucket}/{source}"), **headers)


def copy_part(raw: Raw, source: str, wanted: str | None, upload: str = "", **headers: str):
    ranged = {} if wanted is None else {"x_amz_copy_source_range": wanted}
    where = quote(f"/{raw.bucket}/{source}")
    upload = upload or raw.begin("target")
    return raw.part("target", upload, 1, x_amz_copy_source=where, **ranged, **headers)


def test_a_copy(raw: Raw) -> None:
    etag = raw("PUT", "a b/ü+", b"content").etag
    reply = copy(raw, "a b/ü+", "copy")
    assert (reply.refusal, reply.etag) == ("200", etag)
    assert raw("GET", "copy").body == b"content"
    raw("DELETE", "a b/ü+")
    assert raw("GET", "copy").body == b"content"


def test_a_copy_of_parts_is_one_piece(raw: Raw) -> None:
    raw.server.limits(min_part_bytes=1)
    raw.upload("key", b"one", b"two")
    assert copy(raw, "key", "copy").etag == f'"{hashlib.md5(b"onetwo").hexdigest()}"'


def test_a_copy_keeps_metadata_and_tags_and_nothing_else(raw: Raw) -> None:
    raw.server.settings(raw.bucket, acls=True)
    raw("PUT", "key", **ATTRIBUTES, x_amz_tagging="a=1", x_amz_acl="public-read")
    copy(raw, "key", "copy")
    headers = raw("HEAD", "copy").headers
    dropped = {"x_amz_storage_class", "x_amz_website_redirect_location", *KMS}
    for name, value in ATTRIBUTES.items():
        if name not in dropped:
            assert headers[name.replace("_", "-")] == value
    assert "x-amz-storage-class" not in headers
    assert "x-amz-website-redirect-location" not in headers
    assert headers["x-amz-server-side-encryption"] == "AES256"
    assert headers["x-amz-tagging-count"] == "1"
    assert raw("GET", "copy", query={"acl": ""}).texts(".//Permission") == ["FULL_CONTROL"]


def test_replace_drops_what_is_not_repeated(raw: Raw) -> None:
    raw("PUT", "key", **ATTRIBUTES, x_amz_tagging="a=1")
    assert copy(
        raw, "key", "key", x_amz_metadata_directive="REPLACE", x_amz_meta_new="1"
    ).refusal == ("200")
    headers = raw("HEAD", "key").headers
    assert headers["x-amz-meta-new"] == "1"
    assert headers["content-type"] == "binary/octet-stream"
    for name in ATTRIBUTES.keys() - {"content_type", "x_amz_server_side_encryption"}:
        assert name.replace("_", "-") not in headers
    # Tags have their own directive.
    assert headers["x-amz-tagging-count"] == "1"
    copy(raw, "key", "other", x_amz_tagging_directive="REPLACE", x_amz_tagging="b=1&c=2")
    assert raw("GET", "other", query={"tagging": ""}).texts(".//Key") == ["b", "c"]


@pytest.mark.parametrize(
    ("headers", "refusal"),
    [
        ({}, "400 InvalidRequest"),
        ({"x_amz_meta_new": "1"}, "400 InvalidRequest"),
        ({"x_amz_metadata_directive": "REPLACE"}, "200"),
        ({"x_amz_storage_class": "STANDARD_IA"}, "200"),
        ({"x_amz_website_redirect_location": "/x"}, "200"),
        ({"x_amz_server_side_encryption": "AES256"}, "200"),
        ({"x_amz_metadata_directive": "KEEP"}, "400 InvalidArgument"),
    ],
)
def test_a_copy_onto_itself_changes_something(
    raw: Raw, headers: dict[str, str], refusal: str
) -> None:
    raw("PUT", "key", x_amz_meta_old="1")
    assert copy(raw, "key", "key", **headers).refusal == refusal


def test_a_source_that_is_too_large(raw: Raw) -> None:
    raw("PUT", "key", b"content")
    raw.server.limits(max_copy_bytes=6, min_ranged_source_bytes=6)
    assert copy(raw, "key", "copy").refusal == "400 InvalidRequest"
    assert copy_part(raw, "key", None).refusal == "400 InvalidRequest"
    assert copy_part(raw, "key", "bytes=0-6").refusal == "200"
    raw.server.limits(max_part_bytes=6, min_ranged_source_bytes=6)
    assert copy_part(raw, "key", "bytes=0-6").refusal == "400 InvalidRequest"
    assert copy_part(raw, "key", "bytes=0-5").refusal == "200"


@pytest.mark.parametrize(
    ("wanted", "refusal"),
    [
        ("bytes=0-9", "200"),
        ("bytes=9-9", "200"),
        ("bytes=0-10", "400 InvalidArgument"),
        ("bytes=10-10", "400 InvalidArgument"),
        ("bytes=5-4", "400 InvalidArgument"),
        ("bytes=5-", "400 InvalidArgument"),
        ("bytes=-5", "400 InvalidArgument"),
        ("0-4", "400 InvalidArgument"),
        ("bytes=0-1,2-3", "400 InvalidArgument"),
    ],
)
def test_source_ranges(raw: Raw, wanted: str, refusal: str) -> None:
    raw.server.limits(min_ranged_source_bytes=9)
    raw("PUT", "key", b"0123456789")
    assert copy_part(raw, "key", wanted).refusal == refusal


def test_ranges_are_of_objects_above_5_mib(raw: Raw) -> None:
    """UploadPartCopy: "You can copy a range only if the source object is greater than 5 MB"."""
    raw("PUT", "small", bytes(5 * MIB))
    raw("PUT", "large", bytes(5 * MIB + 1))
    assert copy_part(raw, "small", "bytes=0-1").refusal == "400 InvalidRequest"
    assert copy_part(raw, "small", None).refusal == "200"
    assert copy_part(raw, "large", "bytes=0-1").refusal == "200"


def test_copied_parts_are_as_large_as_others(raw: Raw) -> None:
    raw("PUT", "key", bytes(6 * MIB))
    upload = raw.begin("target")
    etags = {1: copy_part(raw, "key", "bytes=0-9", upload).etag}
    etags[2] = raw.part("target", upload, 2, b"x").etag
    assert raw.complete("target", upload, etags).refusal == "400 EntityTooSmall"


def test_content_of_copied_parts(raw: Raw) -> None:
    raw.server.limits(min_part_bytes=1, min_ranged_source_bytes=1)
    raw("PUT", "key", b"0123456789")
    upload = raw.begin("target")
    etags = {1: copy_part(raw, "key", "bytes=2-4", upload).etag}
    assert etags[1] == f'"{hashlib.md5(b"234").hexdigest()}"'
    etags[2] = raw.part("target", upload, 2, b"new").etag
    raw("DELETE", "key")
    assert raw.complete("target", upload, etags).refusal == "200"
    assert raw("GET", "target").body == b"234new"


@pytest.mark.parametrize("part", [False, True])
def test_conditions_of_the_source(raw: Raw, part: bool) -> None:
    etag = raw("PUT", "key", b"content").etag
    past, future = (formatdate(time.time() + delta, usegmt=True) for delta in (-9, 9))

    def refusal(**condition: str) -> str:
        headers = {f"x_amz_copy_source_{name}": value for name, value in condition.items()}
        reply = (
            copy_part(raw, "key", None, **headers) if part else copy(raw, "key", "copy", **headers)
        )
        return reply.refusal

    failed = "412 PreconditionFailed"
    assert refusal(if_match=etag) == "200"
    assert refusal(if_match='"x"') == failed
    assert refusal(if_none_match=etag) == failed
    assert refusal(if_none_match='"x"') == "200"
    assert refusal(if_modified_since=future) == failed
    assert refusal(if_unmodified_since=past) == failed
    assert refusal(if_match=etag, if_unmodified_since=past) == "200"
    assert refusal(if_none_match=etag, if_modified_since=past) == failed


def test_conditions_of_the_target(raw: Raw) -> None:
    raw("PUT", "key", b"content")
    raw("PUT", "there")
    assert copy(raw, "key", "there", if_none_match="*").refusal == "412 PreconditionFailed"
    assert copy(raw, "key", "absent", if_none_match="*").refusal == "200"


@pytest.mark.parametrize(
    ("source", "refusal"),
    [
        ("{bucket}/absent", "404 NoSuchKey"),
        ("no-such-bucket/key", "404 NoSuchBucket"),
        ("{bucket}", "400 InvalidArgument"),
        ("{bucket}/", "400 InvalidArgument"),
        ("{bucket}/%ff", "400 InvalidArgument"),
        ("{bucket}/key?versionId=1", "501 NotImplemented"),
    ],
)
def test_sources_that_are_not_there(raw: Raw, source: str, refusal: str) -> None:
    raw("PUT", "key")
    headers = {"x_amz_copy_source": source.format(bucket=raw.bucket)}
    assert raw("PUT", "copy", **headers).refusal == refusal
