"""Bytes that no store sends, many of them: each is an answer or an error of the tree.

``make test`` gives each parser 5,000 inputs, ``make soak`` 1,000,000.
"""

from __future__ import annotations

import json
import math
import resource
import socket
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from sidecar.contract.spec import StoreName
from sidecar.errors import StoreProtocolError
from sidecar.mounter.store.azure.requests import parse_blocks, parse_tags
from sidecar.mounter.store.http.addresses import Address
from sidecar.mounter.store.http.connection import Connection
from sidecar.mounter.store.http.fields import BrokenResponse
from sidecar.mounter.store.http.retry import Retryable
from sidecar.mounter.store.http_store import HttpStore
from sidecar.mounter.store.interface import Page
from sidecar.mounter.store.list_reader import ListReader
from sidecar.mounter.store.request_builder import BAD_ANSWER, ListQuery
from sidecar.units import MIB
from tests.store.mutations import MOST_BYTES, Mutator
from tests.store.raw import CLOUDS, Entry, content, open_at, page, response
from tests.support.clouds import CountingObserver

SHORT_INPUTS = 5_000
SOAK_INPUTS = 1_000_000
SETTLED_AFTER = 2_000
GROWTH_BYTES = 24 * MIB
"""What a process may gain over all inputs, and for any one of them."""
LENGTHS = [
    pytest.param(SHORT_INPUTS, id="short"),
    pytest.param(SOAK_INPUTS, id="soak", marks=pytest.mark.soak),
]
_CHUNKED = (
    b'HTTP/1.1 206 Partial Content\r\nTransfer-Encoding: chunked\r\nETag: "17"\r\n\r\n'
    b"5\r\nhello\r\nA;x=y\r\n0123456789\r\n0\r\nbehind: x\r\n\r\n"
)
RESPONSES = [
    response(b"hello", ETag='"17"', Connection="keep-alive"),
    content(b"0123456789") + response(b"next"),
    _CHUNKED,
    _CHUNKED + response(status="404 Not Found"),
    b"HTTP/1.1 100 Continue\r\n\r\n" + response(b"hello"),
    b"HTTP/1.0 200 OK\r\n\r\nto the end",
    response(status="204 No Content"),
]
HTTP_WORDS = [
    b"HTTP/1.1 ", b"HTTP/1.0 ", b"HTTP/2 ", b"200 OK", b"100 Continue", b"304 ", b"999 ",
    b"Content-Length: ", b"Transfer-Encoding: chunked\r\n", b"Transfer-Encoding: gzip\r\n",
    b"Connection: close\r\n", b"\r\n\r\n", b"0\r\n\r\n", b"ffffffffffffffff\r\n", b"a: b\r\n",
]  # fmt: skip
XML_WORDS = [
    b"<Contents>", b"</Contents>", b"<Key>", b"</Key>", b"<Size>", b"</Size>", b"<Blob>", b"<a/>",
    b"<Name>", b"<Name Encoded=\"true\">%ff", b"</Name>", b"<Properties>", b"</Properties>",
    b"<!DOCTYPE a [<!ENTITY b \"c\">]>", b"&b;", b"&amp;", b"&#13;", b"&#1;", b"&#xD800;", b"&#0;",
    b"<![CDATA[", b"]]>", b"<!--", b"-->", b"<?xml version=\"1.0\" encoding=\"utf-16\"?>", b"%ff",
    b"<EncodingType>url</EncodingType>", b"<IsTruncated>true</IsTruncated>", b" xmlns=\"x\"",
    b"<CommonPrefixes>", b"<Prefix>", b"10000-01-01T00:00:00Z", b"Tue, 31 Feb 2026 10:20:30 GMT",
]  # fmt: skip
JSON_WORDS = [
    b"null", b"true", b"1e400", b"-0", b"\"\\ud800\"", b"\\ud800", b"{}", b"[]", b"[[[[", b"]]]]",
    b"\"items\":", b"\"name\":", b"\"size\":", b"\"generation\":", b"\"metadata\":", b"\"kind\":",
    b"\"nextPageToken\":", b"\"kind\": \"storage#objects\"", b"\"timeCreated\":", b"\"\\u0000\"",
]  # fmt: skip


class _Given:
    """In place of an HttpClient and its response: the body is given."""

    body = b""

    def receive(self, _: Any, __: Any, read: Callable[[_Given], Page], **___: Any) -> Page:
        return read(self)

    def read_all(self, most_bytes: int) -> bytes:
        assert len(self.body) <= most_bytes
        return self.body


def documents(kind: StoreName) -> list[bytes]:
    entries = [Entry("a"), Entry("d/\u00e4 b", size="123456"), Entry("z", version="18446744073")]
    pages = [page(kind, entries, "token", ["p/", "q/"]), page(kind, entries[:1]), page(kind)]
    if kind == "gcs":
        rich = json.loads(pages[0])
        for item in rich["items"]:
            item.update(metadata={"mode": "644"}, contentType="text/plain", cacheControl="x")
        pages.append(json.dumps(rich).encode())
    return pages


@contextmanager
def memory_bounded() -> Iterator[None]:
    """A block in which no more than ``GROWTH_BYTES`` can be had beside what is there."""
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    room = pages * resource.getpagesize() + GROWTH_BYTES
    resource.setrlimit(resource.RLIMIT_AS, (room, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))


def run(name: str, inputs: int, mutator: Mutator, feed: Callable[[bytes], str]) -> None:
    """Feed mutated inputs; ``feed`` says how each ended and raises what must not be."""
    outcomes: Counter[str] = Counter()
    data = b""
    try:
        for _ in range(SETTLED_AFTER):
            data = mutator.next()
            outcomes[feed(data)] += 1
        with memory_bounded():
            for _ in range(inputs - SETTLED_AFTER):
                data = mutator.next()
                outcomes[feed(data)] += 1
    except BaseException:
        print(f"{name}, input: {data!r}")
        raise
    print(f"{name}: {sum(outcomes.values())} inputs, {dict(outcomes)}")
    assert sum(outcomes.values()) == inputs
    assert min(outcomes.values()) > inputs / 1000, "each way is taken"


@pytest.mark.parametrize("inputs", LENGTHS)
def test_http(inputs: int) -> None:
    mutator = Mutator(RESPONSES, HTTP_WORDS, rb"[: ]([^\r\n]*)\r\n", inputs)

    def feed(data: bytes) -> str:
        ours, theirs = socket.socketpair()
        with ours, theirs:
            theirs.sendall(data)
            theirs.shutdown(socket.SHUT_WR)
            connection = Connection(ours, Address((ours.family, ())), 5.0, 60.0)
            try:
                for _ in range(3):
                    answer = connection.response()
                    assert 200 <= answer.status <= 999
                    assert not any(set("\r\n\0") & set(value) for value in answer.fields.values())
                    assert len(answer.read_all(MOST_BYTES)) <= MOST_BYTES
                    if answer.will_close or not connection.is_quiet:
                        break
            except (BrokenResponse, ConnectionResetError) as error:
                return type(error).__name__
            return "read"

    run("http", inputs, mutator, feed)


@pytest.mark.parametrize("inputs", LENGTHS)
@pytest.mark.parametrize("kind", CLOUDS)
def test_listings(kind: StoreName, inputs: int) -> None:
    words, value = (JSON_WORDS, rb'"([^"]*)"') if kind == "gcs" else (XML_WORDS, rb">([^<>]*)<")
    mutator = Mutator(documents(kind), words, value, inputs)
    observer = CountingObserver()
    store = open_at(kind, "http://127.0.0.1:9", observer, with_metadata=True)
    assert isinstance(store, HttpStore)
    given = _Given()
    requests = store._pages._requests
    reader = ListReader(given, requests, store.errors, observer)  # type: ignore[arg-type]
    query = ListQuery("", None, "/", 1000)

    def feed(data: bytes) -> str:
        given.body = data
        observer.left_out.clear()
        try:
            found = reader.page(query)
        except (StoreProtocolError, Retryable) as error:
            return type(error).__name__
        for info in found.objects:
            assert info.key.encode()
            assert 0 <= info.size_bytes < 10**16
            assert math.isfinite(info.mtime_s)
            assert info.version.isascii()
            assert info.version.isprintable()
            for name, value in {**(info.metadata or {}), **(info.properties or {})}.items():
                assert (name + value).encode()
        assert all(isinstance(prefix, str) for prefix in found.prefixes)
        assert found.next_token is None or found.next_token.encode()
        return "hidden" if observer.left_out else "read"

    run(kind, inputs, mutator, feed)
    store.close()


BLOCKS = (
    b'<?xml version="1.0" encoding="utf-8"?><BlockList><CommittedBlocks>'
    b"<Block><Name>MDAwMDAwMDE=</Name><Size>8388608</Size></Block>"
    b"<Block><Name>MDAwMDAwMDI=</Name><Size>17</Size></Block></CommittedBlocks></BlockList>"
)
BLOB_TAGS = (
    b"<Tags><TagSet><Tag><Key>team</Key><Value>a b/c</Value></Tag>"
    b"<Tag><Key>x</Key><Value></Value></Tag></TagSet></Tags>"
)


@pytest.mark.parametrize("inputs", LENGTHS)
@pytest.mark.parametrize(("parse", "document"), [(parse_blocks, BLOCKS), (parse_tags, BLOB_TAGS)])
def test_documents_of_azure(
    parse: Callable[[bytes], str | list[tuple[str, int]]], document: bytes, inputs: int
) -> None:
    def feed(data: bytes) -> str:
        try:
            found = parse(data)
        except BAD_ANSWER:
            return "refused"
        if isinstance(found, str):
            assert found.isascii()
            assert found.isprintable()
        else:
            assert all(0 <= size < 10**16 for _, size in found)
        return "read"

    run(parse.__name__, inputs, Mutator([document], XML_WORDS, rb">([^<>]*)<", inputs), feed)
