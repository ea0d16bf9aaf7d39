"""Attributes of a file that was just closed: saved soon, in one request, or with a new name.

What is lost then, and what is not: SEMANTICS.md, A12.
"""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest

from sidecar.errors import Stale, Unavailable
from sidecar.mounter.filesystem.content import contents, write_back
from sidecar.mounter.filesystem.inodes.attributes import from_metadata
from tests.filesystem.view import View
from tests.support.memory_store import MemoryStore, bare_store, raising
from tests.support.waiting import wait_until

PATIENCE_S = 60.0
CHANGES = {"mode": 0o600, "uid": 7, "gid": 8, "mtime_ns": 1_000_000_000_000_000_005}


@pytest.fixture(autouse=True)
def at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is due is due when it is asked for."""
    monkeypatch.setattr(write_back, "_ATTRIBUTES_REST_S", 0.0)


def set_one_by_one(view: View, path: str) -> None:
    for name, value in CHANGES.items():
        view.fs.set_attributes(view.inode(path), {name: value})


def kept(store: MemoryStore, key: str) -> dict[str, int]:
    return from_metadata(store.head(key).metadata or {})


def unpacked(store: MemoryStore, state: Path) -> View:
    """A view that has just closed ``file`` and set its attributes."""
    view = View(store, state)
    view.fs.recovery.begin()
    view.write("file", b"content")
    store.requests.clear()
    set_one_by_one(view, "file")
    assert store.requests == {}
    return view


def tick(view: View) -> None:
    """What upkeep does each second."""
    view.fs.files.write_back.save_attributes()


def test_all_of_them_are_one_request_a_moment_later(tmp_path: Path) -> None:
    store = bare_store()
    view = unpacked(store, tmp_path)
    shown = view.stat("file")
    assert (shown.mode & 0o7777, shown.uid, shown.gid, shown.mtime_ns) == tuple(CHANGES.values())
    tick(view)
    wait_until(lambda: kept(store, "file") == CHANGES, PATIENCE_S)
    assert store.requests["copy"] == 1
    wait_until(lambda: view.fs.files.contents.dirty() == [], PATIENCE_S)
    tick(view)
    assert view.fs.files.contents.local() == []


def test_they_go_with_a_new_name(tmp_path: Path) -> None:
    store = bare_store()
    view = unpacked(store, tmp_path)
    view.rename("file", "final")
    asked = dict(store.requests)
    assert kept(store, "final") == CHANGES
    assert asked == {"copy": 1, "put": 1, "delete": 1}  # MemoryStore copies with a put
    assert view.fs.files.contents.dirty() == []


def test_they_go_with_new_content(tmp_path: Path) -> None:
    store = bare_store()
    view = unpacked(store, tmp_path)
    handle = view.open("file", os.O_RDWR)
    view.fs.write(handle, 0, b"C")
    view.fs.flush(handle)
    view.fs.release(handle)
    assert {**kept(store, "file"), "mtime_ns": 0} == {**CHANGES, "mtime_ns": 0}
    assert "copy" not in store.requests


def test_fsync_of_a_reader_saves_them(tmp_path: Path) -> None:
    store = bare_store()
    view = unpacked(store, tmp_path)
    view.fs.flush(view.open("file"))
    assert kept(store, "file") == CHANGES


def test_they_go_with_the_directory_s_new_name(tmp_path: Path) -> None:
    store = bare_store()
    view = View(store, tmp_path)
    view.fs.make_directory(1, "dir")
    view.write("dir/file", b"content")
    set_one_by_one(view, "dir/file")
    view.rename("dir", "other")
    tick(view)
    wait_until(lambda: kept(store, "other/file") == CHANGES, PATIENCE_S)
    with pytest.raises(Exception, match="dir/file"):
        store.head("dir/file")


def test_the_end_saves_them(tmp_path: Path) -> None:
    store = bare_store()
    view = unpacked(store, tmp_path)
    assert view.fs.files.write_back.backlog() == {"file": 0}
    assert view.fs.drain(time.monotonic() + PATIENCE_S) == {}
    assert kept(store, "file") == CHANGES


def test_a_worker_dies_before(tmp_path: Path) -> None:
    store = bare_store()
    unpacked(store, tmp_path)
    successor = View(store, tmp_path)
    successor.fs.recovery.restore()
    assert successor.stat("file").mtime_ns == CHANGES["mtime_ns"]
    tick(successor)
    wait_until(lambda: kept(store, "file") == CHANGES, PATIENCE_S)
    assert store.requests["copy"] == 1


def test_the_sidecar_dies_before(tmp_path: Path) -> None:
    store = bare_store()
    unpacked(store, tmp_path)
    assert View(store, tmp_path).fs.recovery.finish_predecessor() == ["file"]
    assert kept(store, "file") == CHANGES


def test_the_sidecar_dies_and_another_writer_s_object_is_left_alone(tmp_path: Path) -> None:
    store = bare_store()
    unpacked(store, tmp_path)
    store.put("file", b"theirs")
    assert View(store, tmp_path).fs.recovery.finish_predecessor() == []
    assert kept(store, "file") == {}


def test_another_writer_s_object_has_its_own(tmp_path: Path) -> None:
    store = bare_store()
    view = unpacked(store, tmp_path)
    store.put("file", b"theirs")
    tick(view)
    wait_until(lambda: view.fs.files.contents.dirty() == [], PATIENCE_S)
    assert kept(store, "file") == {}
    assert view.read("file") == b"theirs"


def test_a_file_that_lost_its_name_needs_none(tmp_path: Path) -> None:
    store = bare_store()
    view = unpacked(store, tmp_path)
    view.unlink("file")
    tick(view)
    assert view.fs.drain(time.monotonic() + PATIENCE_S) == {}
    assert "copy" not in store.requests
    assert view.fs.files.contents.local() == []


def test_what_fails_is_said_and_tried_again(tmp_path: Path) -> None:
    store = bare_store()
    view = unpacked(store, tmp_path)
    store.hooks["copy"] = raising(Unavailable("the store is away"))
    tick(view)
    unsaved = view.fs.sync(time.monotonic() + PATIENCE_S)
    assert list(unsaved) == ["file"]
    assert isinstance(unsaved["file"], Unavailable)
    store.hooks.pop("copy")
    assert view.fs.sync(time.monotonic() + PATIENCE_S) == {}
    assert kept(store, "file") == CHANGES


def test_of_an_older_file_they_are_saved_at_once_or_not_at_all(tmp_path: Path) -> None:
    store = bare_store()
    View(store, tmp_path / "one").write("file", b"content")
    view = View(store, tmp_path / "two")
    before = view.stat("file")
    view.fs.set_attributes(view.inode("file"), {"mode": 0o640})
    assert kept(store, "file")["mode"] == 0o640
    store.hooks["copy"] = raising(Unavailable("the store is away"))
    with pytest.raises(Unavailable):
        view.fs.set_attributes(view.inode("file"), {"mode": 0o600})
    assert view.stat("file").mode & 0o777 == 0o640
    store.hooks.pop("copy")
    store.put("file", b"theirs")
    with pytest.raises(Stale):  # at which the kernel looks the name up again
        view.fs.set_attributes(before.inode, {"mode": 0o600})
    view.fs.set_attributes(view.inode("file"), {"mode": 0o600})
    assert kept(store, "file")["mode"] == 0o600
    assert view.read("file") == b"theirs"


def test_only_so_many_wait(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(contents, "MOST_LOCAL", 2)
    store = bare_store()
    view = View(store, tmp_path)
    for name in ("one", "two", "three"):
        view.write(name, b"content")
        set_one_by_one(view, name)
    assert {inode.name for inode in view.fs.files.contents.dirty()} == {"one", "two"}
    assert kept(store, "three") == CHANGES
