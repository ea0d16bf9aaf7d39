"""Multipart uploads: the rules for parts, and the resulting object."""

from __future__ import annotations

import hashlib
import time
from email.utils import parsedate_to_datetime

import pytest

from sidecar.units import MIB
from tests.servers.raw import Raw


@pytest.fixture
def small(raw: Raw) -> Raw:
    """Parts of 10 to 20 bytes, at most 5 of them."""
    raw.server.limits(min_part_bytes=10, max_part_bytes=20, max_parts=5)
    return raw


def test_the_etag_is_of_the_parts(small: Raw) -> None:
    parts = [b"a" * 10, b"b" * 20, b"c"]
    made = small.upload("key", *parts)
    digests = b"".join(hashlib.md5(part).digest() for part in parts)
    assert made.etag == f'"{hashlib.md5(digests).hexdigest()}-3"'
    found = small("GET", "key")
    assert (found.body, found.etag) == (b"".join(parts), made.etag)
    assert small("GET", "key", range="bytes=9-11").body == b"abb"


def test_a_range_of_many_parts(small: Raw) -> None:
    small.upload("key", b"0123456789", b"abcdefghij", b"ABCDEFGHIJ")
    assert small("GET", "key", range="bytes=5-24").body == b"56789abcdefghijABCDE"


def test_a_part_that_is_too_small(small: Raw) -> None:
    upload = small.begin("key")
    etags = {
        number: small.part("key", upload, number, b"x" * size).etag
        for number, size in {1: 10, 2: 9, 3: 10}.items()
    }
    reply = small.complete("key", upload, etags)
    assert reply.refusal == "400 EntityTooSmall"
    assert (reply.text("PartNumber"), reply.text("MinSizeAllowed")) == ("2", "10")
    # The upload still exists; its last part may be small.
    assert small.complete("key", upload, {1: etags[1], 2: etags[2]}).refusal == "200"


def test_the_real_limit_is_5_mib(raw: Raw) -> None:
    assert raw.upload("key", bytes(5 * MIB - 1), b"x").refusal == "400 EntityTooSmall"
    assert raw.upload("key", bytes(5 * MIB), b"x").refusal == "200"


def test_a_part_that_is_too_large(small: Raw) -> None:
    assert small.part("key", small.begin("key"), 1, b"x" * 21).refusal == "400 EntityTooLarge"


@pytest.mark.parametrize("number", [0, 6, -1, "x", "1.0", ""])
def test_part_numbers(small: Raw, number: int | str) -> None:
    reply = small.part("key", small.begin("key"), number, b"x")
    assert reply.refusal == "400 InvalidArgument"
    assert "between 1 and 5" in reply.text("Message")


def test_the_real_limit_is_ten_thousand_parts(raw: Raw) -> None:
    upload = raw.begin("key")
    assert raw.part("key", upload, 10_000, b"x").refusal == "200"
    assert raw.part("key", upload, 10_001, b"x").refusal == "400 InvalidArgument"


def test_the_list_of_parts(small: Raw) -> None:
    upload = small.begin("key")
    one, two = (small.part("key", upload, number, b"x" * 10).etag for number in (1, 2))
    assert small.complete("key", upload, {}).refusal == "400 MalformedXML"
    assert small.complete("key", upload, {2: two, 1: one}).refusal == "400 InvalidPartOrder"
    assert small.complete("key", upload, {1: '"0"', 2: two}).refusal == "400 InvalidPart"
    assert small.complete("key", upload, {1: one, 3: two}).refusal == "400 InvalidPart"
    assert small("HEAD", "key").status == 404
    # Parts that are not named are dropped.
    assert small.complete("key", upload, {2: two}).refusal == "200"
    assert small("HEAD", "key").headers["content-length"] == "10"


def test_a_part_is_replaced(small: Raw) -> None:
    upload = small.begin("key")
    before = small.part("key", upload, 1, b"before").etag
    after = small.part("key", upload, 1, b"after").etag
    assert small.complete("key", upload, {1: before}).refusal == "400 InvalidPart"
    assert small.complete("key", upload, {1: after}).refusal == "200"
    assert small("GET", "key").body == b"after"


def test_an_upload_that_has_ended(small: Raw) -> None:
    upload = small.begin("key")
    etag = small.part("key", upload, 1, b"x").etag
    assert small.complete("other", upload, {1: etag}).refusal == "404 NoSuchUpload"
    assert small.complete("key", upload, {1: etag}).refusal == "200"
    assert small.complete("key", upload, {1: etag}).refusal == "404 NoSuchUpload"
    assert small.part("key", upload, 1, b"x").refusal == "404 NoSuchUpload"
    aborted = small.begin("key")
    query = {"uploadId": aborted}
    assert small("DELETE", "key", query=query).status == 204
    assert small("DELETE", "key", query=query).refusal == "404 NoSuchUpload"
    assert small("GET", "key", query=query).refusal == "404 NoSuchUpload"


def test_attributes_are_those_of_the_beginning(small: Raw) -> None:
    small.upload("key", b"x", content_type="text/csv", x_amz_meta_a="b", x_amz_tagging="a=1")
    headers = small("HEAD", "key").headers
    assert (headers["content-type"], headers["x-amz-meta-a"]) == ("text/csv", "b")
    assert headers["x-amz-tagging-count"] == "1"


def test_the_time_is_that_of_the_beginning(small: Raw) -> None:
    begun_s = time.time()
    upload = small.begin("key")
    etag = small.part("key", upload, 1, b"x").etag
    time.sleep(max(0.0, int(begun_s) + 2.0 - time.time()))
    small.complete("key", upload, {1: etag})
    modified = parsedate_to_datetime(small("HEAD", "key").headers["last-modified"])
    assert modified.timestamp() in {int(begun_s), int(begun_s) + 1}


def test_conditions_of_a_completion(small: Raw) -> None:
    upload = small.begin("key")
    etags = {1: small.part("key", upload, 1, b"x").etag}
    assert small.complete("key", upload, etags, if_match='"x"').refusal == "404 NoSuchKey"
    there = small("PUT", "key", b"other").etag
    assert small.complete("key", upload, etags, if_none_match="*").refusal == (
        "412 PreconditionFailed"
    )
    assert small.complete("key", upload, etags, if_match='"x"').refusal == "412 PreconditionFailed"
    assert small("GET", "key").body == b"other"
    assert small.complete("key", upload, etags, if_match=there).refusal == "200"


def test_parts_are_listed(small: Raw) -> None:
    upload = small.begin("key")
    for number in (3, 1, 5):
        small.part("key", upload, number, b"x" * number)
    query = {"uploadId": upload, "max-parts": "2"}
    first = small("GET", "key", query=query)
    assert first.texts("Part/PartNumber") == ["1", "3"]
    assert first.text("IsTruncated") == "true"
    query["part-number-marker"] = first.text("NextPartNumberMarker")
    second = small("GET", "key", query=query)
    assert second.texts("Part/PartNumber") == ["5"]
    assert second.texts("Part/Size") == ["5"]
    assert second.text("IsTruncated") == "false"


def test_uploads_are_listed(small: Raw) -> None:
    ids = {key: small.begin(key) for key in ("a", "b/1", "b/2", "c\x01")}
    again = small.begin("a")

    def page(**query: str):
        names = {name.replace("_", "-"): value for name, value in query.items()}
        return small("GET", None, query={"uploads": "", "encoding-type": "url", **names})

    everything = page()
    assert everything.texts("Upload/Key") == ["a", "a", "b/1", "b/2", "c%01"]
    assert set(everything.texts("Upload/UploadId")) == {again, *ids.values()}
    assert page(prefix="b/").texts("Upload/UploadId") == [ids["b/1"], ids["b/2"]]
    assert page(delimiter="/").texts("CommonPrefixes/Prefix") == ["b/"]
    found, markers = [], {"key_marker": "", "upload_id_marker": ""}
    while True:
        reply = page(max_uploads="2", **markers)
        found += reply.texts("Upload/UploadId")
        if reply.text("IsTruncated") == "false":
            break
        markers = {
            "key_marker": reply.text("NextKeyMarker"),
            "upload_id_marker": reply.text("NextUploadIdMarker"),
        }
    assert found == everything.texts("Upload/UploadId")


def test_one_of_two_completions_wins(small: Raw) -> None:
    """The loser's bytes are deleted."""
    one, two = small.begin("key"), small.begin("key")
    etags = [{1: small.part("key", upload, 1, upload[:9].encode()).etag} for upload in (one, two)]
    small.complete("key", one, etags[0])
    small.complete("key", two, etags[1])
    assert small("GET", "key").body == two[:9].encode()
