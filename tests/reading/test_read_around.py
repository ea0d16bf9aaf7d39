"""Random reads of one object: read-around, background readahead, and their limits."""

from __future__ import annotations

import itertools
import os
import random
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from sidecar.contract.spec import Volume
from sidecar.errors import Unavailable
from sidecar.metrics import VolumeMetrics
from sidecar.mounter.fuse.readers.process import blocks_of_process, process_by_place
from sidecar.mounter.reading.object_reader import ObjectReader
from sidecar.mounter.reading.read_around import MOST_BYTES, PageCacheShare, ReadAround
from sidecar.units import KIB, MIB
from tests.reading.buckets import fill, make_bucket, sidecar_behind
from tests.reading.scripted import Reading
from tests.support.clouds import RcloneCloud
from tests.support.faults import FaultProxy
from tests.support.killer import caches_kept, kill_worker
from tests.support.page_cache import resident_pages
from tests.support.servers import RcloneServer, S3Server
from tests.support.sidecar import Sidecar
from tests.support.waiting import wait_until

BLOCK, PAGE = 128 * KIB, 4 * KIB
SIZE = 96 * MIB

Make = Callable[..., Reading]


@pytest.fixture
def reading(tmp_path: Path) -> Iterator[Make]:
    made: list[Reading] = []

    def make(size_bytes: int = SIZE, page_cache_bytes: int = SIZE) -> Reading:
        metrics = VolumeMetrics(tmp_path / "metrics", "data/v", "v")
        made.append(Reading(metrics, size_bytes, page_cache_bytes=page_cache_bytes))
        return made[-1]

    yield make
    for one in made:
        one.end()


class Pages:
    """The kernel's page cache: blocks that were read, or given to it."""

    def __init__(self, one: Reading, reader: ObjectReader) -> None:
        self._one = one
        self._reader = reader
        self.there: set[int] = set()

    def read(self, offset: int, *, keep: bool = True) -> None:
        """Read one block, from the pages or else through the reader."""
        if offset in self.there:
            return
        result = self._reader.read(offset, BLOCK)
        content = self._one.content
        assert b"".join(result.views) == content[offset : offset + BLOCK]
        for at, view in result.surplus:
            assert view == content[at : at + len(view)]
            if keep:
                self.there.update(range(at, at + len(view), BLOCK))
        if result.surplus:
            result.given()
        result.release()
        self.there.add(offset)


def shuffled(size_bytes: int = SIZE) -> list[int]:
    """Every block of an object, in random order; the first one last, as it begins a window."""
    offsets = list(range(BLOCK, size_bytes, BLOCK))
    random.Random(2).shuffle(offsets)
    return [*offsets, 0]


def scattered() -> list[int]:
    """A third of the blocks in random order, none next to another: there is no readahead."""
    offsets = list(range(BLOCK, SIZE, 3 * BLOCK))
    random.Random(2).shuffle(offsets)
    return offsets


def test_the_first_reads_bring_what_they_ask_for(reading: Make) -> None:
    one = reading()
    pages = Pages(one, one.open(surplus=True))
    for offset in scattered()[:16]:
        pages.read(offset)
    assert one.gets.asked_bytes == 16 * BLOCK


def test_reading_all_of_an_object_fetches_it_once_in_few_requests(reading: Make) -> None:
    one = reading()
    pages = Pages(one, one.open(surplus=True))
    for offset in shuffled():
        pages.read(offset)
    assert one.gets.asked_bytes <= 1.5 * SIZE  # some blocks follow others by chance
    assert len(one.gets.ranges) < SIZE // BLOCK // 2


def test_at_any_moment_little_more_was_fetched_than_one_read_brings(reading: Make) -> None:
    one = reading()
    pages = Pages(one, one.open(surplus=True))
    asked = 0
    for offset in scattered():
        before = one.gets.asked_bytes
        pages.read(offset)
        asked += BLOCK
        assert one.gets.asked_bytes - before <= max(BLOCK, asked // 16)


@pytest.mark.parametrize("budget_bytes", [0, SIZE - 1])
def test_without_room_in_the_page_cache_there_is_no_read_around(
    reading: Make, budget_bytes: int
) -> None:
    one = reading(page_cache_bytes=budget_bytes)
    pages = Pages(one, one.open(surplus=True))
    for offset in scattered()[:200]:
        pages.read(offset)
    assert one.gets.asked_bytes == 200 * BLOCK


def test_a_reader_that_cannot_give_pages_does_no_read_around(reading: Make) -> None:
    one = reading()
    pages = Pages(one, one.open())
    for offset in scattered()[:200]:
        pages.read(offset)
    assert one.gets.asked_bytes == 200 * BLOCK


def test_where_the_kernel_drops_what_it_was_given_no_more_is_given(reading: Make) -> None:
    one = reading()
    pages = Pages(one, one.open(surplus=True))
    offsets = scattered()
    for offset in offsets:
        pages.read(offset, keep=False)
    assert one.gets.asked_bytes > len(offsets) * BLOCK
    before = one.gets.asked_bytes
    pages.there.clear()
    for offset in offsets[:200]:
        pages.read(offset, keep=False)
    assert one.gets.asked_bytes - before == 200 * BLOCK


def test_a_failed_fetch_leaves_nothing_behind(reading: Make) -> None:
    one = reading()
    reader = one.open(surplus=True)
    pages = Pages(one, reader)
    offsets = scattered()
    for offset in offsets[:100]:
        pages.read(offset)
    missing = next(offset for offset in offsets if offset not in pages.there)
    one.gets.failure = Unavailable("away")
    with pytest.raises(Unavailable):
        reader.read(missing, BLOCK)
    one.gets.failure = None
    pages.read(missing)


def test_the_last_bytes_of_an_object_may_be_the_first_that_are_read(reading: Make) -> None:
    """As in an archive, whose directory is at the end."""
    one = reading(SIZE + 5)
    reader = one.open(surplus=True)
    one.check(reader, SIZE, 5)
    assert one.gets.ranges == [(SIZE, 5)]


@pytest.mark.parametrize("how", ["failed", "not taken"])
def test_what_the_kernel_never_had_it_cannot_drop(reading: Make, how: str) -> None:
    one = reading()
    reader = one.open(surplus=True)
    offsets = scattered()
    if how == "failed":
        one.gets.failure = Unavailable("away")
    for offset in offsets:
        if how == "failed":
            with pytest.raises(Unavailable):
                reader.read(offset, BLOCK)
        else:
            reader.read(offset, BLOCK).release()
    one.gets.failure = None
    before = one.gets.asked_bytes
    pages = Pages(one, reader)
    for offset in offsets:
        pages.read(offset)
    assert len(pages.there) > 2 * len(offsets)
    assert one.gets.asked_bytes - before < 1.5 * SIZE


def test_room_is_shared_and_given_back() -> None:
    share = PageCacheShare(100 * MIB)
    first, second = (ReadAround(share, 60 * MIB, range(0)) for _ in range(2))
    for one in (first, second):
        for offset in range(0, 40 * MIB, MIB):
            one.end(one.begin(offset, offset + BLOCK)[0])
    assert first.begin(50 * MIB, 50 * MIB + BLOCK) != (50 * MIB, 50 * MIB + BLOCK)
    assert second.begin(50 * MIB, 50 * MIB + BLOCK) == (50 * MIB, 50 * MIB + BLOCK)
    first.pause()
    assert second.begin(50 * MIB, 50 * MIB + BLOCK) != (50 * MIB, 50 * MIB + BLOCK)
    second.pause()
    assert share.reserve(100 * MIB)


class Behind:
    """Takes what background readahead fetches, and compares it."""

    def __init__(self, one: Reading) -> None:
        self._one = one
        self.ranges: list[tuple[int, int]] = []

    def give(self, offset: int, view: memoryview) -> None:
        assert view == self._one.content[offset : offset + len(view)]
        self.ranges.append((offset, offset + len(view)))


def read_at_random(one: Reading) -> ObjectReader:
    """A reader after just enough random reads to start background readahead."""
    reader = one.open(surplus=True)
    for offset in scattered():
        reader.read(offset, BLOCK).release()
    return reader


def asked_at_random(size_bytes: int, blocks: range) -> ReadAround:
    """A ReadAround after as many random reads, without a reader."""
    read_around = ReadAround(PageCacheShare(size_bytes), size_bytes, blocks)
    for offset in range(0, 32 * MIB, BLOCK):
        read_around.end(read_around.begin(offset, offset + BLOCK)[0])
    return read_around


def test_before_it_pays_nothing_is_brought_behind(reading: Make) -> None:
    one = reading()
    reader = one.open(surplus=True)
    behind = Behind(one)
    for offset in scattered()[:-1]:
        reader.read(offset, BLOCK).release()
        reader.read_ahead_in_background(behind.give)
    assert not behind.ranges


def test_then_all_that_the_kernel_has_not_is_brought_once(reading: Make) -> None:
    one = reading()
    reader = one.open(surplus=True)
    behind = Behind(one)
    there: set[int] = set()
    for offset in scattered():
        result = reader.read(offset, BLOCK)
        if len(there) < 64 and result.surplus:
            there.add(offset)
            for at, view in result.surplus:
                there.update(range(at, at + len(view), BLOCK))
            result.given()
        result.release()
    reader.read_ahead_in_background(behind.give)
    reader.read_ahead_in_background(behind.give)
    brought = [at for begin, end in behind.ranges for at in range(begin, end, BLOCK)]
    assert sorted(brought) == sorted(set(range(0, SIZE, BLOCK)) - there)


def test_what_is_brought_behind_is_a_multiple_of_what_was_asked() -> None:
    size = 8 * 1024 * MIB
    read_around = ReadAround(PageCacheShare(size), size, range(size // MOST_BYTES))
    offsets = list(range(0, size, MOST_BYTES))
    random.Random(3).shuffle(offsets)
    asked = brought = 0
    there: set[int] = set()
    for offset in offsets:
        if offset in there:
            continue  # The kernel has it.
        first, last = read_around.begin(offset, offset + BLOCK)
        read_around.given(first, last)
        read_around.end(first)
        asked += BLOCK
        brought += last - first
        while (span := read_around.next_background()) is not None:
            read_around.given(*span)
            brought += span[1] - span[0]
            there.update(range(span[0], span[1], BLOCK))
        assert brought <= 32 * asked
    assert 0.99 * size < brought < 1.1 * size
    assert asked < size / 30


def test_only_the_blocks_of_this_process_are_brought() -> None:
    size = 128 * MIB + 5
    read_around = asked_at_random(size, range(1, 65, 3))
    spans = []
    while (span := read_around.next_background()) is not None:
        read_around.given(*span)
        spans.append(span)
    assert [first // MOST_BYTES for first, _ in spans] == list(range(1, 65, 3))
    assert spans[-1] == (128 * MIB, size)


@pytest.mark.parametrize("processes", [1, 2, 3, 4])
@pytest.mark.parametrize("source", [1, 2, 7])
def test_each_block_is_of_the_process_that_is_asked_for_it(source: int, processes: int) -> None:
    size = 10 * MOST_BYTES + 1
    for process in range(processes):
        for block in blocks_of_process(source, size, process, processes):
            assert process_by_place(source, block * MOST_BYTES, processes) == process
    every = [blocks_of_process(source, size, process, processes) for process in range(processes)]
    assert sorted(block for blocks in every for block in blocks) == list(range(11))


def test_a_read_of_what_is_being_brought_asks_for_itself() -> None:
    read_around = asked_at_random(128 * MIB, range(64))
    span = read_around.next_background()
    assert span is not None
    offset = span[0] + BLOCK
    assert read_around.begin(offset, offset + BLOCK) == (offset, offset + BLOCK)
    read_around.given(*span)
    another = read_around.next_background()
    assert another is not None
    assert another[0] >= span[1]


def test_while_several_reads_are_under_way_nothing_is_brought_behind() -> None:
    read_around = asked_at_random(128 * MIB, range(64))
    first, second = (read_around.begin(at, at + BLOCK)[0] for at in (64 * MIB, 96 * MIB))
    assert read_around.next_background() is None
    read_around.end(first)
    assert read_around.next_background() is not None
    read_around.end(second)


def test_who_is_closed_brings_nothing_more(reading: Make) -> None:
    one = reading()
    reader = read_at_random(one)
    behind = Behind(one)

    def give(offset: int, view: memoryview) -> None:
        behind.give(offset, view)
        reader.close()

    reader.read_ahead_in_background(give)
    assert len(behind.ranges) == 1


def test_who_rests_brings_nothing_more(reading: Make) -> None:
    one = reading()
    reader = read_at_random(one)
    assert not reader.drop_idle(0.0)  # it has no window
    behind = Behind(one)
    reader.read_ahead_in_background(behind.give)
    assert not behind.ranges


def test_where_bringing_fails_the_next_one_goes_on(reading: Make) -> None:
    one = reading()
    reader = read_at_random(one)
    behind = Behind(one)
    one.gets.failure = Unavailable("away")
    with pytest.raises(Unavailable):
        reader.read_ahead_in_background(behind.give)
    one.gets.failure = None
    reader.read_ahead_in_background(behind.give)
    assert sum(end - begin for begin, end in behind.ranges) == SIZE


def test_through_a_mount_every_byte_is_right_and_most_reads_ask_nothing(
    s3_server: S3Server, tmp_path: Path
) -> None:
    cloud = make_bucket(s3_server)
    fill(cloud, {"key": SIZE})
    content = cloud.read("key")
    with (
        FaultProxy(s3_server.port) as proxy,
        sidecar_behind(proxy, cloud, tmp_path / "run", tmp_path / "m") as sidecar,
    ):
        file = os.open(tmp_path / "m" / "key", os.O_RDONLY)
        try:

            def read(offset: int) -> bool:
                return os.pread(file, BLOCK, offset) == content[offset : offset + BLOCK]

            offsets = shuffled()
            with ThreadPoolExecutor(8) as threads:
                assert all(threads.map(read, offsets[:400]))
                kill_worker(sidecar, "v")
                assert all(threads.map(read, offsets[400:]))
                assert all(threads.map(read, offsets))
        finally:
            os.close(file)
        labels = {"volume": "data/v", "operation": "get"}
        name = "mount_sidecar_store_request_duration_seconds_count"
        requests = sidecar.metric(name, **labels)
        print(f"{requests:.0f} requests for {len(offsets)} blocks")
        assert requests < len(offsets) * 2 / 3  # Without read-around: four fifths.


@pytest.mark.timeout(600)  # it may wait for those that drop caches
def test_through_a_mount_the_rest_comes_while_the_program_rests(tmp_path: Path) -> None:
    """With a sparse object whose blocks differ in their first bytes."""
    size = 1024 * MIB
    with RcloneServer(tmp_path / "server", etags=False) as server:
        cloud = RcloneCloud(server, "behind")
        server.create_bucket(cloud.bucket)
        with (server.data / cloud.bucket / "large").open("wb") as file:
            file.truncate(size)
            for offset in range(0, size, BLOCK):
                os.pwrite(file.fileno(), offset.to_bytes(8, "little"), offset)
        mount = tmp_path / "m"
        source = cloud.source()
        volume = Volume(name="v", kind="data", path=str(mount), read_only=True, source=source)
        secrets = {"cloud": server.credentials_json()}
        with caches_kept(), Sidecar(tmp_path / "run", [volume], secrets=secrets) as sidecar:
            descriptor = os.open(mount / "large", os.O_RDONLY)
            try:
                os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_RANDOM)

                def check(offset: int) -> None:
                    expected = offset.to_bytes(8, "little") + bytes(BLOCK - 8)
                    assert os.pread(descriptor, BLOCK, offset) == expected

                def fetched() -> float:
                    return sidecar.metric("mount_sidecar_fetched_bytes_total")

                def comes_by_itself(within_s: float = 0.1) -> bool:
                    # The read's own fetch has ended when it is answered.
                    before = fetched()
                    time.sleep(within_s)
                    return fetched() > before

                offsets = iter(shuffled(size))
                came = False
                while fetched() < 0.9 * size:
                    if comes_by_itself():
                        came = True
                    else:  # not yet for every reader process
                        for offset in itertools.islice(offsets, 100):
                            check(offset)
                assert came
                wait_until(lambda: not comes_by_itself(2.0), "all of it is there")
                assert fetched() < 1.3 * size
                pages = resident_pages(descriptor, size)
                kept = next(at for at in range(0, size, BLOCK) if pages[at // PAGE])
                before = fetched()
                check(kept)
                assert fetched() == before
                for offset in range(0, size, BLOCK):
                    check(offset)
            finally:
                os.close(descriptor)
