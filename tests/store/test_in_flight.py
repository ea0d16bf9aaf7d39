"""How many parts are moved at a time, on links that a formula describes. No clock runs."""

from __future__ import annotations

from dataclasses import dataclass, field

import pytest

from sidecar.mounter.store.in_flight import MOST, InFlight
from sidecar.units import GIB, MIB

PART_BYTES = 8 * MIB
STEP_S = 0.002


@dataclass(eq=False)
class Stream:
    """One whose reader always lacks parts."""

    link: Link

    def go_on(self) -> None:
        """Fetch as many parts as there is room for."""
        self.link.fetch(self)


@dataclass(eq=False)
class Coming:
    """A part in flight."""

    began_s: float
    size: int
    stream: Stream
    share: float
    arrived: float = 0.0


@dataclass(eq=False)
class Link:
    """A way to a store.

    Attributes:
        connection: what one connection brings, bytes a second.
        most: what all together bring, bytes a second.
        delay_s: after which a connection begins to bring.
        budget_bytes: what all parts may have.
        spread: by how much of it some connections are slower than others.
    """

    connection: float
    most: float
    delay_s: float = 0.03
    budget_bytes: int = GIB
    spread: float = 0.0
    now_s: float = 100.0
    arrived_bytes: float = 0
    _count: int = 0
    _parts: list[Coming] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.in_flight = InFlight(PART_BYTES, self.budget_bytes)

    def writing(self) -> Link:
        """The same for parts that are sent: it is not known beforehand how many there should be."""
        self.in_flight = InFlight(PART_BYTES, least=8, hoped_rate=0)
        return self

    def fetch(self, stream: Stream) -> None:
        """Begin parts until there is no room for more."""
        while self.in_flight.begin(stream):
            self._count += 1
            share = 1 - self.spread * (self._count % 7) / 6
            self._parts.append(Coming(self.now_s, self.in_flight.part_bytes, stream, share))

    def run(self, seconds: float) -> float:
        """Let time pass; the rate at which bytes came in the second half of it."""
        steps = int(seconds / STEP_S)
        half_bytes = 0.0
        for step in range(steps):
            if step == steps // 2:
                half_bytes = self.arrived_bytes
            self._step()
        return (self.arrived_bytes - half_bytes) / (seconds / 2)

    def _step(self) -> None:
        """What the network carries is shared by those that bring something."""
        self.now_s += STEP_S
        coming = [part for part in self._parts if self.now_s - part.began_s > self.delay_s]
        rate = min(self.connection, self.most / max(1, len(coming)))
        for part in coming:
            came = min(rate * part.share * STEP_S, part.size - part.arrived)
            part.arrived += came
            self.arrived_bytes += came
        for part in [part for part in coming if part.arrived >= part.size]:
            self._parts.remove(part)
            self.in_flight.end(part.size, part.began_s, self.delay_s, self.now_s)
            self.fetch(part.stream)


def begin(link: Link, streams: int) -> None:
    for _ in range(streams):
        link.fetch(Stream(link))


@pytest.mark.parametrize("streams", [1, 4, 16])
@pytest.mark.parametrize("megabytes", [10, 20, 85])
def test_slow_connections_are_as_many_as_make_it_faster(megabytes: int, streams: int) -> None:
    """The network carries ten times what eight connections bring."""
    link = Link(connection=megabytes * 1e6, most=80 * megabytes * 1e6)
    begin(link, streams)
    rate = link.run(40)
    alone = PART_BYTES / (link.delay_s + PART_BYTES / link.connection)
    assert rate > 0.6 * min(MOST * alone, link.most)
    assert link.in_flight.most > MOST // 3


def test_a_gigabyte_is_enough_to_find_out_how_many_make_it_faster() -> None:
    """Eight parts, sixteen, and then all that there may be: a set of parts for each number."""
    link = Link(connection=20e6, most=4e9, spread=0.2).writing()
    begin(link, 1)
    while link.arrived_bytes < GIB:
        link.run(2 * STEP_S)
    one_s = link.delay_s + PART_BYTES / link.connection
    assert link.in_flight.most == MOST
    assert link.now_s - 100 < 4.5 * one_s


@pytest.mark.parametrize("streams", [1, 4, 16])
def test_fast_connections_are_few(streams: int) -> None:
    """A connection brings a gigabyte a second, and so do all: more of them cost memory alone."""
    link = Link(connection=1e9, most=1e9, delay_s=0.001)
    begin(link, streams)
    assert link.run(30) > 0.8e9
    assert link.in_flight.most <= 4


def test_a_network_that_is_full_gets_no_more_connections() -> None:
    link = Link(connection=85e6, most=400e6)
    begin(link, 1)
    assert link.run(40) > 0.7 * link.most
    assert link.in_flight.most <= 16


def test_parts_are_no_larger_than_the_delay_asks_for() -> None:
    """A sixth of the time may be lost to it: smaller parts take less memory."""
    link = Link(connection=20e6, most=2e9)
    begin(link, 1)
    link.run(20)
    assert link.in_flight.part_bytes == 4 * MIB


@pytest.mark.parametrize("budget_bytes", [16 * MIB, 64 * MIB, 256 * MIB])
def test_no_more_is_in_flight_than_there_is_memory_for(budget_bytes: int) -> None:
    link = Link(connection=10e6, most=4e9, budget_bytes=budget_bytes)
    begin(link, 4)
    link.run(30)
    assert link.in_flight.most * link.in_flight.part_bytes <= budget_bytes
    assert link.in_flight.most >= min(MOST, budget_bytes // (4 * MIB)) // 2


def test_a_link_that_became_slow_gets_more_connections() -> None:
    link = Link(connection=1e9, most=1e9, delay_s=0.001)
    begin(link, 1)
    link.run(10)
    link.connection, link.delay_s = 40e6, 0.03
    link.run(120)
    assert link.in_flight.most >= 16


def test_who_lacks_a_part_the_longest_is_next() -> None:
    in_flight = InFlight(PART_BYTES)
    turns: list[str] = []

    @dataclass(eq=False)
    class Named:
        name: str

        def go_on(self) -> None:
            turns.append(self.name)

    begun = 0
    while in_flight.begin(Named("first")):
        begun += 1
    other, gone = Named("other"), Named("gone")
    assert not in_flight.begin(gone)
    assert not in_flight.begin(other)
    in_flight.forget(gone)
    for _ in range(begun):
        in_flight.end(0, 0.0, 0.0, 1.0)  # failed: nothing is learnt of it
    assert turns == ["first", "other"]
    assert in_flight.count == 0
