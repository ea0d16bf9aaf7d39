"""The near bucket: what is read from where, and that nothing it does costs more than a fetch."""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sidecar.errors import (
    AccessDenied,
    NotFound,
    QuotaExceeded,
    SidecarError,
    Stale,
    Unavailable,
)
from sidecar.metrics import VolumeMetrics
from sidecar.mounter.cache import near_block, near_bucket
from sidecar.mounter.cache.near_block import NEAR_BLOCK_BYTES, BlockName
from sidecar.mounter.cache.near_bucket import NearBucket
from sidecar.mounter.store.interface import Content, ObjectInfo
from sidecar.units import KIB, MIB
from tests.support.memory_store import Hook, MemoryStore, before, raising
from tests.support.waiting import wait_until

SIZE = 9 * MIB + 12_345
CONTENT = random.Random(3).randbytes(SIZE)


def blocks(near: MemoryStore) -> list[str]:
    """The keys of whole blocks, and not of claims."""
    return [key for key in near.keys if len(near.content(key)) > 100]


def alter(near: MemoryStore, change: Callable[[bytes], bytes]) -> None:
    for key in near.keys:
        near.put(key, change(near.content(key)))


class Node:
    """One process on one node: its near bucket, and the ranges that it read far away."""

    def __init__(self, near: MemoryStore, metrics: VolumeMetrics, origin: str = "far") -> None:
        self.near = NearBucket(near, origin, metrics)
        self.metrics = metrics
        self.ranges: list[tuple[int, int]] = []
        self.gate = threading.Event()
        self.gate.set()
        self.failure: SidecarError | None = None

    def _fetch(self, info: ObjectInfo, offset: int, buffer: memoryview) -> None:
        self.ranges.append((offset, len(buffer)))
        assert self.gate.wait(60)
        if self.failure is not None:
            raise self.failure
        buffer[:] = CONTENT[offset : offset + len(buffer)]

    def read(self, offset: int = 0, size: int = SIZE, version: str = "1") -> None:
        """Read a range, and compare it."""
        info = ObjectInfo("key", SIZE, 0.0, version)
        buffer = memoryview(bytearray(size))
        self.near.fill(info, offset, buffer, self._fetch)
        assert buffer == CONTENT[offset : offset + size]


@pytest.fixture
def near() -> MemoryStore:
    return MemoryStore()


@pytest.fixture
def nodes(near: MemoryStore, tmp_path: Path) -> Iterator[Callable[[], Node]]:
    made = []

    def make(origin: str = "far") -> Node:
        made.append(origin)
        metrics = VolumeMetrics(tmp_path, "data/d", f"node{len(made)}")
        return Node(near, metrics, origin)

    return make


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(near_bucket, "CLAIM_S", 0.5)


BLOCKS = -(-SIZE // NEAR_BLOCK_BYTES)


def test_the_second_node_reads_nothing_far_away(
    nodes: Callable[..., Node], near: MemoryStore
) -> None:
    first, second = nodes(), nodes()
    first.read()
    assert first.ranges == [(0, SIZE)]  # one request, however many blocks
    wait_until(lambda: len(blocks(near)) == BLOCKS, "the blocks are put")
    second.read()
    for offset, size in ((0, 1), (SIZE - 5, 5), (130 * KIB, 300 * KIB), (NEAR_BLOCK_BYTES - 7, 99)):
        second.read(offset, size)
    assert second.ranges == []
    assert second.metrics.near_hit_bytes._value.get() == SIZE + 1 + 5 + 300 * KIB + 99


def test_a_cold_read_asks_little_of_the_near_bucket(
    nodes: Callable[..., Node], near: MemoryStore
) -> None:
    nodes().read(0, 4 * NEAR_BLOCK_BYTES)
    wait_until(lambda: len(blocks(near)) == 4, "the blocks are put")
    assert near.requests == {"get": 1, "put": 8}  # each block is claimed, and put


def test_a_part_of_a_block_is_read_far_away_and_not_put(
    nodes: Callable[..., Node], near: MemoryStore
) -> None:
    node = nodes()
    node.read(128 * KIB, 256 * KIB)
    assert node.ranges == [(128 * KIB, 256 * KIB)]
    assert near.keys == []


def test_other_versions_and_other_buckets_are_other_blocks(
    nodes: Callable[..., Node], near: MemoryStore
) -> None:
    nodes().read()
    wait_until(lambda: len(blocks(near)) == BLOCKS, "the blocks are put")
    other_version, other_bucket = nodes(), nodes("elsewhere")
    other_version.read(version="2")
    other_bucket.read()
    assert other_version.ranges == other_bucket.ranges == [(0, SIZE)]
    provisional = nodes()
    provisional.read(version=f"?{SIZE}:00ff:etag")
    assert provisional.ranges == [(0, SIZE)]
    wait_until(lambda: len(blocks(near)) == 3 * BLOCKS, "the blocks are put")


def test_a_small_object_is_not_claimed(nodes: Callable[..., Node], near: MemoryStore) -> None:
    """A request to find it, and one behind the reader's back to put it."""
    first, second = nodes(), nodes()
    info = ObjectInfo("small", 100 * KIB, 0.0, "1")
    for node in (first, second):
        buffer = memoryview(bytearray(info.size_bytes))
        node.near.fill(info, 0, buffer, node._fetch)
        assert buffer == CONTENT[: info.size_bytes]
        wait_until(lambda: len(blocks(near)) == 1, "it is put")
    assert (first.ranges, second.ranges) == ([(0, 100 * KIB)], [])
    assert near.requests == {"get": 2, "put": 1}


# --- several nodes at once ----------------------------------------------------------------------


@pytest.fixture
def patient(quick: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """A claim counts for as long as it takes, on a machine that has other work."""
    monkeypatch.setattr(near_bucket, "CLAIM_S", 60.0)


@pytest.mark.usefixtures("patient")
def test_what_one_node_fetches_the_others_wait_for(
    nodes: Callable[..., Node], near: MemoryStore
) -> None:
    first, second = nodes(), nodes()
    first.gate.clear()
    with ThreadPoolExecutor(2) as threads:
        reads = [threads.submit(first.read)]
        wait_until(lambda: len(near.keys) == BLOCKS, "every block is claimed")
        reads.append(threads.submit(second.read))
        wait_until(lambda: near.requests["get"] > BLOCKS + 1, "the second one waits")
        first.gate.set()
        for read in reads:
            read.result()
    assert second.ranges == []


@pytest.mark.usefixtures("patient")
def test_who_finds_nothing_and_claims_too_late_waits_too(
    nodes: Callable[..., Node], near: MemoryStore
) -> None:
    """Nodes in step see the same, and all but one of them are too late."""
    many = [nodes() for _ in range(4)]
    together = threading.Barrier(len(many))

    def meet(get_range: Hook, *arguments: object) -> int:
        """Those that find nothing wait once, until all have found nothing."""
        try:
            return get_range(*arguments)
        except NotFound:
            together.wait(60)
            near.hooks.clear()
            raise

    near.hooks["get"] = meet
    with ThreadPoolExecutor(len(many)) as threads:
        for read in [threads.submit(node.read) for node in many]:
            read.result()
    assert sum(size for node in many for _, size in node.ranges) == SIZE


@pytest.mark.usefixtures("patient")
def test_many_nodes_in_step_fetch_each_block_about_once(
    nodes: Callable[..., Node], near: MemoryStore
) -> None:
    many = [nodes() for _ in range(8)]
    with ThreadPoolExecutor(8) as threads:
        for read in [threads.submit(node.read) for node in many]:
            read.result()
    fetched = sum(size for node in many for _, size in node.ranges)
    assert fetched < 2 * SIZE


def test_a_claim_of_a_node_that_died_costs_one_short_wait(
    nodes: Callable[..., Node], near: MemoryStore
) -> None:
    dead, alive, late = nodes(), nodes(), nodes()
    dead.failure = Unavailable("the node's own network is gone")
    with pytest.raises(Unavailable):
        dead.read()
    assert len(near.keys) == BLOCKS
    alive.read()
    assert sum(size for _, size in alive.ranges) == SIZE
    wait_until(lambda: len(blocks(near)) == BLOCKS, "the blocks are put after all")
    late.read()
    assert late.ranges == []


def test_a_clock_that_is_wrong_makes_nobody_wait_long(
    nodes: Callable[..., Node], near: MemoryStore
) -> None:
    nodes().read()
    wait_until(lambda: len(blocks(near)) == BLOCKS, "the blocks are put")
    for expires_s in (time.time() + 10**6, float("nan"), float("inf"), -1.0):
        alter(near, lambda _: near_block.claim(expires_s))  # noqa: B023
        node = nodes()
        node.read()
        assert node.ranges == [(0, SIZE)]
        wait_until(lambda: len(blocks(near)) == BLOCKS, "the blocks are put")


# --- bad days -----------------------------------------------------------------------------------


@pytest.mark.parametrize("error", [Unavailable("away"), AccessDenied("no"), QuotaExceeded("full")])
def test_a_near_bucket_that_cannot_be_read_is_left_alone(
    nodes: Callable[..., Node],
    near: MemoryStore,
    error: SidecarError,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setattr(near_bucket, "_FIRST_PAUSE_S", 60.0)
    near.hooks["get"] = raising(error)
    node = nodes()
    for _ in range(20):
        node.read()
    assert node.ranges == [(0, SIZE)] * 20
    assert near.requests == {"get": 1}
    assert caplog.text.count("the near bucket cannot be read") == 1


def test_it_is_used_again_once_it_works(
    nodes: Callable[..., Node],
    near: MemoryStore,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setattr(near_bucket, "_FIRST_PAUSE_S", 0.05)
    caplog.set_level("INFO", "sidecar")
    near.hooks["get"] = raising(Unavailable("away"))
    node = nodes()
    node.read()
    near.hooks.clear()

    def is_used() -> bool:
        node.read()
        return len(blocks(near)) == BLOCKS

    wait_until(is_used, "it is used again")
    assert "the near bucket is read again" in caplog.text


def test_a_full_one_is_still_read(
    nodes: Callable[..., Node], near: MemoryStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    nodes().read(0, 2 * NEAR_BLOCK_BYTES)
    wait_until(lambda: len(blocks(near)) == 2, "the blocks are put")
    monkeypatch.setattr(near_bucket, "_FIRST_PAUSE_S", 60.0)
    near.hooks["put"] = raising(QuotaExceeded("no space"))
    node = nodes()
    for _ in range(5):
        node.read()
    far = (2 * NEAR_BLOCK_BYTES, SIZE - 2 * NEAR_BLOCK_BYTES)
    assert node.ranges == [far] * 5
    assert near.requests["put"] == 4 + 1  # two claims, two blocks, and one attempt


def altered(data: bytes) -> bytes:
    middle = len(data) // 2
    return data[:middle] + bytes([data[middle] ^ 1]) + data[middle + 1 :]


@pytest.mark.parametrize(
    "change",
    [
        altered,
        lambda data: data[:-1],
        lambda data: data + b"x",
        lambda data: data[4:] + data[:4],
        lambda _: b"",
        lambda _: b"<html>",
        lambda data: bytes(len(data)),
    ],
)
def test_what_somebody_else_put_there_is_never_given(
    nodes: Callable[..., Node], near: MemoryStore, change: Callable[[bytes], bytes]
) -> None:
    nodes().read()
    wait_until(lambda: len(blocks(near)) == BLOCKS, "the blocks are put")
    alter(near, change)
    node = nodes()
    node.read()
    node.read(NEAR_BLOCK_BYTES + 1, 5)


def test_a_block_in_the_place_of_another_is_never_given(
    nodes: Callable[..., Node], near: MemoryStore
) -> None:
    nodes().read()
    wait_until(lambda: len(blocks(near)) == BLOCKS, "the blocks are put")
    first = near.content(blocks(near)[0])
    alter(near, lambda data: first if len(data) == len(first) else data)
    node = nodes()
    node.read()
    assert node.ranges == [(NEAR_BLOCK_BYTES, 3 * NEAR_BLOCK_BYTES)]
    assert node.metrics.near_damaged_blocks._value.get() == 3


def test_a_read_that_fails_far_away_fails_as_without_it(nodes: Callable[..., Node]) -> None:
    node = nodes()
    node.failure = Stale("replaced")
    with pytest.raises(Stale):
        node.read()


def test_a_near_bucket_that_is_slow_to_write_holds_nobody_up(
    nodes: Callable[..., Node],
    near: MemoryStore,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setattr(near_bucket, "_PATIENCE_S", 0.05)
    monkeypatch.setattr(near_bucket, "_FIRST_PAUSE_S", 60.0)
    gate = threading.Event()

    def slow(_key: str, content: Content, *_: object, **__: object) -> None:
        if len(content) > 100:
            assert gate.wait(60)

    near.hooks["put"] = before(slow)
    node = nodes()
    for number in range(10):
        node.read(version=str(number))
    assert "the near bucket cannot be written" in caplog.text
    claims = near.requests["put"] - near_bucket._PUT_THREADS
    assert claims <= 2 * BLOCKS  # and no more of them
    gate.set()
    wait_until(lambda: not node.near._puts._queued_bytes, "what waits is put")
    assert len(blocks(near)) == near_bucket._MOST_PENDING


def test_without_a_thread_to_put_with(
    nodes: Callable[..., Node], near: MemoryStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(near_bucket, "_PATIENCE_S", 0.05)
    node = nodes()
    with monkeypatch.context() as without:

        def start(_: threading.Thread) -> None:
            raise RuntimeError("can't start new thread")

        without.setattr(threading.Thread, "start", start)
        for number in range(4):
            node.read(version=str(number))
        assert blocks(near) == []
    near_again = nodes()
    near_again.read(version="later")
    wait_until(lambda: len(blocks(near)) == BLOCKS, "with a thread it is put")


# --- the bytes of a block -----------------------------------------------------------------------


@given(st.integers(1, 3 * 128 * KIB), st.data())
def test_any_part_of_a_block_is_in_its_stored_range(size: int, data: st.DataObject) -> None:
    block = BlockName("ab" * 32, 3, size)
    stored = block.pack(memoryview(CONTENT)[:size])
    start = data.draw(st.integers(0, size - 1))
    end = data.draw(st.integers(start + 1, size))
    first, length = block.stored_range(start, end)
    assert 0 <= first <= first + length <= len(stored)
    into = memoryview(bytearray(end - start))
    assert block.unpack(memoryview(stored)[first : first + length], start, into)
    assert into == CONTENT[start:end]


@given(st.integers(1, 300 * KIB), st.binary(max_size=600), st.data())
def test_any_bytes_are_a_block_or_none(size: int, foreign: bytes, data: st.DataObject) -> None:
    block = BlockName("cd" * 32, 0, size)
    start = data.draw(st.integers(0, size - 1))
    end = data.draw(st.integers(start + 1, size))
    _, length = block.stored_range(start, end)
    stored = memoryview((foreign + bytes(length))[:length])
    assert not block.unpack(stored, start, memoryview(bytearray(end - start)))
    assert near_block.claim_expires_s(memoryview(foreign)) is None
