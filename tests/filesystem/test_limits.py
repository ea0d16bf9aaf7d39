"""How limits of the store, the spool and the process affect programs that write."""

from __future__ import annotations

import os
import random
from collections.abc import Callable
from pathlib import Path

import pytest

from sidecar.errors import NameTooLong, SpoolFull
from sidecar.mounter.store.interface import Arrived, Limits
from sidecar.mounter.store.s3.store import S3Store
from sidecar.units import MIB
from tests.filesystem.view import View
from tests.support.memory_store import MemoryStore


def noise(seed: int, size: int) -> bytes:
    return random.Random(seed).randbytes(size)


@pytest.mark.parametrize("small", [1, 3 * MIB, 5 * MIB - 1, 5 * MIB])
def test_a_file_that_was_saved_small_grows(tmp_path: Path, small: int) -> None:
    """As logs and databases do. A copied part must have 5 MiB, unless it is the last."""
    store = MemoryStore(S3Store.limits)
    view = View(store, tmp_path)
    handle = view.open("file", os.O_RDWR | os.O_CREAT)
    expected = noise(0, small)
    view.fs.write(handle, 0, expected)
    view.fs.flush(handle)
    for step, more in enumerate((6 * MIB, 1, 9 * MIB, 5), 1):
        data = noise(step, more)
        view.fs.write(handle, len(expected), data)
        expected += data
        view.fs.flush(handle)
        assert store.content("file") == expected
    view.fs.release(handle)


def test_a_small_object_of_another_s_grows(tmp_path: Path) -> None:
    store = MemoryStore(S3Store.limits)
    store.put("file", noise(0, 3 * MIB))
    view = View(store, tmp_path)
    handle = view.open("file", os.O_WRONLY)
    view.fs.write(handle, 3 * MIB, noise(1, 20 * MIB))
    view.fs.flush(handle)
    view.fs.release(handle)
    assert store.content("file") == noise(0, 3 * MIB) + noise(1, 20 * MIB)


@pytest.mark.parametrize("start", [0, 10 * MIB, 70 * MIB])
def test_what_is_written_in_a_row_goes_as_parts_that_the_store_takes(
    tmp_path: Path, start: int
) -> None:
    """The range is longer than the largest part: 5 GiB on S3, 16 MiB here."""
    store = MemoryStore(Limits(1 << 40, 5 * MIB, 16 * MIB, 10_000))
    expected = bytearray(noise(0, 70 * MIB))
    store.put("file", expected)
    view = View(store, tmp_path)
    handle = view.open("file", os.O_RDWR)
    for number in range(40):
        data = noise(number, MIB)
        view.fs.write(handle, start + number * MIB, data)
        expected[start + number * MIB : start + (number + 1) * MIB] = data
    view.fs.flush(handle)
    view.fs.release(handle)
    assert store.content("file") == expected


@pytest.mark.parametrize("size", [0, 3, 9 * MIB + 1])
@pytest.mark.parametrize("old", [20 * MIB, 100 * MIB])
def test_what_is_cut_off_is_not_fetched(tmp_path: Path, old: int, size: int) -> None:
    store = MemoryStore(S3Store.limits)
    store.put("file", noise(0, old))
    view = View(store, tmp_path)
    fetched: list[int] = []
    get = store.get_range

    def count(
        key: str, version: str, offset: int, buffer: memoryview, arrived: Arrived | None = None
    ) -> int:
        fetched.append(len(buffer))
        return get(key, version, offset, buffer, arrived)

    store.get_range = count  # type: ignore[method-assign]
    view.fs.set_attributes(view.inode("file"), {}, size)
    assert sum(fetched) <= size
    assert store.content("file") == noise(0, old)[:size]


@pytest.mark.parametrize("old", [20 * MIB, 100 * MIB])
def test_what_is_cut_off_does_not_come_back(tmp_path: Path, old: int) -> None:
    store = MemoryStore(S3Store.limits)
    store.put("file", noise(0, old))
    view = View(store, tmp_path)
    handle = view.open("file", os.O_RDWR)
    inode = view.inode("file")
    view.fs.set_attributes(inode, {}, 9 * MIB + 1)
    view.fs.set_attributes(inode, {}, 12 * MIB)
    view.fs.write(handle, 30 * MIB, b"end")
    expected = noise(0, old)[: 9 * MIB + 1].ljust(30 * MIB, b"\0") + b"end"
    assert view.read_handle(handle, 0, 40 * MIB) == expected
    view.fs.flush(handle)
    assert store.content("file") == expected
    view.fs.release(handle)


@pytest.mark.parametrize("at", [100 * MIB + 5, 150 * MIB])
def test_behind_the_end_of_a_large_object(tmp_path: Path, at: int) -> None:
    store = MemoryStore(S3Store.limits)
    old = noise(0, 100 * MIB)
    store.put("file", old)
    view = View(store, tmp_path)
    handle = view.open("file", os.O_RDWR)
    view.fs.write(handle, at, b"end")
    expected = old.ljust(at, b"\0") + b"end"
    assert view.read_handle(handle, 99 * MIB, at) == expected[99 * MIB :]
    view.fs.flush(handle)
    view.fs.release(handle)
    assert store.content("file") == expected


def test_a_hole_that_could_not_be_sent_is_refused_at_once(tmp_path: Path) -> None:
    store = MemoryStore(S3Store.limits)
    view = View(store, tmp_path, spool_bytes=64 * MIB)
    handle = view.open("file", os.O_RDWR | os.O_CREAT)
    view.fs.write(handle, 0, b"begin")
    inode = view.inode("file")
    with pytest.raises(SpoolFull):
        view.fs.set_attributes(inode, {}, 1 << 39)
    with pytest.raises(SpoolFull):
        view.fs.write(handle, 1 << 39, b"end")
    assert view.stat("file").size_bytes == 5
    view.fs.set_attributes(inode, {}, 40 * MIB)
    assert view.fs.statistics().blocks_free * 4096 < 30 * MIB
    view.fs.flush(handle)
    view.fs.release(handle)
    assert store.content("file") == b"begin".ljust(40 * MIB, b"\0")
    assert view.fs.statistics().blocks_free * 4096 == 64 * MIB


def test_a_hole_is_sent_once(tmp_path: Path) -> None:
    store = MemoryStore(S3Store.limits)
    view = View(store, tmp_path)
    handle = view.open("file", os.O_RDWR | os.O_CREAT)
    view.fs.set_attributes(view.inode("file"), {}, 100 * MIB)
    for number in range(5):
        view.fs.write(handle, number * 20 * MIB, b"here")
        view.fs.flush(handle)
    view.fs.release(handle)
    assert store.content("file").count(b"here") == 5
    sent = view.metric("mount_sidecar_uploaded_bytes_total")
    assert sent <= 100 * MIB + 4 * S3Store.limits.min_part_bytes


def test_files_that_nobody_uses_keep_few_descriptors(tmp_path: Path) -> None:
    """A process may have few descriptors: 1,009 files open for writing failed with EMFILE."""
    store = MemoryStore()
    view = View(store, tmp_path)
    before = len(os.listdir("/proc/self/fd"))
    handles = [view.open(f"file-{number}", os.O_RDWR | os.O_CREAT) for number in range(2000)]
    for number, handle in enumerate(handles):
        view.fs.write(handle, 0, f"{number}".encode())
    assert len(os.listdir("/proc/self/fd")) - before <= 300
    for number, handle in enumerate(handles):
        assert view.read_handle(handle) == f"{number}".encode()
        view.fs.flush(handle)
        view.fs.release(handle)
    assert len(os.listdir("/proc/self/fd")) - before <= 300
    assert store.content("file-1999") == b"1999"


LONG = "/".join(["d" * 250] * 4)  # 1,003 bytes


@pytest.fixture
def deep(tmp_path: Path) -> View:
    store = MemoryStore()
    store.put(f"{LONG}/file", b"content")
    store.put(f"{'e' * 250}/{'d' * 250}/{'d' * 250}/{'d' * 240}/file", b"content")
    store.put("file", b"content")
    return View(store, tmp_path)


TOO_LONG: dict[str, Callable[[View, int], object]] = {
    "create": lambda view, parent: view.fs.create(parent, "n" * 30, 0o644, os.O_RDWR),
    "mkdir": lambda view, parent: view.fs.make_directory(parent, "n" * 20),  # NAME and a slash
    "symlink": lambda view, parent: view.fs.symlink(parent, "n" * 10, b"target"),  # and a suffix
    "rename": lambda view, _: view.rename("file", f"{LONG}/{'n' * 30}"),
}


@pytest.mark.parametrize("change", TOO_LONG.values(), ids=TOO_LONG)
def test_a_key_that_the_store_does_not_take_is_refused_at_once(
    deep: View, change: Callable[[View, int], object]
) -> None:
    parent = deep.inode(LONG)
    with pytest.raises(NameTooLong):
        change(deep, parent)
    assert deep.names(LONG) == ["file"]
    assert deep.read("file") == b"content"


def test_a_directory_whose_keys_would_be_too_long_stays(deep: View) -> None:
    with pytest.raises(NameTooLong):
        deep.rename("e" * 250, f"{'d' * 250}/{'n' * 100}")
    assert deep.read(f"{'e' * 250}/{'d' * 250}/{'d' * 250}/{'d' * 240}/file") == b"content"
    assert deep.names("d" * 250) == ["d" * 250]
