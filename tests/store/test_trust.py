"""A server that is broken, or means harm: what it can take of time and memory, and what it cannot.

Every call ends with an error of the tree, or with what is right. Why these bounds:
docs/decisions/0031-what-a-store-may-answer.md.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import threading
import tracemalloc
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from functools import partial
from typing import TypeVar

import pytest

from sidecar.contract.spec import StoreName
from sidecar.errors import StoreError, StoreProtocolError, Unavailable
from sidecar.mounter.store import http_store, list_reader
from sidecar.mounter.store.http import timeouts
from sidecar.mounter.store.interface import Store
from sidecar.units import MIB
from tests.store.raw import (
    BODY,
    CLOUDS,
    VERSION,
    Entry,
    content,
    fetch,
    open_at,
    page,
    response,
)
from tests.support.clouds import CountingObserver
from tests.support.proxy import Head
from tests.support.raw_server import Answer, Piece, RawServer

SILENCE_S = 0.5
DRIP_S = 0.02
"""Far less than the silence that is waited for, also on a machine under load."""
PATIENCE_S = 300.0
"""A call that takes so long is taken for one without an end."""
MOST_MEMORY_BYTES = 160 * MIB

T = TypeVar("T")
Call = Callable[[Store], object]
Open = Callable[..., tuple[Store, RawServer, CountingObserver]]


@pytest.fixture(params=CLOUDS)
def kind(request: pytest.FixtureRequest) -> StoreName:
    found: StoreName = request.param
    return found


@pytest.fixture
def opened() -> Iterator[Open]:
    """Opens the store of a cloud on a server with the given answers."""
    with ExitStack() as stack:

        def open_with(
            kind: StoreName, answer: Answer, **options: object
        ) -> tuple[Store, RawServer, CountingObserver]:
            server = stack.enter_context(RawServer(answer))
            observer = CountingObserver()
            store = open_at(kind, server.endpoint, observer, **options)  # type: ignore[arg-type]
            stack.callback(store.close)
            return store, server, observer

        yield open_with


@pytest.fixture
def hasty(monkeypatch: pytest.MonkeyPatch) -> None:
    """Short time-outs, so that a test need not take a minute."""
    monkeypatch.setattr(timeouts, "SOCKET_TIMEOUT_S", SILENCE_S)
    monkeypatch.setattr(list_reader, "PAGE_TIMEOUT_S", SILENCE_S)
    for name in ("QUICK_TIMEOUT_S", "WRITE_SILENCE_S", "TRANSFER_TIMEOUT_S"):
        monkeypatch.setattr(http_store, name, SILENCE_S)


def ended(action: Callable[[], T]) -> T:
    """What an action returns or raises; a failure if it seems to have no end."""
    pool = ThreadPoolExecutor(1)
    try:
        return pool.submit(action).result(PATIENCE_S)
    finally:
        pool.shutdown(wait=False)


def list_it(store: Store) -> object:
    return store.list_page("")


def get_it(store: Store) -> object:
    return fetch(store)


def put_it(store: Store) -> object:
    return store.put("key", b"content")


# --- time ----------------------------------------------------------------------------------


def dripping(start: bytes, drop: bytes, pause_s: float = DRIP_S) -> Answer:
    """What begins well and then comes drop by drop, for ever."""

    def answer(request: Head, body: bytes) -> Iterable[Piece]:
        yield start
        while True:
            yield pause_s
            yield drop

    return answer


PARTIAL = content(bytes(100)).partition(b"\r\n\r\n")[0] + b"\r\n\r\n"
CHUNKED = (
    b"HTTP/1.1 206 Partial Content\r\nTransfer-Encoding: chunked\r\n"
    b'Content-Range: bytes 0-99/200\r\nx-goog-generation: 17\r\nETag: "17"\r\n\r\n'
)
LISTED = b"HTTP/1.1 200 OK\r\nContent-Length: 1000000\r\n\r\n"
ENDLESS = {
    "a head that drips": dripping(b"HTTP/1.1 200 OK\r\nx: ", b"y"),
    "a head of many fields": dripping(b"HTTP/1.1 200 OK\r\n", b"a: b\r\n"),
    "a head without an end": dripping(b"HTTP/1.1 200 OK\r\nx: ", b"y" * 4096, 0.0),
    "interim responses, slow": dripping(b"", b"HTTP/1.1 102 Processing\r\n\r\n"),
    "interim responses, many": dripping(b"", b"HTTP/1.1 103 Early Hints\r\n\r\n" * 100, 0.0),
    "interim responses of status 20": dripping(b"", b"HTTP/1.1 20 OK\r\n\r\n"),
    "a body that drips": dripping(PARTIAL, b"y"),
    "a chunk that drips": dripping(CHUNKED + b"64\r\n", b"y"),
    "a chunk's size that drips": dripping(CHUNKED, b"0"),
    "a chunk's extension that drips": dripping(CHUNKED + b"64;", b"y"),
}
TRAILERS = CHUNKED + b"64\r\n" + BODY[:100] + b"\r\n0\r\n"


@pytest.mark.parametrize("fault", ENDLESS)
def test_a_get_without_an_end_ends(kind: StoreName, fault: str, opened: Open, hasty: None) -> None:
    store, _, _ = opened(kind, ENDLESS[fault])
    with pytest.raises((Unavailable, StoreProtocolError)):
        ended(lambda: fetch(store))


@pytest.mark.parametrize(
    "answer",
    [dripping(TRAILERS, b"a: b\r\n"), dripping(TRAILERS, b"a: b\r\n" * 1000, 0.0)],
    ids=["slow", "many"],
)
def test_trailers_without_an_end_end(
    kind: StoreName, answer: Answer, opened: Open, hasty: None
) -> None:
    """All of the content came before them; the connection is not used again."""
    store, server, _ = opened(kind, answer)
    for number in (1, 2):
        assert ended(lambda: fetch(store)) == BODY[:100]
        assert server.connections == number


@pytest.mark.parametrize("call", [list_it, put_it])
@pytest.mark.parametrize(
    "fault",
    [name for name in ENDLESS if "head" in name or "interim" in name],
)
def test_other_calls_end_too(
    kind: StoreName, call: Call, fault: str, opened: Open, hasty: None
) -> None:
    store, _, _ = opened(kind, ENDLESS[fault])
    with pytest.raises((Unavailable, StoreProtocolError)):
        ended(lambda: call(store))


@pytest.mark.parametrize(
    "answer",
    [
        dripping(LISTED, b" "),
        dripping(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n", b"1\r\n \r\n"),
        dripping(b"HTTP/1.1 200 OK\r\n\r\n", b" "),  # to the end of the connection
        dripping(b"HTTP/1.1 500 Oh\r\nContent-Length: 60000\r\n\r\n", b" "),
    ],
)
def test_a_page_that_drips_ends(kind: StoreName, answer: Answer, opened: Open, hasty: None) -> None:
    store, _, _ = opened(kind, answer)
    with pytest.raises((Unavailable, StoreProtocolError)):
        ended(lambda: store.list_page(""))


def test_the_next_attempt_goes_on_behind_a_drip(kind: StoreName, opened: Open, hasty: None) -> None:
    """What dripped is kept: it was right."""
    drips = itertools.chain([True], itertools.repeat(False))

    def answer(request: Head, body: bytes) -> Iterable[Piece]:
        first, last = map(int, request.fields["range"].removeprefix("bytes=").split("-"))
        whole = content(BODY[first : last + 1], offset=first)
        if not next(drips):
            yield whole
            return
        head, end, _ = whole.partition(b"\r\n\r\n")
        yield head + end
        for byte in BODY[:80]:
            yield bytes([byte])
            yield 0.05

    store, _, observer = opened(kind, answer, retry_budget_s=PATIENCE_S)
    assert ended(lambda: fetch(store)) == BODY[:100]
    assert observer.retries


def test_what_flows_is_never_cut(kind: StoreName, opened: Open, hasty: None) -> None:
    """A body that takes several times the time of an attempt, at a steady rate."""
    size, piece = 3 * MIB, timeouts.PROGRESS_BYTES

    def answer(request: Head, body: bytes) -> Iterable[Piece]:
        head, end, whole = content(bytes(size), total=size).partition(b"\r\n\r\n")
        yield head + end
        for start in range(0, size, piece):
            yield 2 * SILENCE_S / 20
            yield whole[start : start + piece]

    store, server, _ = opened(kind, answer)
    assert ended(lambda: fetch(store, size)) == bytes(size)
    assert len(server.requests) == 1


def test_time_is_given_anew_for_content_only(monkeypatch: pytest.MonkeyPatch) -> None:
    now_s = 1000.0
    monkeypatch.setattr(timeouts.time, "monotonic", lambda: now_s)
    deadline = timeouts.Deadline()
    deadline.begin(10.0)
    for _ in range(100):  # as slow as it may be
        now_s += 9.9
        deadline.check()
        deadline.moved(timeouts.PROGRESS_BYTES)
    now_s += 9.9
    deadline.moved(timeouts.PROGRESS_BYTES - 1)
    deadline.check()
    now_s += 0.2
    with pytest.raises(TimeoutError):
        deadline.check()


# --- framing -------------------------------------------------------------------------------


def heads(*fields: bytes, body: bytes = b"x" * 100) -> bytes:
    lines = b"".join(field + b"\r\n" for field in fields)
    return CHUNKED.replace(b"Transfer-Encoding: chunked\r\n", lines) + body


BROKEN = {
    "an unknown coding": heads(b"Transfer-Encoding: gzip, chunked"),
    "no coding": heads(b"Transfer-Encoding: identity"),
    "an empty coding": heads(b"Transfer-Encoding:"),
    "length and chunks": heads(
        b"Content-Length: 100", b"Transfer-Encoding: chunked", body=b"64\r\n" + bytes(100)
    ),
    "two lengths": heads(b"Content-Length: 50", b"Content-Length: 100"),
    "two codings": heads(b"Transfer-Encoding: x", b"Transfer-Encoding: chunked"),
    "a signed length": heads(b"Content-Length: +100"),
    "an underscore": heads(b"Content-Length: 1_00"),
    "a superscript": heads(b"Content-Length: \xb2"),
    "a list of lengths": heads(b"Content-Length: 100, 100"),
    "too many digits": heads(b"Content-Length: " + b"0" * 15 + b"100"),
    "5000 digits": heads(b"Content-Length: " + b"1" * 5000),
    "a hexadecimal size": CHUNKED + b"0x64\r\n" + bytes(100) + b"\r\n0\r\n\r\n",
    "a signed size": CHUNKED + b"+64\r\n" + bytes(100) + b"\r\n0\r\n\r\n",
    "an underscore in a size": CHUNKED + b"6_4\r\n" + bytes(100) + b"\r\n0\r\n\r\n",
    "a size of 5000 digits": CHUNKED + b"0" * 5000 + b"64\r\n" + bytes(100) + b"\r\n0\r\n\r\n",
    "a chunk that is longer": CHUNKED + b"64\r\n" + bytes(110) + b"\r\n0\r\n\r\n",
    "status 20": b"HTTP/1.1 20 OK\r\n" + heads(b"Content-Length: 100").partition(b"\r\n")[2],
    "another protocol": b"HTTP/1.1 101 Switching Protocols\r\n\r\n",
    "an ETag with a CR": heads(b"Content-Length: 100", b'ETag: "1\r7"'),
    "an ETag with a LF": heads(b"Content-Length: 100", b'ETag: "1\n7"'),
    "an ETag with a NUL": heads(b"Content-Length: 100", b'ETag: "1\x007"'),
    "a thousand fields": heads(b"Content-Length: 100", *[b"a: b"] * 1001),
    "a long field": heads(b"Content-Length: 100", b"a: " + b"b" * 20_000),
    "no end": heads(b"Content-Length: 100", *[b"a: " + b"b" * 10_000] * 8),
}


@pytest.mark.parametrize("fault", BROKEN)
def test_a_response_that_can_be_read_two_ways_is_not_read(
    kind: StoreName, fault: str, opened: Open, hasty: None
) -> None:
    store, _, _ = opened(kind, lambda request, body: [BROKEN[fault], None])
    with pytest.raises((StoreProtocolError, Unavailable)):
        ended(lambda: fetch(store))


def test_it_is_asked_again_where_that_helps(kind: StoreName, opened: Open, hasty: None) -> None:
    answers = iter([BROKEN["an ETag with a CR"], BROKEN["length and chunks"], content(BODY[:100])])
    store, server, _ = opened(kind, lambda *_: [next(answers)], retry_budget_s=PATIENCE_S)
    assert ended(lambda: fetch(store)) == BODY[:100]
    assert server.connections == 3


def test_what_lies_behind_a_body_answers_nothing(kind: StoreName, opened: Open) -> None:
    """Else it would be the answer to whatever is asked next on this connection."""
    other = content(b"z" * 100)
    store, server, _ = opened(kind, lambda *_: [content(BODY[:100]) + other])
    for number in (1, 2, 3):
        assert fetch(store) == BODY[:100]
        assert server.connections == number


def test_what_comes_behind_a_body_later_answers_nothing(kind: StoreName, opened: Open) -> None:
    sent = threading.Semaphore(0)

    def answer(request: Head, body: bytes) -> Iterable[Piece]:
        yield content(BODY[:100])
        yield content(b"z" * 100)
        sent.release()

    store, server, _ = opened(kind, answer)
    for number in (1, 2, 3):
        assert fetch(store) == BODY[:100]
        assert server.connections == number
        sent.acquire()  # what was sent over loopback has arrived


@pytest.mark.parametrize("call", [list_it, get_it])
def test_an_answer_that_belongs_to_no_request_is_asked_for_again(
    kind: StoreName, call: Call, opened: Open
) -> None:
    """What comes between a look at the connection and the request cannot be told otherwise."""
    stray = iter([response(b"belongs to no request")])

    def answer(request: Head, body: bytes) -> Iterable[Piece]:
        yield next(stray, b"")
        yield content(BODY[:100]) if "range" in request.fields else response(page(kind))

    store, server, observer = opened(kind, answer)
    call(store)
    assert [reason for _, reason in observer.retries] == ["connection"]
    assert server.connections == 2


# --- what a listing says -------------------------------------------------------------------

GOOD = [Entry("a"), Entry("z")]
BAD_SIZES = ["-5", "+5", "5_0", " 5", "5.0", "\u00b2", "\u0665", "0x5", "", "1" * 17, "1" * 5000]
BAD_TIMES = {
    "s3": [
        "10000-01-01T00:00:00Z",
        "-2026-11-24T10:20:30Z",
        "2026-13-24T10:20:30Z",
        "2026-11-24T10:20:30",
        "yesterday",
        "2026-11-24T10:20:30Z" + "0" * 5000,
    ],
    "azure": [
        "Tue, 24 Nov 10000 10:20:30 GMT",
        "Tue, 24 Nov -026 10:20:30 GMT",
        "Tue, 24 Nov 2026 24:20:30 GMT",
        "Tue, 31 Feb 2026 10:20:30 GMT",
        "Tue, 24 Nov 2026 10:20:30 +0100",
        "Tue, \u0662\u0664 Nov 2026 10:20:30 GMT",
        "yesterday",
    ],
}
BAD_TIMES["gcs"] = BAD_TIMES["s3"]
BAD_VERSIONS = {
    "s3": ["1&#13;7", "1&#10;7", "1\u00e97", "1" * 2000],
    "azure": ["1&#13;7", "1&#10;7", "1\u00e97", "1" * 2000],
    "gcs": ["1\r7", "-17", "x", "1" * 21, "\u0661"],
}


def bad_entries(kind: StoreName) -> Iterator[Entry]:
    yield from (Entry("m", size=size) for size in BAD_SIZES)
    yield from (Entry("m", time=time) for time in BAD_TIMES[kind])
    yield from (Entry("m", version=version) for version in BAD_VERSIONS[kind])
    yield Entry("")
    if kind == "gcs":
        yield Entry("m\ud800")


BAD = [(kind, entry) for kind in CLOUDS for entry in bad_entries(kind)]


@pytest.mark.parametrize(("cloud", "entry"), BAD, ids=range(len(BAD)))
def test_one_bad_entry_does_not_hide_the_others(
    cloud: StoreName, entry: Entry, opened: Open, caplog: pytest.LogCaptureFixture
) -> None:
    document = page(cloud, [GOOD[0], entry, GOOD[1]])
    store, _, observer = opened(cloud, lambda *_: [response(document)])
    for _ in range(2):
        assert [info.key for info in store.list_page("").objects] == ["a", "z"]
    assert observer.left_out == ["entry", "entry"]
    lines = [record.getMessage() for record in caplog.records if "key left out" in record.message]
    assert len(lines) == 1
    assert len(lines[0]) < 1000


def test_a_key_that_was_not_asked_for_is_left_out(kind: StoreName, opened: Open) -> None:
    """Cut where the prefix should end, it would be another name."""
    document = page(kind, [Entry("root/d/a"), Entry("other"), Entry("root/e")], prefixes=["x/y/"])
    store, _, observer = opened(kind, lambda *_: [response(document)], prefix="root/")
    found = store.list_page("d/")
    assert [info.key for info in found.objects] == ["d/a"]
    assert found.prefixes == []
    assert observer.left_out == ["entry"] * 3


def test_a_listing_of_nothing_but_bad_entries_is_empty(kind: StoreName, opened: Open) -> None:
    document = page(kind, [Entry("m", size="-1")] * 5)
    store, _, observer = opened(kind, lambda *_: [response(document)])
    assert store.list_page("").objects == []
    assert len(observer.left_out) == 5


def test_a_page_that_leads_to_itself_is_no_listing(kind: StoreName, opened: Open) -> None:
    tokens = itertools.chain(["x", "y"], itertools.repeat("z"))
    names = (f"name{number:06d}" for number in itertools.count())
    store, _, _ = opened(
        kind, lambda *_: [response(page(kind, [Entry(next(names))], next(tokens)))]
    )
    with pytest.raises(StoreProtocolError):
        ended(lambda: list_all(store))


def test_a_listing_of_empty_pages_is_no_listing(kind: StoreName, opened: Open) -> None:
    tokens = map(str, itertools.count())
    store, _, _ = opened(kind, lambda *_: [response(page(kind, [], next(tokens)))])
    with pytest.raises(StoreProtocolError):
        ended(lambda: list_all(store))


def test_a_token_that_came_once_too_often_is_asked_for_again(kind: StoreName, opened: Open) -> None:
    pages = iter(
        [page(kind, [Entry("a")], "1"), page(kind, [Entry("a")], "1"), page(kind, [Entry("b")])]
    )
    store, _, observer = opened(kind, lambda *_: [response(next(pages))], retry_budget_s=PATIENCE_S)
    assert list_all(store) == ["a", "b"]
    assert observer.retries == [("list", "server_error")]


def test_a_long_listing_comes_to_its_end(kind: StoreName, opened: Open) -> None:
    """Also where pages have no names, or one prefix that comes twice."""
    pages = [page(kind, [Entry(f"a{number:04d}")], f"t{number}") for number in range(300)]
    pages += [page(kind, [], f"empty{number}") for number in range(300)]
    pages += [page(kind, [], f"prefix{number}", ["p/"]) for number in range(5)]
    answers = iter([*pages, page(kind, [Entry("z")])])
    store, _, _ = opened(kind, lambda *_: [response(next(answers))])
    assert len(list_all(store)) == 301


def list_all(store: Store) -> list[str]:
    names, token = [], None
    while True:
        found = store.list_page("", token)
        names += [info.key for info in found.objects]
        token = found.next_token
        if token is None:
            return names


# --- memory --------------------------------------------------------------------------------

_SIZE = 12 * MIB


def filled(begin: bytes, unit: bytes, end: bytes) -> bytes:
    return begin + unit * ((_SIZE - len(begin) - len(end)) // len(unit)) + end


def named(begin: bytes, unit: bytes, end: bytes) -> bytes:
    """As :func:`filled`, with a number in each unit."""
    count = _SIZE // (len(unit) + 6)
    return begin + b"".join(unit % number for number in range(count)) + end


LARGE: dict[str, Callable[[], bytes]] = {
    "elements": partial(filled, b"<ListBucketResult>", b"<a/>", b"</ListBucketResult>"),
    "fields": partial(
        filled, b"<ListBucketResult><Contents>", b"<Key>a</Key>", b"</Contents></ListBucketResult>"
    ),
    "depth": partial(filled, b"<ListBucketResult>", b"<a>", b""),
    "attributes": partial(named, b"<ListBucketResult", b" a%06d=''", b"/>"),
    "names": partial(named, b"<ListBucketResult>", b"<a%06d/>", b"</ListBucketResult>"),
    "characters that are wide": partial(
        filled, "<ListBucketResult>\U0001f642".encode(), b"a", b"</ListBucketResult>"
    ),
    "characters that are forbidden": partial(
        filled, "<ListBucketResult>\U0001f642".encode(), b"\x01", b"</ListBucketResult>"
    ),
    "references": partial(filled, b"<ListBucketResult>", b"&#1;", b"</ListBucketResult>"),
    "lists": partial(filled, b'{"kind": "storage#objects", "items": [', b"[],", b"0]}"),
    "mappings": partial(filled, b'{"kind": "storage#objects", "items": [', b"{},", b"0]}"),
    "names of values": partial(named, b'{"kind": "storage#objects"', b',"%06d":0', b"}"),
    "lists in lists": partial(filled, b'{"kind": "storage#objects", "items": ', b"[", b""),
    "numbers": partial(filled, b'{"kind": "storage#objects", "items": [', b"1.5,", b"0]}"),
}


@pytest.mark.parametrize("document", LARGE)
def test_a_page_takes_little_more_memory_than_bytes(
    kind: StoreName, document: str, opened: Open
) -> None:
    body = LARGE[document]()
    if kind == "azure":
        body = body.replace(b"ListBucketResult", b"EnumerationResults")
    answer = response(body)
    store, _, _ = opened(kind, lambda *_: [answer])
    store.close()  # nothing of its own is counted
    store, _, _ = opened(kind, lambda *_: [answer])
    tracemalloc.start()
    try:
        with contextlib.suppress(StoreProtocolError):
            store.list_page("")
        peak_bytes = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak_bytes < MOST_MEMORY_BYTES


@pytest.mark.parametrize("count", [20, 60_000])
def test_a_deep_page_is_no_page(kind: StoreName, opened: Open, count: int) -> None:
    root = b"ListBucketResult" if kind == "s3" else b"EnumerationResults"
    document = b"<%s>%s%s</%s>" % (root, b"<Blobs>" * count, b"</Blobs>" * count, root)
    if kind == "gcs":
        document = b'{"kind": "storage#objects", "items": %s%s}' % (b"[" * count, b"]" * count)
    store, _, _ = opened(kind, lambda *_: [response(document)])
    if kind == "gcs" and count == 20:
        assert store.list_page("").objects == []  # an entry that is no entry
        return
    with pytest.raises(StoreProtocolError):
        store.list_page("")


def test_a_page_of_many_bytes_is_no_page(kind: StoreName, opened: Open) -> None:
    def answer(request: Head, body: bytes) -> Iterable[Piece]:
        yield b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"
        while True:
            yield b"100000\r\n" + b" " * MIB + b"\r\n"

    store, _, _ = opened(kind, answer)
    with pytest.raises(StoreProtocolError):
        ended(lambda: store.list_page(""))


# --- what other answers say ----------------------------------------------------------------

RESOURCE = {
    "name": "key",
    "size": "200",
    "timeCreated": "2026-11-24T10:20:30.123Z",
    "generation": VERSION,
}
HEAD_FIELDS = {
    "Last_Modified": "Tue, 24 Nov 2026 10:20:30 GMT",
    "ETag": f'"{VERSION}"',
    "x_ms_blob_type": "BlockBlob",
}


@pytest.mark.parametrize(
    "wrong",
    [
        {"Content_Length": "1" * 17},
        {"Content_Length": "\u00b2"},
        {"Content_Length": "-5"},
        {"Last_Modified": "Tue, 24 Nov 10000 10:20:30 GMT"},
        {"Last_Modified": "Tue, 24 Nov 2026 10:20:30 +99999999"},
        {"Last_Modified": "yesterday"},
    ],
)
@pytest.mark.parametrize("cloud", ["s3", "azure"])
def test_a_head_that_makes_no_sense(cloud: StoreName, wrong: dict[str, str], opened: Open) -> None:
    fields = {"Content_Length": "200", **HEAD_FIELDS, **wrong}
    store, _, _ = opened(cloud, lambda *_: [response(**fields)])
    with pytest.raises(StoreError):
        store.head("key")


@pytest.mark.parametrize(
    "wrong",
    [
        {"size": -5},
        {"size": 1e400},
        {"size": "1" * 5000},
        {"size": [5]},
        {"generation": None},
        {"generation": "1\r\n7"},
        {"timeCreated": "10000-01-01T00:00:00Z"},
        {"timeCreated": 5},
        {"name": 5},
        {"name": "\ud800"},
        {"metadata": {"a": 5}},
        {"metadata": ["a"]},
        {"metadata": {"a": "\ud800"}},
        {"contentType": {"a": "b"}},
        {"contentType": 5},
    ],
)
def test_a_resource_that_makes_no_sense(wrong: dict[str, object], opened: Open) -> None:
    document = json.dumps({**RESOURCE, **wrong}).encode()
    store, _, _ = opened("gcs", lambda *_: [response(document)])
    for call in (lambda: store.head("key"), lambda: store.put("key", b"x")):
        with pytest.raises(StoreProtocolError):
            call()


@pytest.mark.parametrize(
    "document", [b"", b"{", b"[]", b"5", b"null", b"[" * 100_000, b'{"name": "key"', b"\xff"]
)
def test_a_document_that_is_none(document: bytes, opened: Open) -> None:
    store, _, _ = opened("gcs", lambda *_: [response(document)])
    for call in (
        lambda: store.head("key"),
        lambda: store.put("key", b"x"),
        lambda: store.copy("key", "other"),
        lambda: store.list_page(""),
    ):
        with pytest.raises(StoreProtocolError):
            call()


def test_a_document_that_was_cut_is_asked_for_again(opened: Open) -> None:
    document = json.dumps(RESOURCE).encode()
    cut = response(document[:20], length=len(document))
    answers = iter([[cut, None], [response(document)]])
    store, _, observer = opened("gcs", lambda *_: next(answers), retry_budget_s=PATIENCE_S)
    assert store.head("key").size_bytes == 200
    assert observer.retries == [("head", "truncated")]


def test_a_copy_that_does_not_go_on_ends(opened: Open) -> None:
    def answer(request: Head, body: bytes) -> Iterable[Piece]:
        if "/rewriteTo/" not in request.target:
            yield response(json.dumps(RESOURCE).encode())
        else:
            yield response(b'{"done": false, "rewriteToken": "t", "totalBytesRewritten": "5"}')

    store, _, _ = opened("gcs", answer)
    with pytest.raises(StoreProtocolError, match="does not go on"):
        ended(lambda: store.copy("key", "other"))


@pytest.mark.parametrize(
    "location", ["", "http://host", "http://host/a b", "http://host/\xe9", "ftp://host/a", "a"]
)
def test_a_session_without_a_place(location: str, opened: Open) -> None:
    store, _, _ = opened("gcs", lambda *_: [response(Location=location)])
    with pytest.raises(StoreProtocolError):
        store.start_upload("key")


def test_an_error_that_is_deep(kind: StoreName, opened: Open) -> None:
    store, _, _ = opened(kind, lambda *_: [response(b"[" * 60_000, status="400 Bad Request")])
    with pytest.raises(StoreProtocolError):
        store.list_page("")


@pytest.mark.parametrize(
    "value",
    ["\xb2", "9" * 400, "9" * 5000, "-5", "1e9", "Fri, 31 Dec 10000 23:59:59 GMT", "x", "\xff"],
)
def test_when_to_come_again_may_be_nonsense(kind: StoreName, value: str, opened: Open) -> None:
    answer = response(status="503 Slow Down", Retry_After=value)
    store, _, _ = opened(kind, lambda *_: [answer])
    with pytest.raises(Unavailable):
        store.list_page("")


@pytest.mark.parametrize("status", ["300 Multiple Choices", "304 Not Modified", "399 What"])
def test_only_a_success_is_a_success(kind: StoreName, status: str, opened: Open) -> None:
    answer = response(b"{}" if not status.startswith("304") else b"", status=status)
    store, _, _ = opened(kind, lambda *_: [answer])
    for call in (
        lambda: store.list_page(""),
        lambda: store.head("key"),
        lambda: fetch(store),
        lambda: store.put("key", b"x"),
        lambda: store.delete("key"),
        lambda: store.delete_many(["a", "b"]),
        lambda: store.copy("key", "other"),
        lambda: store.start_upload("key").put_part(1, bytes(MIB)),
    ):
        with pytest.raises(StoreError):
            ended(call)


def test_a_deletion_that_was_sent_elsewhere_is_none(kind: StoreName, opened: Open) -> None:
    def answer(request: Head, body: bytes) -> Iterable[Piece]:
        if request.target == "/elsewhere":
            yield response(b"<html/>")
        else:
            yield response(status="302 Found", Location="/elsewhere")

    store, _, _ = opened(kind, answer)
    with pytest.raises(StoreError):
        store.delete_many(["a", "b"])


@pytest.mark.parametrize(
    "span",
    ["bytes 0-\u00b9/200", "bytes 0-99/" + "2" * 5000, "bytes +0-99/200", "bytes 0-99/-1", "x"],
)
def test_a_range_that_is_none(kind: StoreName, span: str, opened: Open) -> None:
    store, _, _ = opened(kind, lambda *_: [content(Content_Range=span)])
    with pytest.raises(StoreProtocolError):
        fetch(store)


@pytest.mark.parametrize("modified", ["x", "Tue, 24 Nov 10000 10:20:30 GMT", "Tue, 24 Nov 2026 x"])
def test_a_version_by_a_time_that_is_none(modified: str, opened: Open) -> None:
    answer = content(ETag="", Last_Modified=modified)
    store, _, _ = opened("s3", lambda *_: [answer])
    with pytest.raises(StoreProtocolError):
        fetch(store)


def test_what_no_header_can_hold_is_not_sent_back(opened: Open) -> None:
    """A property comes from a document and goes back in a header."""
    fields = "<Content-Type>a&#10;x: y</Content-Type>"
    document = page("azure", [Entry("key")]).replace(
        b"<Properties>", b"<Properties>%s" % fields.encode()
    )
    store, server, _ = opened("azure", lambda *_: [response(document)], with_metadata=True)
    like = store.list_page("").objects[0]
    assert like.properties
    with pytest.raises(StoreProtocolError):
        store.put("other", b"x", like=like)
    assert len(server.requests) == 1
