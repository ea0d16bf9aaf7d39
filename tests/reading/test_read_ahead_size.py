"""How far a stream reads ahead, on links that a formula describes. No clock runs."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import pytest

from sidecar.mounter.reading.read_ahead_size import FIRST_BYTES, MOST_BYTES, ReadAheadSize
from sidecar.units import GIB, MIB

PART_BYTES = 8 * MIB


@dataclass
class Stream:
    """A reader that always waits.

    Attributes:
        connection: what one connection brings, bytes a second.
        most: what all together bring, or what the reader takes, bytes a second.
        delay_s: after which a connection begins to bring.
    """

    connection: float
    most: float
    delay_s: float = 0.0
    size: ReadAheadSize = field(default_factory=lambda: ReadAheadSize(PART_BYTES))
    position: int = 0
    now_s: float = 100.0

    def read(self, size_bytes: int) -> float:
        """Read on; how long it took in seconds."""
        began_s = self.now_s
        for _ in range(size_bytes // MIB):
            connections = max(1.0, self.size.bytes / PART_BYTES)
            rate = min(self.most, connections * self.connection)
            # What is in flight comes once in a delay and the time that it takes.
            in_flight = max(PART_BYTES, self.size.bytes - PART_BYTES)
            rate = in_flight / (self.delay_s + in_flight / rate)
            self.position += MIB
            self.now_s += MIB / rate
            best = PART_BYTES / (self.delay_s + PART_BYTES / self.connection)
            self.size.waited(self.position, best, self.delay_s, self.now_s)
        return self.now_s - began_s


def test_where_one_connection_is_as_fast_as_the_reader_it_stays_small() -> None:
    stream = Stream(connection=1.6 * GIB, most=1.0 * GIB)
    stream.read(8 * GIB)
    assert stream.size.bytes <= 24 * MIB


@pytest.mark.parametrize("most", [1.2 * GIB, 3.0 * GIB])
def test_where_connections_are_slow_there_are_many_soon(most: float) -> None:
    stream = Stream(connection=70 * MIB, most=most)
    stream.read(64 * MIB)
    assert stream.size.bytes == MOST_BYTES


def test_it_has_what_the_rate_needs() -> None:
    """Four connections are enough; a dozen is the most that is used for it."""
    stream = Stream(connection=200 * MIB, most=800 * MIB)
    stream.read(2 * GIB)
    assert stream.read(GIB) == pytest.approx(GIB / stream.most)
    assert 4 * PART_BYTES <= stream.size.bytes <= MOST_BYTES


@pytest.mark.parametrize("delay_s", [0.005, 0.01, 0.02])
def test_a_store_that_answers_late_costs_a_sixth(delay_s: float) -> None:
    """The connections share a CPU, so that each of them alone would be fast enough."""
    stream = Stream(connection=1.2 * GIB, most=0.75 * GIB, delay_s=delay_s)
    stream.read(512 * MIB)
    at_most = MOST_BYTES / (delay_s + MOST_BYTES / stream.most)
    assert GIB / stream.read(GIB) >= min(0.8 * stream.most, 0.95 * at_most)
    assert stream.size.bytes <= 6.5 * delay_s * stream.most + PART_BYTES


def test_a_store_behind_a_cache_gets_its_connections() -> None:
    """What came first came from a cache, at a rate that no connection has."""
    stream = Stream(connection=4 * GIB, most=1.5 * GIB)
    stream.read(GIB)
    assert stream.size.bytes <= 24 * MIB
    stream.connection = 70 * MIB
    assert stream.read(4 * GIB) < 30
    assert stream.size.bytes == MOST_BYTES


def test_a_link_that_became_fast_gives_memory_back() -> None:
    stream = Stream(connection=70 * MIB, most=1.0 * GIB)
    stream.read(GIB)
    assert stream.size.bytes == MOST_BYTES
    stream.connection = 2 * GIB
    stream.read(16 * GIB)
    assert stream.size.bytes <= 24 * MIB


def test_a_reader_that_became_slow_gives_memory_back_before_that() -> None:
    stream = Stream(connection=70 * MIB, most=1.0 * GIB)
    stream.read(GIB)
    stream.most = 70 * MIB
    assert stream.read(GIB // 2) < 8
    assert stream.size.bytes <= 24 * MIB


def test_a_stream_that_begins_anew_begins_small() -> None:
    stream = Stream(connection=70 * MIB, most=1.0 * GIB)
    stream.read(GIB)
    stream.size.restart()
    assert stream.size.bytes == FIRST_BYTES
    stream.read(64 * MIB)
    assert stream.size.bytes == MOST_BYTES


def test_who_reads_in_bursts_has_a_whole_one_ready() -> None:
    """64 MiB at once, and then nothing for a second, in which the link could bring them."""
    stream = Stream(connection=60 * MIB, most=120 * MIB)
    waited_s = []
    for _ in range(8):
        ready = min(stream.size.bytes, 64 * MIB)
        stream.position += ready  # no wait for these
        stream.now_s += 1.0
        rested = stream.size.bytes / stream.most < 1.0
        stream.size.waited(
            stream.position, stream.connection, math.inf, stream.now_s, rested=rested
        )
        waited_s.append(stream.read(64 * MIB - ready))
    assert waited_s[0] > 0.3
    assert waited_s[-1] == 0
    assert stream.size.bytes == MOST_BYTES
