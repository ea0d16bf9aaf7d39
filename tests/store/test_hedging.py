"""A slow read is asked a second time: the slowest of a thousand is not what a program waits for."""

from __future__ import annotations

import itertools
import json
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack

import pytest

from sidecar.contract.spec import StoreName
from sidecar.errors import Stale
from sidecar.mounter.store.http import hedging, timeouts
from sidecar.mounter.store.interface import Store
from tests.store.raw import BODY, CLOUDS, VERSION, Entry, content, fetch, open_at, page, response
from tests.support.clouds import CountingObserver
from tests.support.forward_proxy import TlsFront
from tests.support.proxy import Head
from tests.support.raw_server import Piece, RawServer
from tests.support.resolver import Resolver
from tests.support.servers import TlsFiles
from tests.support.waiting import wait_until

USUAL = 2 * hedging._FEWEST
"""So many requests at first, which are all answered."""
REQUESTS = 1000
RARE = 50
THREADS = 8
NAME = "store.test"
Answer = Callable[[Head, bytes], Iterator[Piece]]


@pytest.fixture(autouse=True)
def _nothing_times_out(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is not asked a second time fails the test, which lasts so long."""
    monkeypatch.setattr(timeouts, "SHORTEST_TIMEOUT_S", 30.0)
    monkeypatch.setattr(timeouts, "SOCKET_TIMEOUT_S", 30.0)


class Tail:
    """A server that does not answer the first request for what is asked for in a slow one.

    Args:
        is_slow: of the number of a request, from 0.
        tls: in front of it.

    Attributes:
        slow: how many were kept waiting.
        observer: what the store was told.
    """

    def __init__(
        self,
        stack: ExitStack,
        is_slow: Callable[[int], bool],
        answer: Callable[[Head], bytes] = lambda _request: content(),
        kind: StoreName = "s3",
        tls: TlsFiles | None = None,
    ) -> None:
        self._is_slow, self._answer = is_slow, answer
        self._numbers = itertools.count()
        self._end = threading.Event()
        self._again: list[bytes] = []
        self.slow = 0
        self.observer = CountingObserver()
        self.server = stack.enter_context(RawServer(self._answers))
        stack.callback(self._end.set)
        endpoint = self.server.endpoint
        if tls is not None:
            endpoint = stack.enter_context(TlsFront(self.server.port, tls)).endpoint
        self.store = open_at(kind, endpoint, self.observer, retry_budget_s=20.0)
        stack.callback(self.store.close)

    def _answers(self, request: Head, _body: bytes) -> Iterator[Piece]:
        if request.raw in self._again:
            self._again.remove(request.raw)
        elif self._is_slow(next(self._numbers)):
            self.slow += 1
            self._again.append(request.raw)
            self._end.wait(60)
            yield None
        yield self._answer(request)

    @property
    def hedged(self) -> int:
        return sum(reason == "hedged" for _, reason in self.observer.retries)

    @property
    def others(self) -> list[str]:
        """Other reasons for which requests were sent again."""
        return [reason for _, reason in self.observer.retries if reason != "hedged"]


@pytest.fixture
def stack() -> Iterator[ExitStack]:
    with ExitStack() as stack:
        yield stack


def rarely(number: int) -> bool:
    return number > USUAL and number % RARE == 0


@pytest.mark.parametrize("kind", [*CLOUDS, "tls"])
def test_what_never_answers_costs_a_thousand_reads_nothing(
    stack: ExitStack, kind: str, tls_files: TlsFiles, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SSL_CERT_FILE", str(tls_files.certificate))
    tls = tls_files if kind == "tls" else None
    cloud = next((cloud for cloud in CLOUDS if cloud == kind), CLOUDS[0])
    tail = Tail(stack, rarely, lambda _request: content(BODY), cloud, tls)
    for _ in range(USUAL):
        fetch(tail.store, len(BODY))

    def read(number: int) -> bytes:
        return fetch(tail.store, len(BODY) + number)  # no two ask for the same range

    with ThreadPoolExecutor(THREADS) as pool:
        found = list(pool.map(read, range(REQUESTS)))
    assert found == [BODY] * REQUESTS
    assert tail.slow >= REQUESTS // RARE - 1
    assert tail.slow <= tail.hedged
    assert tail.others == []
    assert len(tail.server.requests) <= (1 + hedging.SHARE) * (REQUESTS + USUAL)


def test_more_slow_ones_than_may_be_asked_twice_have_their_turn_later(stack: ExitStack) -> None:
    """Others go on meanwhile, and each twentieth of them makes one more possible."""
    silent = 2 * hedging._LARGEST_BURST
    tail = Tail(
        stack, lambda number: USUAL <= number < USUAL + silent, lambda _request: content(BODY)
    )
    size = len(BODY)
    for _ in range(USUAL):
        fetch(tail.store, size)
    with ThreadPoolExecutor(silent) as pool:
        waiting = [pool.submit(fetch, tail.store, size + 1 + n) for n in range(silent)]
        wait_until(lambda: tail.slow >= silent, "all wait")
        while not all(one.done() for one in waiting):
            assert fetch(tail.store, size) == BODY
        assert [one.result() for one in waiting] == [BODY] * silent
    assert tail.others == []


@pytest.mark.parametrize("kind", CLOUDS)
@pytest.mark.parametrize("operation", ["list", "head"])
def test_also_lists_and_heads(stack: ExitStack, kind: StoreName, operation: str) -> None:
    fields = {"ETag": f'"{VERSION}"', "Last_Modified": "Tue, 24 Nov 2026 10:20:30 GMT"}
    listed, head = response(page(kind, [Entry("a")])), response(**fields)
    if kind == "gcs":
        item = json.loads(page(kind, [Entry("a")]))["items"][0]
        head = response(json.dumps({**item, "updated": item["timeCreated"]}).encode())
    tail = Tail(stack, rarely, lambda _request: listed if operation == "list" else head, kind)
    for _ in range(4 * RARE):
        if operation == "list":
            assert tail.store.list_page("").objects
        else:
            assert tail.store.head("a").version == VERSION
    assert tail.slow == 3
    assert tail.slow <= tail.hedged
    assert tail.others == []


def test_a_store_that_is_slow_as_a_whole_gets_few_requests_more(stack: ExitStack) -> None:
    """And each read waits for the first answer to it, which the first connection gives."""
    begun = threading.Event()
    count = 200

    def answer(_request: Head, _body: bytes) -> Iterator[Piece]:
        if begun.is_set():
            yield 0.1
        yield content()

    server = stack.enter_context(RawServer(answer))
    store = open_at("s3", server.endpoint, CountingObserver())
    stack.callback(store.close)
    for _ in range(USUAL):
        fetch(store)
    begun.set()
    with ThreadPoolExecutor(THREADS) as pool:
        found = list(pool.map(lambda _: fetch(store), range(count)))
    assert found == [BODY[:100]] * count
    assert len(server.requests) <= (1 + hedging.SHARE) * (count + USUAL)


def test_a_late_answer_never_reaches_the_buffer(stack: ExitStack) -> None:
    """It comes when the second answer has begun, and before that has ended."""
    first_goes_on, halves = threading.Event(), (BODY[:50], BODY[50:100])
    numbers = itertools.count()
    whole = content()
    head = whole[: whole.index(b"\r\n\r\n") + 4]
    wrong = content(bytes(100))

    def answer(_request: Head, _body: bytes) -> Iterator[Piece]:
        number = next(numbers)
        if number == USUAL:
            first_goes_on.wait(60)
            yield wrong
        elif number == USUAL + 1:
            yield head + halves[0]
            yield 0.3  # so that this one is the first
            first_goes_on.set()
            yield 0.1
            yield halves[1]
        else:
            yield whole

    server = stack.enter_context(RawServer(answer))
    store = open_at("s3", server.endpoint, CountingObserver())
    stack.callback(store.close)
    for _ in range(USUAL + 20):
        assert fetch(store) == BODY[:100]
    assert first_goes_on.is_set()


def test_both_are_the_pinned_version(stack: ExitStack) -> None:
    conditions: list[str] = []

    def answer(request: Head) -> bytes:
        if "range" not in request.fields:  # whether it is there at all
            return response(ETag='"18"', Last_Modified="Tue, 24 Nov 2026 10:20:30 GMT")
        conditions.append(request.fields["if-match"])
        return content(ETag='"18"') if len(conditions) > USUAL else content()

    tail = Tail(stack, lambda number: number == USUAL, answer)
    for _ in range(USUAL):
        fetch(tail.store)
    with pytest.raises(Stale):
        fetch(tail.store)
    assert tail.hedged == 1
    assert set(conditions) == {f'"{VERSION}"'}


def test_the_second_one_may_end_without_an_answer(stack: ExitStack) -> None:
    numbers = itertools.count()
    failed = threading.Event()

    def answer(_request: Head, _body: bytes) -> Iterator[Piece]:
        number = next(numbers)
        if number == USUAL:
            failed.wait(60)
        elif number == USUAL + 1:
            failed.set()
            yield None
        yield content()

    server = stack.enter_context(RawServer(answer))
    observer = CountingObserver()
    store = open_at("s3", server.endpoint, observer)
    stack.callback(store.close)
    for _ in range(USUAL + 1):
        assert fetch(store) == BODY[:100]
    assert observer.retries == [("get", "hedged")]


def test_who_is_asked_too_much_is_not_asked_twice(stack: ExitStack) -> None:
    refused = response(status="503 Slow Down")
    numbers = itertools.count()

    def answer(_request: Head, _body: bytes) -> Iterator[Piece]:
        number = next(numbers)
        if number == USUAL:
            yield refused
        elif number == USUAL + 1:
            yield 0.5
        yield content()

    server = stack.enter_context(RawServer(answer))
    observer = CountingObserver()
    store = open_at("s3", server.endpoint, observer, retry_budget_s=20)
    stack.callback(store.close)
    for _ in range(USUAL + 1):
        assert fetch(store) == BODY[:100]
    assert observer.retries == [("get", "throttled")]


def test_it_is_asked_at_another_address(stack: ExitStack, monkeypatch: pytest.MonkeyPatch) -> None:
    resolver = Resolver(monkeypatch, NAME, ["127.0.0.2", "127.0.0.3"])
    end, silent = threading.Event(), threading.Event()

    def answer(_request: Head, _body: bytes) -> Iterator[Piece]:
        if silent.is_set():
            end.wait(60)
            yield None
        yield content()

    one = stack.enter_context(RawServer(answer, 0, "127.0.0.2"))
    other = stack.enter_context(
        RawServer(lambda _request, _body: iter([content()]), one.port, "127.0.0.3")
    )
    stack.callback(end.set)
    observer = CountingObserver()
    store: Store = open_at("s3", f"http://{NAME}:{one.port}", observer)
    stack.callback(store.close)
    with ThreadPoolExecutor(THREADS) as pool:
        list(pool.map(lambda _: fetch(store), range(10 * USUAL)))
        assert one.connections
        silent.set()
        found = list(pool.map(lambda _: fetch(store), range(10 * USUAL)))
    assert found == [BODY[:100]] * 10 * USUAL
    assert {reason for _, reason in observer.retries} == {"hedged"}
    assert other.connections
    assert resolver.asked
