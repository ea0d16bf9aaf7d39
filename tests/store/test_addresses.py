"""All addresses of a store's name are used, and the bad ones are left alone."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack

import pytest

from sidecar.errors import Unavailable
from sidecar.mounter.store import http_store
from sidecar.mounter.store.http import addresses, timeouts
from sidecar.mounter.store.interface import Store
from tests.store.raw import BODY, CLOUDS, content, fetch, open_at
from tests.support.clouds import CountingObserver
from tests.support.forward_proxy import ForwardProxy
from tests.support.proxy import Head
from tests.support.raw_server import Piece, RawServer
from tests.support.resolver import Resolver, swallowing
from tests.support.waiting import wait_until

NAME = "store.test"
WELL = ["127.0.0.2", "127.0.0.3", "127.0.0.4", "127.0.0.5", "127.0.0.6"]
REFUSING = ["127.0.0.7", "127.0.0.8"]
SWALLOWING = "127.0.0.9"
EIGHT = [SWALLOWING, *REFUSING, *WELL]
REQUESTS = 80
DELETED = b"HTTP/1.1 204 No Content\r\n\r\n"


class Fleet:
    """A server at each of some addresses, on one port.

    Attributes:
        silent: addresses whose servers take requests and do not answer.
        keeps: whether connections are kept open between requests.
    """

    def __init__(self, hosts: list[str]) -> None:
        self.silent: set[str] = set()
        self.keeps = True
        self.servers: dict[str, RawServer] = {}
        self._end = threading.Event()
        port = 0
        for host in hosts:
            self.servers[host] = RawServer(self._answer_at(host), port, host).start()
            port = self.port = self.servers[host].port

    def _answer_at(self, host: str) -> Callable[[Head, bytes], Iterator[Piece]]:
        def answer(request: Head, _body: bytes) -> Iterator[Piece]:
            if host in self.silent:
                self._end.wait(60)
                yield None
            yield DELETED if request.line.startswith("DELETE") else content()
            if not self.keeps:
                yield None

        return answer

    @property
    def connections(self) -> dict[str, int]:
        return {host: server.connections for host, server in self.servers.items()}

    def stop(self) -> None:
        self._end.set()
        for server in self.servers.values():
            server.stop()


@pytest.fixture
def resolver(monkeypatch: pytest.MonkeyPatch) -> Resolver:
    return Resolver(monkeypatch, NAME, EIGHT)


@pytest.fixture
def stack() -> Iterator[ExitStack]:
    with ExitStack() as stack:
        yield stack


def opened(stack: ExitStack, fleet: Fleet, kind: str = "s3", budget_s: float = 20.0) -> Store:
    stack.callback(fleet.stop)
    store = open_at(
        kind,  # type: ignore[arg-type]
        f"http://{NAME}:{fleet.port}",
        CountingObserver(),
        retry_budget_s=budget_s,
    )
    stack.callback(store.close)
    return store


def read_often(store: Store, count: int = REQUESTS, threads: int = 16) -> None:
    with ThreadPoolExecutor(threads) as pool:
        found = list(pool.map(lambda _: fetch(store), range(count)))
    assert found == [BODY[:100]] * count


@pytest.mark.parametrize("kind", CLOUDS)
def test_connections_are_spread_over_all_addresses(
    resolver: Resolver, stack: ExitStack, kind: str
) -> None:
    resolver.addresses = WELL
    fleet = Fleet(WELL)
    fleet.keeps = False
    read_often(opened(stack, fleet, kind))
    each = REQUESTS // len(WELL)
    assert all(each - 2 <= number <= each + 2 for number in fleet.connections.values())


def test_dead_addresses_are_found_out_once(resolver: Resolver, stack: ExitStack) -> None:
    """Clients that connect at the same time find it out, too; later ones need not."""
    fleet = Fleet(WELL)
    fleet.keeps = False
    stack.enter_context(swallowing(SWALLOWING, fleet.port))
    store = opened(stack, fleet)
    resolver.connected.clear()
    read_often(store, threads=4)
    assert sum(fleet.connections.values()) == REQUESTS
    dead = {host: resolver.connected[host] for host in (SWALLOWING, *REFUSING)}
    assert all(1 <= number <= 4 for number in dead.values()), dead


def test_a_dead_address_is_tried_again(
    resolver: Resolver, stack: ExitStack, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(addresses, "FIRST_REST_S", 0.05)
    resolver.addresses = ["127.0.0.2", "127.0.0.3"]
    fleet = Fleet(["127.0.0.2"])
    fleet.keeps = False
    store = opened(stack, fleet)
    read_often(store, count=4)
    back = RawServer(lambda _request, _body: iter([content(), None]), fleet.port, "127.0.0.3")
    stack.enter_context(back)

    def is_used() -> bool:
        fetch(store)
        return back.connections > 0

    wait_until(is_used, "the address that came back is used")


def test_an_address_that_falls_silent_is_left_alone(
    resolver: Resolver, stack: ExitStack, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It takes connections, and those that are open wait in the pool."""
    monkeypatch.setattr(timeouts, "SOCKET_TIMEOUT_S", 0.2)
    resolver.addresses = WELL
    fleet = Fleet(WELL)
    store = opened(stack, fleet)
    read_often(store)
    bad = fleet.servers[WELL[0]]
    before = len(bad.requests)
    fleet.silent = {WELL[0]}
    fleet.keeps = False
    read_often(store, count=400, threads=4)
    assert before < len(bad.requests) <= before + addresses.SLOW_REQUESTS + 4


def test_a_write_that_meets_silence_is_sent_elsewhere_however_long_that_took(
    resolver: Resolver, stack: ExitStack, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A store may be silent for long while it writes, which may be longer than the budget."""
    monkeypatch.setattr(http_store, "WRITE_SILENCE_S", 0.4)
    resolver.addresses = WELL
    fleet = Fleet(WELL)
    store = opened(stack, fleet, budget_s=0.1)
    for host in WELL:
        fleet.silent = {host}
        with ThreadPoolExecutor(16) as pool:
            list(pool.map(store.delete, map(str, range(REQUESTS))))


def test_an_address_that_does_not_answer_a_write_in_time_is_left_alone_at_once(
    resolver: Resolver, stack: ExitStack, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(http_store, "WRITE_SILENCE_S", 0.4)
    monkeypatch.setattr(addresses, "FIRST_REST_S", 600.0)
    resolver.addresses = WELL
    fleet = Fleet(WELL)
    fleet.keeps = False
    fleet.silent = {WELL[0]}
    store = opened(stack, fleet)
    for number in range(4 * len(WELL)):
        store.delete(str(number))
    assert len(fleet.servers[WELL[0]].requests) == 1


def test_the_name_is_asked_again_beside_the_requests(
    resolver: Resolver, stack: ExitStack, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(addresses, "FRESH_S", 0.0)
    resolver.addresses = WELL[:1]
    fleet = Fleet(WELL[:2])
    fleet.keeps = False
    store = opened(stack, fleet)
    fetch(store)
    asked = resolver.asked
    go_on = threading.Event()
    stack.callback(go_on.set)
    resolver.before = lambda: go_on.wait(60)
    resolver.addresses = WELL[1:2]
    read_often(store)  # while the resolver says nothing
    assert resolver.asked == asked + 1
    assert fleet.servers[WELL[1]].connections == 0
    go_on.set()

    def is_used() -> bool:
        fetch(store)
        return fleet.servers[WELL[1]].connections > 0

    wait_until(is_used, "the new address is used")


def test_an_old_answer_stays_while_there_is_no_other(
    resolver: Resolver, stack: ExitStack, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(addresses, "FRESH_S", 0.0)
    resolver.addresses = WELL[:1]
    fleet = Fleet(WELL[:1])
    fleet.keeps = False
    store = opened(stack, fleet, budget_s=0)
    fetch(store)
    resolver.addresses = []

    def is_asked_again() -> bool:
        fetch(store)
        return resolver.asked > 2

    wait_until(is_asked_again, "the resolver is asked again")


def test_an_answer_that_leads_nowhere_is_asked_again_at_once(
    resolver: Resolver, stack: ExitStack
) -> None:
    """A service that moved; also for a client that asks once."""
    resolver.addresses = WELL[:1]
    fleet = Fleet(WELL[:2])
    fleet.keeps = False
    store = opened(stack, fleet, budget_s=0)
    fetch(store)
    fleet.servers[WELL[0]].stop()
    resolver.addresses = WELL[1:2]
    assert fetch(store) == BODY[:100]


def test_a_name_without_any_living_address(resolver: Resolver, stack: ExitStack) -> None:
    resolver.addresses = REFUSING
    store = opened(stack, Fleet(WELL[:1]), budget_s=0)
    for _ in range(2):
        with pytest.raises(Unavailable, match="connection refused"):
            fetch(store)
    resolver.addresses = []
    with pytest.raises(Unavailable, match="cannot be resolved"):
        fetch(open_at("s3", f"http://{NAME}:1", CountingObserver()))


def test_both_families(resolver: Resolver, stack: ExitStack) -> None:
    resolver.addresses = ["127.0.0.2", "::1"]
    fleet = Fleet(resolver.addresses)
    fleet.keeps = False
    store = opened(stack, fleet)
    read_often(store)
    assert min(fleet.connections.values()) >= REQUESTS // 2 - 2
    fleet.servers["::1"].stop()
    read_often(store)


def test_the_proxys_addresses(
    resolver: Resolver, stack: ExitStack, monkeypatch: pytest.MonkeyPatch
) -> None:
    resolver.addresses = ["127.0.0.2", "127.0.0.3", "127.0.0.1"]
    with ForwardProxy() as proxy, RawServer(lambda _request, _body: iter([content()])) as server:
        monkeypatch.setenv("HTTP_PROXY", f"http://{NAME}:{proxy.port}")
        store = open_at("s3", server.endpoint, CountingObserver(), retry_budget_s=0)
        stack.callback(store.close)
        assert fetch(store) == BODY[:100]
        assert proxy.asked
    assert resolver.asked == 1
