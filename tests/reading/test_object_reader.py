"""How far readahead goes, and what it costs."""

from __future__ import annotations

import dataclasses
import random
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sidecar.errors import StoreProtocolError, Unavailable
from sidecar.metrics import VolumeMetrics
from sidecar.mounter.reading import object_reader, window
from sidecar.mounter.reading.object_reader import ObjectReader
from sidecar.units import KIB, MIB
from tests.cache.folders import an_object, has_whole, keep, open_cache
from tests.reading.scripted import Reading, blocks
from tests.support.waiting import wait_until

Make = Callable[..., Reading]


@pytest.fixture(scope="module")
def metrics(tmp_path_factory: pytest.TempPathFactory) -> VolumeMetrics:
    return VolumeMetrics(tmp_path_factory.mktemp("metrics"), "data/v", "v")


@pytest.fixture
def reading(metrics: VolumeMetrics) -> Iterator[Make]:
    made: list[Reading] = []

    def make(size_bytes: int, budget_bytes: int = 256 * MIB) -> Reading:
        made.append(Reading(metrics, size_bytes, budget_bytes))
        return made[-1]

    yield make
    for one in made:
        one.end()


def read_all(one: Reading, reader: ObjectReader) -> None:
    for offset, size in blocks(len(one.content), MIB):
        one.check(reader, offset, size)


# --- the window -----------------------------------------------------------------------------------


def test_a_header_costs_one_part(reading: Make) -> None:
    one = reading(64 * MIB)
    one.check(one.open(), 0, 4 * KIB)
    one.settle()
    assert one.gets.ranges == [(0, MIB)]


def test_a_small_object_is_one_request(reading: Make) -> None:
    one = reading(700 * KIB)
    reader = one.open()
    one.check(reader, 300 * KIB, 100 * KIB)
    for offset, size in blocks(700 * KIB, 128 * KIB):
        one.check(reader, offset, size)
    assert one.gets.ranges == [(0, 700 * KIB)]


HALF = MIB // 2


def begun_part(one: Reading, reader: ObjectReader) -> int:
    """The start of a part with half a megabyte arrived. The rest waits for the gate."""
    for offset, size in blocks(4 * MIB, MIB):
        one.check(reader, offset, size)
    one.settle()
    start = max(map(sum, one.gets.ranges))
    one.gets.early_bytes = HALF
    one.gets.gate.clear()
    for offset in range(4 * MIB, start, MIB):
        one.check(reader, offset, MIB)
    return start


def test_a_part_that_comes_soon_is_not_read_along(
    reading: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A stream with 20 ms took a quarter longer."""
    monkeypatch.setattr(window, "SLOW_S", 3600)
    one = reading(64 * MIB)
    reader = one.open()
    start = begun_part(one, reader)
    taken: list[object] = []
    assert reader.read_when_here(start, 4 * KIB, taken.append)
    time.sleep(0.1)
    assert taken == []
    one.gets.gate.set()
    one.check(reader, start, MIB)
    one.settle()
    assert len(taken) == 1


def test_what_has_arrived_of_a_slow_part_is_read_while_the_rest_is_fetched(
    reading: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And also if the rest never comes."""
    monkeypatch.setattr(window, "SLOW_S", 0.01)
    one = reading(64 * MIB)
    reader = one.open()
    start = begun_part(one, reader)
    taken: list[object] = []
    one.check(reader, start, HALF)
    assert reader.read_when_here(start + HALF, 4 * KIB, taken.append)
    assert taken == []
    one.gets.failure = Unavailable("the store is away")
    one.gets.gate.set()
    one.settle()
    assert taken == [one.gets.failure]
    one.check(reader, start, HALF)
    one.gets.early_bytes = 0
    with pytest.raises(Unavailable):
        reader.read(start + HALF, 4 * KIB)
    one.gets.failure = None
    one.check(reader, start + HALF, MIB)


def test_a_reader_that_does_not_wait_gets_no_larger_window(reading: Make) -> None:
    one = reading(64 * MIB)
    reader = one.open()
    ahead = []
    for offset, size in blocks(32 * MIB, 256 * KIB):
        one.check(reader, offset, size)
        one.settle()  # everything is there before the next read
        ahead.append(max(start + length for start, length in one.gets.ranges) - offset)
    # Two waits at the most: the first read, and one that overtook the first part.
    assert max(ahead) <= 4 * MIB + 8 * MIB


def test_a_reader_that_waits_gets_a_larger_window_up_to_the_most(reading: Make) -> None:
    one = reading(200 * MIB)
    one.gets.delay_s = 0.1
    reader = one.open()
    most = 0
    for offset, size in blocks(120 * MIB, MIB):
        one.check(reader, offset, size)
        most = max(most, max(map(sum, one.gets.ranges)) - offset - size)
    assert most >= 32 * MIB


def test_a_reader_that_reads_in_bursts_has_the_next_one_ready(reading: Make) -> None:
    one = reading(256 * MIB)
    one.gets.delay_s = 0.1
    reader = one.open()
    burst = 16 * MIB
    for number in range(8):
        for offset, size in blocks(burst, MIB):
            one.check(reader, number * burst + offset, size)
        one.settle()
        time.sleep(0.3)  # the program computes
    assert max(map(sum, one.gets.ranges)) - 8 * burst >= burst


def test_nothing_is_asked_beyond_the_end_or_twice(reading: Make) -> None:
    one = reading(21 * MIB + 13)
    reader = one.open()
    for offset, size in blocks(21 * MIB + 13, 128 * KIB):
        one.check(reader, offset, size)
    assert one.read(reader, 21 * MIB + 13, 4096) == b""
    assert one.gets.asked_bytes == 21 * MIB + 13


# --- the budget -----------------------------------------------------------------------------------


@pytest.mark.parametrize("budget_mib", [1, 3, 16, 20])
def test_never_more_memory_than_the_budget(reading: Make, budget_mib: int) -> None:
    one = reading(48 * MIB, budget_mib * MIB)
    most = 0
    readers = [one.open() for _ in range(3)]
    for offset, size in blocks(48 * MIB, MIB + 3):
        for reader in readers:
            one.check(reader, offset, size)
            most = max(most, one.buffers.lent_bytes)
    assert 0 < most <= budget_mib * MIB
    for reader in readers:
        reader.close()
    one.settle()
    assert one.buffers.lent_bytes == 0


def test_a_read_larger_than_the_budget_is_served(reading: Make) -> None:
    one = reading(8 * MIB, 3 * MIB)
    reader = one.open()
    one.check(reader, 0, 8 * MIB)
    for offset, size in blocks(8 * MIB, MIB):  # Every part is still fetched by somebody.
        one.check(reader, offset, size)


def test_idle_readers_make_room(reading: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    one = reading(64 * MIB, 12 * MIB)
    idle = [one.open() for _ in range(6)]
    for reader in idle:
        for offset, size in blocks(4 * MIB, MIB):
            one.check(reader, offset, size)
    one.settle()
    monkeypatch.setattr(object_reader, "IDLE_S", 0.0)
    one.gets.ranges.clear()
    reader = one.open()
    for offset, size in blocks(64 * MIB, MIB):
        one.check(reader, offset, size)
    # One that waits for its turn may have it before it makes room.
    assert one.gets.asked_bytes <= 64 * MIB * 1.1
    assert len(one.gets.ranges) < 40, "it reads ahead in parts, not read by read"


# --- patterns -------------------------------------------------------------------------------------


def test_random_reads_cost_exactly_their_bytes(reading: Make) -> None:
    one = reading(256 * MIB)
    reader = one.open()
    dice = random.Random(3)
    offsets = [dice.randrange(0, 256 * MIB - 128 * KIB) & ~4095 for _ in range(300)]
    for offset in offsets:
        one.check(reader, offset, 128 * KIB)
    one.settle()
    # By chance, a read may begin where another one ended, or be in memory already.
    assert one.gets.asked_bytes <= 300 * 128 * KIB * 1.1


def test_random_reads_after_a_header_cost_no_more(reading: Make) -> None:
    one = reading(24 * MIB)  # all of it within a seek of the header
    reader = one.open()
    one.check(reader, 0, 4 * KIB)
    one.settle()
    one.gets.ranges.clear()
    dice = random.Random(4)
    for _ in range(100):
        one.check(reader, dice.randrange(2 * MIB, 23 * MIB) & ~4095, 4 * KIB)
    one.settle()
    assert one.gets.asked_bytes <= 100 * 4 * KIB + 8 * MIB


def test_small_seeks_keep_the_stream(reading: Make) -> None:
    one = reading(64 * MIB, budget_bytes=12 * MIB)  # however long a loaded machine makes it wait
    reader = one.open()
    for offset, size in blocks(16 * MIB, 256 * KIB):
        one.check(reader, offset, size)
    one.settle()
    asked = len(one.gets.ranges)
    position = 16 * MIB
    one.check(reader, position - 2 * MIB, 256 * KIB)  # back
    one.check(reader, position + 300 * KIB, 256 * KIB)  # forward, within what is there
    one.settle()
    assert not [r for r in one.gets.ranges[asked:] if r[0] < position]
    one.check(reader, 40 * MIB, 256 * KIB)  # further: what lies between is not fetched
    one.settle()
    assert one.gets.asked_bytes < 36 * MIB


def test_reading_records_with_gaps_costs_the_records(reading: Make) -> None:
    one = reading(100 * MIB)
    reader = one.open()
    for number in range(20):
        one.check(reader, number * 5 * MIB, 100 * KIB)
    one.settle()
    assert one.gets.asked_bytes <= 20 * 100 * KIB + 4 * MIB


@pytest.mark.parametrize("step", [64 * KIB, MIB])
def test_reading_backwards_costs_every_byte_once(reading: Make, step: int) -> None:
    one = reading(16 * MIB)
    reader = one.open()
    for offset, size in reversed(list(blocks(16 * MIB, step))):
        one.check(reader, offset, size)
    one.settle()
    assert one.gets.asked_bytes <= 17 * MIB


def test_four_interleaved_streams_of_one_handle(reading: Make) -> None:
    one = reading(64 * MIB)
    reader = one.open()
    for offset, size in blocks(16 * MIB, 128 * KIB):
        for quarter in range(4):
            one.check(reader, quarter * 16 * MIB + offset, size)
    one.settle()
    assert len(one.gets.ranges) < 100, "in parts, not read by read"
    # A window may reach into the next quarter, which its own reader has fetched before.
    assert one.gets.asked_bytes <= 2 * 64 * MIB


@pytest.mark.parametrize("seed", range(5))
def test_reads_out_of_order_as_the_kernel_sends_them(reading: Make, seed: int) -> None:
    one = reading(32 * MIB)
    reader = one.open()
    requests = [(offset, MIB) for offset in range(0, 32 * MIB, MIB)]
    dice = random.Random(seed)
    while requests:
        offset, size = requests.pop(dice.randrange(min(4, len(requests))))
        one.check(reader, offset, size)
    one.settle()
    assert one.gets.asked_bytes <= 1.4 * 32 * MIB


def test_a_reader_that_comes_to_where_another_one_is_goes_on_there(reading: Make) -> None:
    one = reading(24 * MIB)
    reader = one.open()
    for offset, size in blocks(3 * MIB, 128 * KIB):
        one.check(reader, 8 * MIB + offset, size)
    for offset, size in blocks(24 * MIB, MIB - 7):  # one read lies across the border
        one.check(reader, offset, size)
    one.settle()
    assert one.gets.asked_bytes <= 24 * MIB + 256 * KIB


# --- close, failures, threads ---------------------------------------------------------------------


def test_close_while_fetches_are_under_way(reading: Make) -> None:
    one = reading(64 * MIB)
    reader = one.open()
    for offset, size in blocks(4 * MIB, MIB):
        one.check(reader, offset, size)
    one.gets.gate.clear()
    waiting = threading.Thread(target=one.check, args=(reader, 20 * MIB, MIB))
    waiting.start()
    wait_until(lambda: one.gets.under_way, "a fetch")
    reader.close()
    reader.close()
    one.gets.gate.set()
    waiting.join()
    one.check(reader, 5 * MIB, MIB)  # late, and still right
    one.settle()
    assert one.buffers.lent_bytes == 0


def test_a_failed_part_is_that_reads_error_and_the_next_one_tries_again(reading: Make) -> None:
    one = reading(16 * MIB)
    reader = one.open()
    one.check(reader, 0, MIB)
    one.settle()
    one.gets.failure = Unavailable("down")
    with pytest.raises(Unavailable):
        read_all(one, reader)
    one.gets.failure = None
    read_all(one, reader)


def test_an_old_failure_of_what_was_read_ahead_is_nobodys_error(reading: Make) -> None:
    one = reading(16 * MIB)
    reader = one.open()
    one.check(reader, 0, 512 * KIB)
    one.gets.failure = Unavailable("down")
    one.check(reader, 512 * KIB, 512 * KIB)  # asks ahead
    one.settle()
    one.gets.failure = None
    one.check(reader, MIB, MIB)


def test_a_store_that_gives_too_little_is_an_error(reading: Make) -> None:
    one = reading(4 * MIB)
    one.store._objects["object"] = (one.content[:-1], one.info)
    reader = one.open()
    with pytest.raises(StoreProtocolError):
        one.check(reader, 3 * MIB, MIB)


@given(
    reads=st.lists(
        st.tuples(st.integers(0, 20 * MIB), st.integers(1, 2 * MIB)), min_size=4, max_size=40
    ),
    budget_mib=st.integers(1, 40),
    threads=st.integers(1, 6),
)
@settings(max_examples=25, deadline=None)
def test_many_threads_on_one_reader_get_right_bytes(
    metrics: VolumeMetrics,
    reads: list[tuple[int, int]],
    budget_mib: int,
    threads: int,
) -> None:
    one = Reading(metrics, 20 * MIB + 7, budget_mib * MIB)
    wrong: list[BaseException] = []
    reader = one.open()

    def run(number: int) -> None:
        try:
            for offset, size in reads[number:] + reads[:number]:
                one.check(reader, offset, size)
                assert one.buffers.lent_bytes <= budget_mib * MIB
        except BaseException as error:  # noqa: BLE001 - reported by the main thread
            wrong.append(error)

    running = [threading.Thread(target=run, args=(number,)) for number in range(threads)]
    for thread in running:
        thread.start()
    for thread in running:
        thread.join(60)
        assert not thread.is_alive(), "it hangs"
    one.end()
    assert not wrong
    assert one.buffers.lent_bytes == 0


# --- the disk cache -------------------------------------------------------------------------------


def test_a_reader_that_rests_lets_its_object_be_evicted(reading: Make, tmp_path: Path) -> None:
    one = reading(8 * MIB)
    cache = open_cache(tmp_path, 14 * MIB)
    one.fetcher = dataclasses.replace(one.fetcher, cache=cache)
    reader = one.open()
    read_all(one, reader)
    wait_until(lambda: has_whole(cache, one.info), "kept")
    other, content = an_object(8 * MIB, "other")
    keep(cache, other, content)
    assert not has_whole(cache, other)  # the reader has the room
    assert reader.drop_idle(0.0)
    keep(cache, other, content)
    assert has_whole(cache, other)
    read_all(one, reader)
    assert one.gets.asked_bytes == 2 * len(one.content)


def test_a_reader_that_rested_finds_what_was_kept_meanwhile(reading: Make, tmp_path: Path) -> None:
    one = reading(100 * KIB)
    cache = open_cache(tmp_path)
    one.fetcher = dataclasses.replace(one.fetcher, cache=cache)
    reader = one.open()
    read_all(one, reader)
    here = memoryview(bytearray(100 * KIB))
    wait_until(lambda: cache.read_small(one.info, 0, here), "kept")
    assert here == one.content
    reader.drop_idle(0.0)
    for offset in (50 * KIB, 0):
        one.check(reader, offset, 10 * KIB)
    assert one.gets.ranges == [(0, 100 * KIB)]
