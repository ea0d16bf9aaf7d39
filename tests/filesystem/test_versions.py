"""One inode is one version, whether the bucket or this mount changes the object."""

from __future__ import annotations

import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from sidecar.errors import NotFound, Stale
from sidecar.mounter.filesystem.inodes.inode import ROOT
from sidecar.units import MIB
from tests.filesystem.view import View, delay_next_list
from tests.support.memory_store import MemoryStore


@pytest.fixture
def store() -> MemoryStore:
    store = MemoryStore()
    store.put("file", b"old")
    return store


def test_a_changed_object_is_a_new_inode_and_the_old_handle_is_stale(
    store: MemoryStore, tmp_path: Path
) -> None:
    view = View(store, tmp_path, ttl_s=0)
    old, handle = view.inode("file"), view.open("file")
    store.put("file", b"newer")
    assert view.inode("file") != old
    assert view.read("file") == b"newer"
    with pytest.raises(Stale):
        view.read_handle(handle)
    view.fs.release(handle)


def test_what_was_stale_is_asked_for_anew_and_nothing_else_is(tmp_path: Path) -> None:
    """Within the lifetime of its name and of its listing."""
    store = MemoryStore()
    for name in ("changed", "deleted", "other"):
        store.put(name, b"old")
    view = View(store, tmp_path, read_only=True)
    assert view.names() == ["changed", "deleted", "other"]
    inodes = {name: view.inode(name) for name in view.names()}
    reading = view.fs.open_directory(ROOT)
    list(view.fs.read_directory(reading, 0))
    handles = [view.open(name) for name in ("changed", "deleted")]
    store.put("changed", b"newer")
    store.delete("deleted")
    for handle in handles:
        with pytest.raises(Stale):
            view.read_handle(handle)
    # A listing from before does not bring the old ones back.
    for name, entry in view.fs.enter(reading, list(inodes)).items():
        assert entry is not None
        assert entry.ttl_s > 0 if name == "other" else entry.ttl_s == 0
    lists = store.requests["list"]
    assert view.inode("changed") != inodes["changed"]
    assert view.read("changed") == b"newer"
    with pytest.raises(NotFound):
        view.inode("deleted")
    assert view.inode("other") == inodes["other"]
    assert store.requests["list"] == lists + 2
    # The new ones are cached again.
    assert view.stat("changed").size_bytes == 5
    with pytest.raises(NotFound):
        view.inode("deleted")
    assert store.requests["list"] == lists + 2
    assert view.names() == ["changed", "other"]


def test_a_reader_never_sees_two_versions(tmp_path: Path) -> None:
    store = MemoryStore()
    store.put("file", b"o" * 40 * MIB)
    view = View(store, tmp_path, ttl_s=0)
    handle = view.open("file")
    assert view.read_handle(handle, 0, MIB) == b"o" * MIB
    store.put("file", b"n" * 40 * MIB)
    stale = 0
    for offset in range(MIB, 40 * MIB, MIB):
        try:
            assert view.read_handle(handle, offset, MIB) == b"o" * MIB
        except Stale:
            stale += 1
    assert stale > 0
    view.fs.release(handle)


def test_an_object_deleted_behind_our_back(store: MemoryStore, tmp_path: Path) -> None:
    view = View(store, tmp_path, ttl_s=0)
    handle = view.open("file")
    store.delete("file")
    with pytest.raises(NotFound):
        view.inode("file")
    with pytest.raises(Stale):
        view.read_handle(handle)
    assert view.names() == []
    view.fs.release(handle)


def test_a_change_of_our_own_keeps_the_inode(store: MemoryStore, tmp_path: Path) -> None:
    view = View(store, tmp_path)
    inode, reader = view.inode("file"), view.open("file")
    view.write("file", b"newer")
    assert view.inode("file") == inode
    assert view.read_handle(reader) == b"newer"
    view.rename("file", "other")
    assert view.inode("other") == inode
    assert view.read_handle(reader) == b"newer"
    view.fs.release(reader)


def test_a_change_of_our_own_is_seen_at_once(store: MemoryStore, tmp_path: Path) -> None:
    view = View(store, tmp_path)  # Its cache is valid for an hour.
    assert view.names() == ["file"]
    with pytest.raises(NotFound):
        view.inode("new")
    view.write("new", b"content")
    assert view.names() == ["file", "new"]
    assert view.stat("new").size_bytes == 7
    view.rename("new", "newer")
    assert view.names() == ["file", "newer"]
    view.unlink("file")
    assert view.names() == ["newer"]
    with pytest.raises(NotFound):
        view.inode("file")


def test_an_answer_that_was_on_its_way_does_not_undo_a_change(tmp_path: Path) -> None:
    store = MemoryStore()
    store.put("old", b"content")
    view = View(store, tmp_path, ttl_s=0)
    assert view.names() == ["old"]
    asked, gate = delay_next_list(store)
    with ThreadPoolExecutor(1) as thread:
        looked_up = thread.submit(view.inode, "new")
        assert asked.wait(300)  # the store has said that there is no `new`
        view.rename("old", "new")
        gate.set()
        assert looked_up.result() == view.inode("new")
    assert view.read("new") == b"content"


def test_the_last_close_wins_whole(store: MemoryStore, tmp_path: Path) -> None:
    one, other = View(store, tmp_path / "one"), View(store, tmp_path / "other")
    handles = [(view, view.open("file", os.O_WRONLY | os.O_TRUNC)) for view in (one, other)]
    for (view, handle), data in zip(handles, (b"first and longer", b"last"), strict=True):
        view.fs.write(handle, 0, data)
    for view, handle in handles:
        view.fs.flush(handle)
        view.fs.release(handle)
    assert View(store, tmp_path / "third").read("file") == b"last"


def test_what_is_being_written_is_not_disturbed(store: MemoryStore, tmp_path: Path) -> None:
    view = View(store, tmp_path, ttl_s=0)
    handle = view.open("file", os.O_RDWR)
    view.fs.write(handle, 1, b"ur")
    store.put("file", b"somebody else's")
    assert view.stat("file").size_bytes == 3
    assert view.read_handle(handle) == b"our"
    view.fs.flush(handle)
    view.fs.release(handle)
    assert View(store, tmp_path / "other").read("file") == b"our"


def test_an_open_file_that_is_replaced_goes_on(store: MemoryStore, tmp_path: Path) -> None:
    view = View(store, tmp_path)
    handle = view.open("file")
    view.write("new", b"new")
    view.rename("new", "file")
    assert view.read("file") == b"new"
    assert view.read_handle(handle) == b"old"
    view.fs.release(handle)


def test_rename_of_a_saved_file_is_a_copy_in_the_store(store: MemoryStore, tmp_path: Path) -> None:
    view = View(store, tmp_path)
    view.write("new", b"content")
    before = dict(store.requests)
    view.rename("new", "newer")
    # The memory store counts its own copy as a put too.
    assert store.requests["put"] - before["put"] == store.requests["copy"] - before.get("copy", 0)
    assert store.requests["copy"] - before.get("copy", 0) == 1
    assert store.requests.get("get", 0) == before.get("get", 0)


def test_attributes_are_kept_with_the_object(store: MemoryStore, tmp_path: Path) -> None:
    view = View(store, tmp_path)
    changes = {"mode": 0o600, "uid": 7, "gid": 8, "mtime_ns": 1_000_000_000_000_000_005}
    view.fs.set_attributes(view.inode("file"), changes)
    assert store.head("file").metadata == {
        "mode": str(0o100600),
        "uid": "7",
        "gid": "8",
        "mtime": "1000000000.000000005",
    }
    view.write("file", b"rewritten")
    kept = store.head("file").metadata
    assert kept is not None
    assert (kept["mode"], kept["uid"], kept["gid"]) == (str(0o100600), "7", "8")


def test_a_directory_that_was_made_survives_the_mount(store: MemoryStore, tmp_path: Path) -> None:
    view = View(store, tmp_path / "one")
    view.fs.make_directory(view.inode(""), "made")
    view.write("made/inner", b"")
    view.unlink("made/inner")
    assert sorted(View(store, tmp_path / "two").names()) == ["file", "made"]
    assert View(store, tmp_path / "three").names("made") == []
