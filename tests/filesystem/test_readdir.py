"""Reading a directory in parts: stable offsets, also after the worker died."""

from __future__ import annotations

import os
import stat
from pathlib import Path

import pytest

from sidecar.mounter.filesystem.filesystem import FileSystem
from sidecar.mounter.filesystem.inodes.inode import ROOT
from sidecar.mounter.filesystem.readdir import Position, Section
from tests.filesystem.view import View
from tests.support.memory_store import MemoryStore
from tests.support.serve import build

LOCAL = 1 << 40


@pytest.fixture
def store() -> MemoryStore:
    store = MemoryStore()
    for name in ("a", "b", "dir/file"):
        store.put(name, b"content")
    return store


@pytest.fixture
def fs(store: MemoryStore, tmp_path: Path) -> FileSystem:
    """A file system with two unsaved files, ``new`` and ``newer``."""
    fs = View(store, tmp_path).fs
    fs.recovery.begin()
    for name in ("new", "newer"):
        fs.create(ROOT, name, 0o644, os.O_WRONLY)
    return fs


def rest(fs: FileSystem, handle: int, offset: int) -> list[tuple[str, int]]:
    """Names and offsets after an offset."""
    return [(entry.name, entry.offset) for entry in fs.read_directory(handle, offset)]


def test_offsets_are_those_of_every_version(fs: FileSystem) -> None:
    """The kernel and journals keep them across workers of different versions."""
    handle = fs.open_directory(ROOT)
    entries = [(".", 1), ("..", 2), ("a", 3), ("b", 4), ("dir", 5)]
    entries += [("new", LOCAL + 1), ("newer", LOCAL + 2)]
    assert rest(fs, handle, 0) == entries
    for number, (_, offset) in enumerate(entries):
        assert rest(fs, handle, offset) == entries[number + 1 :]


def test_a_position_is_in_one_section() -> None:
    positions = [Position.at(offset) for offset in (0, 1, 2, 7, LOCAL, LOCAL + 3)]
    assert positions == [
        (Section.DOTS, 0),
        (Section.DOTS, 1),
        (Section.LISTED, 0),
        (Section.LISTED, 5),
        (Section.LOCAL, 0),
        (Section.LOCAL, 3),
    ]


@pytest.mark.parametrize("saved", [False, True])
@pytest.mark.parametrize(("got", "left"), [(3, ["b", "dir", "new", "newer"]), (6, ["newer"])])
def test_the_next_worker_goes_on_behind_the_same_entry(
    fs: FileSystem, store: MemoryStore, tmp_path: Path, got: int, left: list[str], saved: bool
) -> None:
    handle = fs.open_directory(ROOT)
    *_, last = rest(fs, handle, 0)[:got]
    fs.entries_read(handle, last[1])
    if saved:  # They are listed now, and keep their offsets if they were already read.
        fs.flush(1)
        fs.flush(2)
    successor, _ = build(store, tmp_path, ttl_s=3600)
    successor.recovery.restore()
    assert sorted(name for name, _ in rest(successor, handle, last[1])) == left
    kinds = {entry.name: entry.type_mode for entry in successor.read_directory(handle, 0)}
    assert kinds["dir"] == stat.S_IFDIR
    assert kinds["new"] == kinds["a"] == stat.S_IFREG


def test_a_local_file_that_is_saved_and_forgotten_keeps_its_place(fs: FileSystem) -> None:
    """The kernel may forget an inode at any time, also in the middle of a reading."""
    handle = fs.open_directory(ROOT)
    entries = rest(fs, handle, 0)
    inode = fs.lookup(ROOT, "newer").attributes.inode
    fs.flush(2)
    fs.release(2)
    fs.forget(inode, 2)
    assert fs.namespace.inodes.find(inode) is None
    assert rest(fs, handle, entries[-2][1]) == entries[-1:]


@pytest.mark.parametrize("made", ["link", "directory", "file"])
def test_what_comes_to_a_directory_between_two_workers_has_its_type(
    fs: FileSystem, store: MemoryStore, tmp_path: Path, made: str
) -> None:
    handle = fs.open_directory(ROOT)
    entries = rest(fs, handle, 0)
    fs.entries_read(handle, entries[-1][1])
    key = {"link": "z.rclonelink", "directory": "z/file", "file": "z"}[made]
    store.put(key, b"target")
    successor, _ = build(store, tmp_path, ttl_s=3600)
    successor.recovery.restore()
    (entry,) = successor.read_directory(handle, entries[-1][1])
    expected = {"link": stat.S_IFLNK, "directory": stat.S_IFDIR, "file": stat.S_IFREG}[made]
    assert entry == ("z", LOCAL + 3, expected, None)
    assert successor.enter(handle, ["z"])["z"] is not None
