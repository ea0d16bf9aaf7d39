"""Listings: pages, common prefixes, and keys that XML cannot hold."""

from __future__ import annotations

from urllib.parse import unquote_plus
from xml.etree import ElementTree as ET

import pytest

from tests.servers.raw import Raw, Reply

KEYS = ["a", "a/1", "a/2", "a/b/3", "b", "ä", "\U0001f600", "z z+%&<>\"'"]


def page(raw: Raw, **query: object) -> Reply:
    names = {name.replace("_", "-"): str(value) for name, value in query.items()}
    return raw("GET", None, query={"list-type": "2", **names})


def lines(reply: Reply) -> list[str]:
    return reply.texts("Contents/Key") + reply.texts("CommonPrefixes/Prefix")


@pytest.fixture
def filled(raw: Raw) -> Raw:
    for key in KEYS:
        raw("PUT", key, key.encode())
    return raw


def test_everything_in_the_order_of_utf8(filled: Raw) -> None:
    reply = page(filled)
    assert reply.texts("Contents/Key") == sorted(KEYS, key=str.encode)
    assert reply.text("KeyCount") == str(len(KEYS))
    assert reply.text("IsTruncated") == "false"
    assert reply.texts("Contents/Size") == [str(len(key.encode())) for key in sorted(KEYS)]
    assert reply.texts("Contents/ETag")[0] == filled("HEAD", "a").etag


@pytest.mark.parametrize(
    ("query", "keys", "prefixes"),
    [
        ({"delimiter": "/"}, ["a", "b", "z z+%&<>\"'", "ä", "\U0001f600"], ["a/"]),
        ({"delimiter": "/", "prefix": "a/"}, ["a/1", "a/2"], ["a/b/"]),
        ({"prefix": "a/"}, ["a/1", "a/2", "a/b/3"], []),
        ({"prefix": "none"}, [], []),
        ({"prefix": "a", "start_after": "a/1"}, ["a/2", "a/b/3"], []),
        ({"max_keys": "0"}, [], []),
    ],
)
def test_what_is_chosen(
    filled: Raw, query: dict[str, str], keys: list[str], prefixes: list[str]
) -> None:
    reply = page(filled, **query)
    assert reply.texts("Contents/Key") == keys
    assert reply.texts("CommonPrefixes/Prefix") == prefixes
    assert reply.text("KeyCount") == str(len(keys) + len(prefixes))
    assert reply.text("IsTruncated") == "false"


@pytest.mark.parametrize("delimiter", ["", "/"])
@pytest.mark.parametrize("limit", [1, 2, 3])
def test_pages(filled: Raw, limit: int, delimiter: str) -> None:
    wanted = {"delimiter": delimiter} if delimiter else {}
    found: list[str] = []
    reply = page(filled, max_keys=limit, **wanted)
    while True:
        found += lines(reply)
        assert len(lines(reply)) <= limit
        if reply.text("IsTruncated") == "false":
            break
        token = reply.text("NextContinuationToken")
        reply = page(filled, max_keys=limit, continuation_token=token, **wanted)
    assert sorted(found) == sorted(lines(page(filled, **wanted)))


def test_a_page_is_a_thousand_lines_at_most(raw: Raw) -> None:
    raw.server.limits(max_page=3)
    for number in range(4):
        raw("PUT", str(number))
    reply = page(raw, max_keys=9999)
    assert (reply.text("MaxKeys"), reply.text("KeyCount")) == ("3", "3")


@pytest.mark.parametrize(
    "query",
    [
        {"max_keys": "-1"},
        {"max_keys": "x"},
        {"continuation_token": "invented"},
        {"encoding_type": "xml"},
    ],
)
def test_what_is_refused(raw: Raw, query: dict[str, str]) -> None:
    assert page(raw, **query).refusal == "400 InvalidArgument"


def test_control_characters_are_no_xml(raw: Raw) -> None:
    raw("PUT", "a\x01b")
    reply = page(raw)
    assert b"a&#x1;b" in reply.body
    with pytest.raises(ET.ParseError):
        ET.fromstring(reply.body)


def test_encoding_type_url(raw: Raw) -> None:
    keys = ["a\x01b", "d/e f", "g\nh", "ü+%"]
    for key in keys:
        raw("PUT", key)
    reply = page(raw, encoding_type="url")
    assert reply.text("EncodingType") == "url"
    assert reply.texts("Contents/Key") == ["a%01b", "d/e+f", "g%0Ah", "%C3%BC%2B%25"]
    some = page(raw, encoding_type="url", prefix="d/", delimiter=" ", start_after="a\x01b")
    assert some.text("Prefix") == "d/"
    assert some.text("Delimiter") == "+"
    assert some.text("StartAfter") == "a%01b"
    assert [unquote_plus(text) for text in some.texts("CommonPrefixes/Prefix")] == ["d/e "]


def test_white_space_survives(raw: Raw) -> None:
    raw("PUT", "a\r\n\tb")
    assert page(raw).texts("Contents/Key") == ["a\r\n\tb"]


def test_the_first_version(filled: Raw) -> None:
    def marked(marker: str, **query: str) -> Reply:
        return filled("GET", None, query={"marker": marker, "max-keys": "2", **query})

    reply = marked("a")
    assert reply.texts("Contents/Key") == ["a/1", "a/2"]
    assert (reply.text("IsTruncated"), reply.text("NextMarker")) == ("true", "")
    reply = marked("", delimiter="/")
    assert (lines(reply), reply.text("NextMarker")) == (["a", "a/"], "a/")
    assert lines(marked("a/", delimiter="/")) == ["b", "z z+%&<>\"'"]


def test_a_listing_that_lags(filled: Raw) -> None:
    filled.server.settings(filled.bucket, list_lag_s=3600)
    filled("PUT", "new", b"")
    filled("PUT", "a", b"longer")
    filled("DELETE", "b")
    reply = page(filled)
    assert reply.texts("Contents/Key") == sorted(KEYS, key=str.encode)
    assert reply.texts("Contents/Size")[0] == "1"
    assert filled("HEAD", "new").status == 200
    filled.server.settings(filled.bucket, list_lag_s=0)
    assert "new" in page(filled).texts("Contents/Key")
