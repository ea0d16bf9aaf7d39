"""Objects that are loaded whole, in whatever order: each block once, and every byte right."""

from __future__ import annotations

import os
import random
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from sidecar.contract.options import Options
from sidecar.contract.spec import Volume
from sidecar.errors import Unavailable
from sidecar.metrics import VolumeMetrics
from sidecar.mounter.reading.object_reader import ObjectReader
from sidecar.mounter.reading.whole_load import (
    BLOCK_BYTES,
    is_loaded_whole,
    process_of_region,
    region_of_process,
)
from sidecar.units import KIB, MIB
from tests.reading.buckets import fill, make_bucket, sidecar_behind
from tests.reading.scripted import Reading
from tests.support.faults import FaultProxy
from tests.support.killer import caches_kept, kill_worker
from tests.support.memory_store import Hook
from tests.support.servers import S3Server
from tests.support.waiting import wait_until

SIZE = 61 * MIB + 12_345
ASKED = 128 * KIB

Make = Callable[..., Reading]


@pytest.fixture
def reading(tmp_path: Path) -> Iterator[Make]:
    made: list[Reading] = []

    def make(page_cache_bytes: int = SIZE, budget_bytes: int = 256 * MIB) -> Reading:
        metrics = VolumeMetrics(tmp_path / "metrics", "data/v", "v")
        made.append(Reading(metrics, SIZE, budget_bytes, page_cache_bytes, loads_whole=True))
        return made[-1]

    yield make
    for one in made:
        one.end()


class Kernel:
    """A program's reads through a page cache."""

    def __init__(self, one: Reading, reader: ObjectReader) -> None:
        self._one = one
        self._reader = reader
        self._lock = threading.Lock()
        self.read_bytes = 0  # what the reader was asked for

    def read(self, offset: int) -> None:
        """Read one piece, from pages that were given or through the reader."""
        end = min(offset + ASKED, SIZE)
        if any(low <= offset and end <= high for low, high in list(self._one.pages)):
            return
        result = self._reader.read(offset, ASKED)
        assert b"".join(result.views) == self._one.content[offset:end]
        with self._lock:
            self.read_bytes += end - offset
        if result.surplus:
            for at, view in result.surplus:
                self._one.filled(at, view)
            result.given()
        result.release()


def offsets() -> list[int]:
    """Every piece of the object in random order."""
    found = list(range(0, SIZE, ASKED))
    random.Random(1).shuffle(found)
    return found


def is_at_rest(one: Reading) -> bool:
    """Whether all memory is given back."""
    return one.buffers.lent_bytes == 0


@pytest.mark.parametrize("processes", [1, 2, 3, 4, 7])
@pytest.mark.parametrize("size", [1, BLOCK_BYTES, 3 * BLOCK_BYTES + 1, SIZE, 1 << 34])
def test_each_byte_is_of_one_process(size: int, processes: int) -> None:
    regions = [region_of_process(size, process, processes) for process in range(processes)]
    assert sum(map(len, regions)) == size
    for process, region in enumerate(regions):
        assert region.start % BLOCK_BYTES == 0 or not region
        for offset in {region.start, region.stop - 1} if region else ():
            assert process_of_region(size, offset, processes) == process


@pytest.mark.parametrize(
    ("choice", "key", "whole"),
    [
        ("models", "llama/model-00001-of-00004.safetensors", True),
        ("models", "a/B.GGUF", True),
        ("models", "x/pytorch_model-00001-of-00002.bin", True),
        ("models", "tokens/train.bin", False),
        ("models", "model.safetensors/part", False),
        ("always", "tokens/train.bin", True),
        ("never", "model.pt", False),
    ],
)
def test_models_are_known_by_their_names(choice: str, key: str, whole: bool) -> None:
    assert is_loaded_whole(choice, key) is whole  # type: ignore[arg-type]


@pytest.mark.parametrize("threads", [1, 8])
def test_in_any_order_each_block_is_fetched_once(reading: Make, threads: int) -> None:
    one = reading()
    kernel = Kernel(one, one.open(surplus=True))
    with ThreadPoolExecutor(threads) as pool:
        list(pool.map(kernel.read, offsets()))
    wait_until(lambda: is_at_rest(one), "the last block was given")
    blocks = [offset for offset, size in one.gets.ranges if size > ASKED]
    assert sorted(blocks) == list(range(0, SIZE, BLOCK_BYTES))
    # Unlike a kernel's, these reads do not lock the pages that they wait for.
    assert one.gets.asked_bytes <= SIZE + 16 * ASKED


def test_after_one_read_the_rest_comes_by_itself(reading: Make) -> None:
    one = reading()
    kernel = Kernel(one, one.open(surplus=True))
    kernel.read(40 * MIB)
    brought = lambda: sum(high - low for low, high in one.pages)  # noqa: E731 - asked in a loop
    wait_until(lambda: brought() + ASKED == SIZE, "every page but those that were read")
    wait_until(lambda: is_at_rest(one), "nothing is kept")
    assert one.gets.asked_bytes == SIZE
    first_blocks = [offset // BLOCK_BYTES for offset, _ in one.gets.ranges[:3]]
    assert first_blocks == [5, 6, 7]  # what follows the read comes first


def test_reading_from_the_start_begins_nothing(reading: Make) -> None:
    one = reading()
    reader = one.open(surplus=True)
    for offset in range(0, SIZE, ASKED):
        one.check(reader, offset, ASKED)
    assert one.pages == []


def test_reads_of_one_block_wait_for_one_fetch(reading: Make) -> None:
    one = reading()
    reader = one.open(surplus=True)
    one.gets.gate.clear()
    with ThreadPoolExecutor(8) as pool:
        at = [8 * MIB + number * ASKED for number in range(8)]
        reads = [pool.submit(one.read, reader, offset, ASKED) for offset in at]
        wait_until(lambda: one.gets.under_way >= 1, "it is fetched")
        one.gets.gate.set()
        for offset, read in zip(at, reads, strict=True):
            assert read.result() == one.content[offset : offset + ASKED]
    assert len([start for start, _ in one.gets.ranges if start == 8 * MIB]) == 1


def test_a_read_may_lie_in_two_blocks(reading: Make) -> None:
    one = reading()
    reader = one.open(surplus=True)
    for edge in range(BLOCK_BYTES, SIZE - MIB, BLOCK_BYTES):
        one.check(reader, edge - MIB // 2, MIB)
    assert one.gets.asked_bytes <= SIZE + 8 * MIB  # some were given, and asked for again


def test_a_failure_is_told_and_the_next_read_goes_on(reading: Make) -> None:
    one = reading()
    reader = one.open(surplus=True)
    one.gets.failure = Unavailable("away")
    with pytest.raises(Unavailable):
        reader.read(20 * MIB, ASKED)
    one.gets.failure = None
    kernel = Kernel(one, reader)
    for offset in offsets():
        kernel.read(offset)
    wait_until(lambda: is_at_rest(one), "nothing is kept")


def test_what_the_kernel_drops_is_fetched_as_asked_and_at_last_no_more_is_brought(
    reading: Make,
) -> None:
    one = reading()
    reader = one.open(surplus=True)
    Kernel(one, reader).read(20 * MIB)
    wait_until(lambda: one.gets.asked_bytes >= SIZE and is_at_rest(one), "all of it is given")
    before = one.gets.asked_bytes
    for offset in offsets()[:40]:
        one.check(reader, offset, ASKED)
    assert one.gets.asked_bytes - before <= 40 * 2 * MIB  # read-around, from the 33rd on
    pages = len(one.pages)
    one.check(reader, 24 * MIB, ASKED)
    assert len(one.pages) == pages


def test_after_a_rest_nothing_is_brought_again(reading: Make) -> None:
    """A page that the kernel dropped meanwhile is asked for, and that page alone is fetched."""
    one = reading()
    reader = one.open(surplus=True)
    Kernel(one, reader).read(20 * MIB)
    wait_until(lambda: one.gets.asked_bytes >= SIZE and is_at_rest(one), "all of it is given")
    reader.drop_idle(0.0)
    assert one.fetcher.page_cache.reserve(SIZE)  # others may have the room
    one.fetcher.page_cache.give_back(SIZE)
    before = one.gets.asked_bytes
    one.check(reader, 40 * MIB, ASKED)
    wait_until(lambda: is_at_rest(one), "nothing is kept")
    assert one.gets.asked_bytes - before == ASKED


def test_of_two_blocks_one_may_fail(reading: Make) -> None:
    """The other one is no less the kernel's."""
    one = reading()
    reader = one.open(surplus=True)

    def fail_once(get_range: Hook, key: str, version: str, offset: int, *arguments: object) -> int:
        if offset == 2 * BLOCK_BYTES:
            one.store.hooks["get"] = one.gets
            raise Unavailable("away")
        return one.gets(get_range, key, version, offset, *arguments)

    one.store.hooks["get"] = fail_once
    with pytest.raises(Unavailable):
        reader.read(2 * BLOCK_BYTES - ASKED, 2 * ASKED)
    one.check(reader, 5 * BLOCK_BYTES, ASKED)
    wait_until(lambda: is_at_rest(one), "nothing is kept")


@pytest.mark.parametrize("budget_bytes", [0, SIZE - 1])
def test_what_the_page_cache_has_no_room_for_is_not_loaded(
    reading: Make, budget_bytes: int
) -> None:
    one = reading(budget_bytes)
    reader = one.open(surplus=True)
    one.check(reader, 20 * MIB, ASKED)
    assert one.gets.asked_bytes == ASKED
    assert one.pages == []


def test_with_little_memory_every_byte_is_right(reading: Make) -> None:
    one = reading(budget_bytes=2 * BLOCK_BYTES)
    kernel = Kernel(one, one.open(surplus=True))
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(kernel.read, offsets()))
    wait_until(lambda: is_at_rest(one), "nothing is kept")
    assert one.gets.asked_bytes < 2 * SIZE


def test_who_is_closed_brings_nothing_more(reading: Make) -> None:
    one = reading()
    reader = one.open(surplus=True)
    one.gets.delay_s = 0.05
    one.check(reader, 20 * MIB, ASKED)
    reader.close()
    asked = one.gets.asked_bytes
    wait_until(lambda: is_at_rest(one), "what was in flight is dropped")
    assert one.gets.asked_bytes <= asked + 5 * BLOCK_BYTES
    assert one.fetcher.page_cache.reserve(SIZE)


def test_through_a_mount_each_byte_is_right_and_fetched_once(
    s3_server: S3Server, tmp_path: Path
) -> None:
    """Also if the worker dies meanwhile: then what the kernel has is not fetched again."""
    cloud = make_bucket(s3_server)
    fill(cloud, {"weights.safetensors": SIZE, "other": SIZE})
    content = cloud.read("weights.safetensors")
    mount = tmp_path / "m"
    with (
        caches_kept(),
        FaultProxy(s3_server.port) as proxy,
        sidecar_behind(proxy, cloud, tmp_path / "run", mount) as sidecar,
    ):
        file = os.open(mount / "weights.safetensors", os.O_RDONLY)
        try:
            os.posix_fadvise(file, 0, 0, os.POSIX_FADV_RANDOM)

            def read(offset: int) -> bool:
                return os.pread(file, ASKED, offset) == content[offset : offset + ASKED]

            order = offsets()
            with ThreadPoolExecutor(8) as pool:
                assert all(pool.map(read, order[:50]))
                wait_until(
                    lambda: sidecar.metric("mount_sidecar_fetched_bytes_total") >= SIZE, "all"
                )
                assert sidecar.metric("mount_sidecar_fetched_bytes_total") < 1.1 * SIZE
                assert all(pool.map(read, order))
                kill_worker(sidecar, "v")
                assert all(pool.map(read, order))
        finally:
            os.close(file)


def test_never_means_never(s3_server: S3Server, tmp_path: Path) -> None:
    cloud = make_bucket(s3_server)
    fill(cloud, {"weights.safetensors": SIZE})
    volume = Volume(name="v", kind="data", path="/", source=cloud.source())
    assert volume.options.read_whole == "models"
    with (
        FaultProxy(s3_server.port) as proxy,
        sidecar_behind(
            proxy, cloud, tmp_path / "run", tmp_path / "m", options=Options(read_whole="never")
        ) as sidecar,
    ):
        file = os.open(tmp_path / "m" / "weights.safetensors", os.O_RDONLY)
        try:
            os.posix_fadvise(file, 0, 0, os.POSIX_FADV_RANDOM)
            for offset in offsets()[:20]:
                os.pread(file, ASKED, offset)
        finally:
            os.close(file)
        assert sidecar.metric("mount_sidecar_fetched_bytes_total") <= 21 * MIB
