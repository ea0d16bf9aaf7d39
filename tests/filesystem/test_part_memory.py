"""Bytes that stream to the store: in memory on their way, and not on the disk."""

from __future__ import annotations

import contextlib
import errno
import os
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from sidecar.errors import SpoolFull, Stale, Unavailable
from sidecar.metrics import VolumeMetrics
from sidecar.mounter.filesystem.content import open_files
from sidecar.mounter.reading.buffers import BufferPool
from sidecar.mounter.store.failures import Failures
from sidecar.mounter.system import memory_pressure
from sidecar.mounter.system.memory_directory import memory_directory
from sidecar.mounter.worker.upkeep import Upkeep
from sidecar.mounter.writing.part_memory import PartMemory
from sidecar.units import MIB
from tests.filesystem.test_streaming import (
    FOR_EVER_S,
    PART,
    block,
    blocks,
    hold_parts,
    new_file,
    parts_there,
    until,
)
from tests.filesystem.view import View
from tests.support.memory_store import MemoryStore

ROOM = 4 * PART


@pytest.fixture
def memory() -> Iterator[int]:
    """What process 1 gives to each worker."""
    descriptor = memory_directory()
    yield descriptor
    os.close(descriptor)


def view_of(
    store: MemoryStore, state: Path, memory: int, room: int = ROOM, spool_bytes: int = 1 << 30
) -> View:
    return View(store, state, memory=PartMemory(memory, room), spool_bytes=spool_bytes)


def taken(memory: int) -> int:
    names = os.listdir(memory)
    return sum(os.stat(name, dir_fd=memory).st_blocks * 512 for name in names)


def on_disk(state: Path) -> int:
    """What the spool's files take."""
    return sum(path.stat().st_blocks * 512 for path in (state / "spool").glob("*.data*"))


def dirtied_bytes() -> int:
    """What this process caused to be written to disks, whether it was or was deleted before."""
    lines = Path("/proc/self/io").read_text().splitlines()
    return int(dict(line.split(": ") for line in lines)["write_bytes"])


def test_all_but_the_first_part_never_reaches_the_disk(tmp_path: Path, memory: int) -> None:
    store = MemoryStore()
    view = view_of(store, tmp_path, memory)
    before = dirtied_bytes()
    handle = new_file(view, 200)
    assert on_disk(tmp_path) <= PART + MIB
    assert taken(memory) <= ROOM
    view.fs.flush(handle)
    assert dirtied_bytes() - before <= PART + MIB
    assert store.content("file") == blocks(200)
    view.fs.release(handle)
    assert taken(memory) == 0
    assert not list((tmp_path / "spool").iterdir())


def test_a_file_that_fits_in_memory_is_read_back_without_the_store(
    tmp_path: Path, memory: int
) -> None:
    store = MemoryStore()
    view = view_of(store, tmp_path, memory)
    handle = new_file(view, 38)
    assert view.read_handle(handle, 7 * MIB, 20 * MIB) == blocks(27)[7 * MIB :]
    assert view.read_handle(handle, 37 * MIB, 20 * MIB) == block(37)
    assert not store.requests.get("get")
    assert not store.requests.get("complete")
    view.fs.flush(handle)
    assert store.content("file") == blocks(38)


def test_a_header_is_written_last(tmp_path: Path, memory: int) -> None:
    store = MemoryStore()
    view = view_of(store, tmp_path, memory)
    handle = new_file(view, 100)
    view.fs.write(handle, 4, b"header")
    view.fs.write(handle, 100 * MIB - 5, b"trail")
    view.fs.flush(handle)
    expected = bytearray(blocks(100))
    expected[4:10] = b"header"
    expected[-5:] = b"trail"
    assert store.requests["part"] == 14  # thirteen parts, and the first one again
    assert not store.requests.get("get")
    assert store.content("file") == expected


def test_what_was_given_up_is_read_and_changed(tmp_path: Path, memory: int) -> None:
    store = MemoryStore()
    view = view_of(store, tmp_path, memory)
    handle = new_file(view, 100)
    for number in (0, 50, 99):
        assert view.read_handle(handle, number * MIB) == block(number)
    view.fs.write(handle, 30 * MIB + 1, b"changed")
    view.fs.write(handle, 100 * MIB, b"end")
    view.fs.flush(handle)
    expected = bytearray(blocks(100) + b"end")
    expected[30 * MIB + 1 : 30 * MIB + 8] = b"changed"
    assert store.content("file") == expected
    assert not store.uploads


def test_what_is_here_is_read_while_other_parts_were_given_up(tmp_path: Path, memory: int) -> None:
    store = MemoryStore()
    view = view_of(store, tmp_path, memory)
    handle = new_file(view, 100)
    assert view.read_handle(handle, 99 * MIB) == block(99)
    assert view.read_handle(handle, 0) == block(0)
    assert store.uploads  # no object was made of half a file


@pytest.mark.parametrize("size", [3 * MIB, 12 * MIB + 5, 30 * MIB, 96 * MIB + 17, 99 * MIB])
def test_it_is_cut_and_grows(tmp_path: Path, memory: int, size: int) -> None:
    store = MemoryStore()
    view = view_of(store, tmp_path, memory)
    handle = new_file(view, 100)
    inode = view.fs.files.get(handle).inode
    view.fs.files.truncate(inode, size)
    view.fs.files.truncate(inode, size + 2 * MIB)
    view.fs.write(handle, size + 3 * MIB, b"end")
    view.fs.flush(handle)
    assert store.content("file") == blocks(100)[:size] + bytes(3 * MIB) + b"end"


def test_it_is_emptied_and_written_again(tmp_path: Path, memory: int) -> None:
    store = MemoryStore()
    view = view_of(store, tmp_path, memory)
    handle = new_file(view, 100)
    view.fs.files.truncate(view.fs.files.get(handle).inode, 0)
    assert taken(memory) == 0
    for number in range(40, 70):
        view.fs.write(handle, (number - 40) * MIB, block(number))
    assert on_disk(tmp_path) <= PART + MIB
    view.fs.flush(handle)
    assert store.content("file") == blocks(70)[40 * MIB :]


def test_two_writers_and_one_who_appends_later(tmp_path: Path, memory: int) -> None:
    store = MemoryStore()
    view = view_of(store, tmp_path, memory)
    first = new_file(view, 0)
    second = view.open("file", os.O_WRONLY)
    for number in range(60):
        view.fs.write((first, second)[number % 2], number * MIB, block(number))
    view.fs.flush(first)
    view.fs.release(first)
    assert store.content("file") == blocks(60)
    for number in range(60, 90):
        view.fs.write(second, number * MIB, block(number))
    view.fs.flush(second)
    view.fs.release(second)
    assert store.content("file") == blocks(90)
    assert taken(memory) == 0


def test_it_is_renamed_while_it_is_written(tmp_path: Path, memory: int) -> None:
    store = MemoryStore()
    view = view_of(store, tmp_path, memory)
    handle = new_file(view, 60, "before")
    view.rename("before", "after")
    for number in range(60, 100):
        view.fs.write(handle, number * MIB, block(number))
    view.fs.flush(handle)
    assert view.names() == ["after"]
    assert store.content("after") == blocks(100)


def test_who_has_it_open_reads_it_after_it_was_deleted(tmp_path: Path, memory: int) -> None:
    store = MemoryStore()
    view = view_of(store, tmp_path, memory)
    handle = new_file(view, 60)
    view.unlink("file")
    for number in range(60):
        assert view.read_handle(handle, number * MIB) == block(number)
    view.fs.write(handle, 60 * MIB, b"more")
    assert view.read_handle(handle, 60 * MIB) == b"more"
    view.fs.release(handle)
    assert taken(memory) == 0
    assert view.names() == []
    until(lambda: not store.uploads)


def test_what_does_not_fit_of_a_deleted_file_is_told(tmp_path: Path, memory: int) -> None:
    """Its readers waited for ever."""
    view = view_of(MemoryStore(), tmp_path, memory, spool_bytes=24 * MIB)
    handle = new_file(view, 100)
    view.unlink("file")
    told = 0
    for number in range(100):
        try:
            assert view.read_handle(handle, number * MIB) == block(number)
        except Stale:
            told += 1
    assert told > 0


def test_another_order_goes_to_the_disk(tmp_path: Path, memory: int) -> None:
    store = MemoryStore()
    view = view_of(store, tmp_path, memory)
    handle = view.open("file", os.O_RDWR | os.O_CREAT)
    for number in reversed(range(40)):
        view.fs.write(handle, number * MIB, block(number))
    assert taken(memory) == 0
    view.fs.flush(handle)
    assert store.content("file") == blocks(40)


@pytest.mark.parametrize("room", [0, PART - 1, PART, 2 * PART])
def test_with_little_memory(tmp_path: Path, memory: int, room: int) -> None:
    store = MemoryStore()
    view = view_of(store, tmp_path, memory, room)
    handle = new_file(view, 100)
    assert taken(memory) <= room
    view.fs.flush(handle)
    assert store.content("file") == blocks(100)


def test_who_is_faster_than_a_slow_store_gets_the_disk(tmp_path: Path, memory: int) -> None:
    store = MemoryStore()
    gate = hold_parts(store)  # it takes nothing
    view = view_of(store, tmp_path, memory)
    handle = new_file(view, 100)
    assert taken(memory) <= ROOM
    assert on_disk(tmp_path) >= 100 * MIB - ROOM
    assert view.read_handle(handle, 30 * MIB, 40 * MIB) == blocks(70)[30 * MIB :]
    gate.set()
    view.fs.flush(handle)
    assert store.content("file") == blocks(100)


def test_little_memory_does_not_keep_connections_idle(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, memory: int
) -> None:
    """Memory has room for two parts. The disk gives more, until half of eight are on their way."""
    monkeypatch.setattr(PartMemory, "beats_a_disk", True)
    store = MemoryStore()
    gate = hold_parts(store)
    view = view_of(store, tmp_path, memory, 2 * PART)
    with ThreadPoolExecutor(1) as writer:
        writing = writer.submit(new_file, view, 60)
        until(lambda: store.requests.get("part") == 4)
        gate.set()
        handle = writing.result(FOR_EVER_S)
    view.fs.flush(handle)
    assert store.content("file") == blocks(60)


def test_many_writers_share_it(tmp_path: Path, memory: int) -> None:
    store = MemoryStore()
    view = view_of(store, tmp_path, memory)
    handles = [view.open(f"file{number}", os.O_RDWR | os.O_CREAT) for number in range(8)]

    def write(handle: int) -> None:
        for number in range(40):
            view.fs.write(handle, number * MIB, block(number))
        view.fs.flush(handle)

    threads = [threading.Thread(target=write, args=(handle,)) for handle in handles]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(FOR_EVER_S)
        assert not thread.is_alive()
    for number, handle in enumerate(handles):
        assert store.content(f"file{number}") == blocks(40)
        view.fs.release(handle)
    assert taken(memory) == 0


def test_disk_and_memory_are_full(tmp_path: Path, memory: int) -> None:
    store = MemoryStore()
    store.refuse_content(Unavailable("an outage"))
    view = view_of(store, tmp_path, memory, spool_bytes=24 * MIB)
    handle = view.open("file", os.O_RDWR | os.O_CREAT)

    def fill() -> None:
        for number in range(100):
            view.fs.write(handle, number * MIB, block(number))

    with pytest.raises(SpoolFull):
        fill()
    assert view.read_handle(handle, 0, 20 * MIB) == blocks(20)
    store.refuse_content(None)
    view.fs.flush(handle)
    size = store.head("file").size_bytes
    assert size >= 24 * MIB + ROOM - 2 * PART
    assert store.content("file") == blocks(size // MIB)


@pytest.fixture
def used(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """How much of the container's limit is used, which a test may change."""
    part = [0.9]
    monkeypatch.setattr(memory_pressure, "used_part", lambda: part[0])
    monkeypatch.setattr(memory_pressure, "_GROW", 16.0)  # and not for half a minute
    return part


@contextlib.contextmanager
def upkeep(view: View, tmp_path: Path) -> Iterator[None]:
    """What a worker does once a second, meanwhile."""
    metrics = VolumeMetrics(tmp_path / "metrics", "data/memory", "upkeep")
    work = Upkeep(
        view.fs, BufferPool(MIB), None, metrics, Failures(lambda _: None), 3600, lambda: None
    )
    leaving = threading.Event()
    thread = threading.Thread(target=work.run, args=(leaving,))
    thread.start()
    try:
        yield
    finally:
        leaving.set()
        thread.join()


def test_near_the_limit_new_parts_go_to_the_disk(
    tmp_path: Path, memory: int, used: list[float]
) -> None:
    """And what the store has of the others leaves the memory, though nobody writes."""
    store = MemoryStore()
    view = view_of(store, tmp_path, memory)
    first = new_file(view, 30, "first")
    until(lambda: parts_there(store) == 3)
    assert taken(memory) > PART
    with upkeep(view, tmp_path):
        until(lambda: view.fs.files.contents.memory.total_bytes < PART)
        until(lambda: taken(memory) <= PART)  # the end of a file is never given up
        gate = hold_parts(store)
        second = new_file(view, 60, "second")
        assert on_disk(tmp_path) >= 60 * MIB
        assert taken(memory) <= PART
        gate.set()
        view.fs.flush(first)
        view.fs.flush(second)
        used[0] = 0.1
        until(lambda: view.fs.files.contents.memory.total_bytes == ROOM)
        before = on_disk(tmp_path)
        third = new_file(view, 60, "third")
        assert on_disk(tmp_path) <= before + PART + MIB
        view.fs.flush(third)
    for name, mib in {"first": 30, "second": 60, "third": 60}.items():
        assert store.content(name) == blocks(mib)


def test_memory_that_the_kernel_does_not_give_is_the_disk(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, memory: int
) -> None:
    """Also if it does in the midst of a part."""
    pwrite = os.pwrite

    def refuse(descriptor: int, data: bytes, offset: int) -> int:
        is_memory = os.fstat(descriptor).st_dev == os.fstat(memory).st_dev
        if is_memory and taken(memory) > PART // 2:
            raise OSError(errno.ENOMEM, os.strerror(errno.ENOMEM))
        return pwrite(descriptor, data, offset)

    store = MemoryStore()
    view = view_of(store, tmp_path, memory)
    monkeypatch.setattr(os, "pwrite", refuse)
    handle = new_file(view, 40)
    assert taken(memory) == 0
    view.fs.flush(handle)
    assert store.content("file") == blocks(40)


# --- processes that end -------------------------------------------------------------------------


def begun(store: MemoryStore, state: Path, memory: int, mib: int) -> View:
    """A worker that has written so much of a file, and ends here."""
    view = view_of(store, state, memory)
    view.fs.recovery.begin()
    new_file(view, mib)
    until(lambda: parts_there(store) == mib * MIB // PART)
    return view


def test_a_successor_has_what_was_in_memory(tmp_path: Path, memory: int) -> None:
    store = MemoryStore()
    begun(store, tmp_path, memory, 60)
    successor = view_of(store, tmp_path, memory)
    successor.fs.recovery.restore()
    (handle,) = successor.fs.files._handles
    for number in range(60, 100):
        successor.fs.write(handle, number * MIB, block(number))
    assert on_disk(tmp_path) <= PART + MIB
    successor.fs.flush(handle)
    successor.fs.release(handle)
    assert store.content("file") == blocks(100)
    assert store.requests["part"] == 13  # none was sent again
    assert taken(memory) == 0


def test_zeros_follow_what_was_written_before_a_worker_ended(tmp_path: Path, memory: int) -> None:
    """A write that was not answered has left bytes behind the end."""
    store = MemoryStore()
    view = begun(store, tmp_path, memory, 20)
    spool = view.fs.files.get(1).inode.spool
    assert spool is not None
    with spool.hold() as disk:
        ((fd, position, _),) = spool.in_memory.places(disk, 20 * MIB, 5)
    os.pwrite(fd, b"torn", position)
    successor = view_of(store, tmp_path, memory)
    successor.fs.recovery.restore()
    successor.fs.files.truncate(successor.fs.files.get(1).inode, 21 * MIB)
    successor.fs.flush(1)
    assert store.content("file") == blocks(20) + bytes(MIB)


def test_without_the_memory_there_is_no_half_file(
    tmp_path: Path, memory: int, caplog: pytest.LogCaptureFixture
) -> None:
    """Process 1 has ended: the next run has other memory."""
    store = MemoryStore()
    begun(store, tmp_path, memory, 60)
    other = memory_directory()
    successor = view_of(store, tmp_path, other)
    assert successor.fs.recovery.finish_predecessor() == []
    assert successor.names() == []
    (fields,) = (record.__dict__["fields"] for record in caplog.records)
    assert fields["key"] == "file"
    until(lambda: not store.uploads)
    os.close(other)


def test_without_the_memory_an_object_stays_as_it_was_saved(tmp_path: Path, memory: int) -> None:
    store = MemoryStore()
    view = begun(store, tmp_path, memory, 60)
    view.fs.flush(1)
    view.fs.write(1, 60 * MIB, b"more")
    successor = view_of(store, tmp_path, -1, 0)
    assert successor.fs.recovery.finish_predecessor() == []
    assert store.content("file") == blocks(60)


def test_what_a_drain_does_not_save_is_on_the_disk_for_the_next_run(
    tmp_path: Path, memory: int
) -> None:
    store = MemoryStore()
    view = begun(store, tmp_path, memory, 60)
    store.refuse_content(Unavailable("an outage"))
    assert list(view.fs.drain(0.0)) == ["file"]
    store.refuse_content(None)
    successor = view_of(store, tmp_path, -1, 0)
    assert successor.fs.recovery.finish_predecessor() == ["file"]
    assert store.content("file") == blocks(60)
    assert not store.uploads


def test_what_is_in_memory_is_copied_before_the_time_to_save_is_over(
    tmp_path: Path, memory: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Process 1 waits for a worker's answer for some seconds only, and a disk may be slow."""
    monkeypatch.setattr(open_files, "_COPIED_BYTES_PER_S", 1)
    store = MemoryStore()
    view = begun(store, tmp_path, memory, 20)
    gate = hold_parts(store)
    for number in range(20, 40):
        view.fs.write(1, number * MIB, block(number))
    deadline_s = time.monotonic() + FOR_EVER_S
    draining = threading.Thread(target=view.fs.drain, args=(deadline_s,))
    draining.start()
    until(lambda: on_disk(tmp_path) >= 40 * MIB)
    assert draining.is_alive()
    gate.set()
    draining.join(FOR_EVER_S)
    assert store.content("file") == blocks(40)


def test_what_nobody_goes_on_with_leaves_the_memory(tmp_path: Path, memory: int) -> None:
    store = MemoryStore()
    view = begun(store, tmp_path, memory, 20)
    (tmp_path / "spool" / "00000000.state").write_bytes(b"\0" * 4096 + b"\n")
    assert taken(memory) > 0
    del view
    successor = view_of(store, tmp_path, memory)
    successor.fs.recovery.finish_predecessor()
    assert taken(memory) == 0
