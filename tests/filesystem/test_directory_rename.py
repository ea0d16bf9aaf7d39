"""Renaming directories: requests, concurrent operations, workers that die."""

from __future__ import annotations

import itertools
import os
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from sidecar.errors import NotFound, SidecarError, Unavailable
from sidecar.mounter.filesystem.inodes.inode import ROOT
from tests.filesystem.view import View
from tests.support.memory_store import Hook, MemoryStore, before
from tests.support.serve import build

FILES = 40
AWAY = Unavailable("the store is told to fail")


class Died(BaseException):
    """Stands for the death of the worker."""


def some(count: int, error: BaseException) -> Hook:
    """So many requests are made, and then no more."""
    numbers = itertools.count()

    def make(request: Hook, *arguments: Any, **named: Any) -> Any:
        if next(numbers) >= count:
            raise error
        return request(*arguments, **named)

    return make


def gated_copies(store: MemoryStore) -> tuple[threading.Event, threading.Event]:
    """An event that is set once a copy waits, and the one that copies wait for."""
    copying, gate = threading.Event(), threading.Event()

    def wait(*_: object, **__: object) -> None:
        copying.set()
        assert gate.wait(60)

    store.hooks["copy"] = before(wait)
    return copying, gate


@pytest.fixture
def store() -> MemoryStore:
    store = MemoryStore()
    for number in range(FILES):
        store.put(f"old/{number % 4}/{number:02}", b"%d" % number)
    return store


def moved(prefix: str = "new") -> list[str]:
    return sorted([f"{prefix}/", *(f"{prefix}/{n % 4}/{n:02}" for n in range(FILES))])


def check(store: MemoryStore) -> None:
    assert store.keys == moved()
    for number in range(FILES):
        assert store.content(f"new/{number % 4}/{number:02}") == b"%d" % number


def test_every_object_is_copied_once_and_nothing_is_downloaded(
    store: MemoryStore, tmp_path: Path
) -> None:
    view = View(store, tmp_path)
    view.rename("old", "new")
    check(store)
    assert store.requests["copy"] == FILES
    assert "get" not in store.requests


def test_keys_that_no_path_can_spell_go_along(store: MemoryStore, tmp_path: Path) -> None:
    store.put("old//x", b"")
    store.put("old/link.rclonelink", b"target")
    View(store, tmp_path).rename("old", "new")
    assert store.keys == sorted([*moved(), "new//x", "new/link.rclonelink"])


def test_a_save_waits_for_the_rename_and_goes_to_the_new_name(
    store: MemoryStore, tmp_path: Path
) -> None:
    """An unrelated one does not wait."""
    view = View(store, tmp_path)
    handle = view.open("old/0/00", os.O_RDWR)
    view.fs.write(handle, 0, b"changed")
    copying, gate = gated_copies(store)
    with ThreadPoolExecutor(3) as threads:
        rename = threads.submit(view.rename, "old", "new")
        assert copying.wait(60)
        saved = threads.submit(view.fs.flush, handle)
        made = threads.submit(view.write, "old/1/made", b"made")
        view.write("elsewhere", b"")
        assert not saved.done()
        assert not made.done()
        view.fs.write(handle, 7, b" again")  # A write does not wait.
        gate.set()
        for done in (rename, saved, made):
            done.result()
    view.fs.flush(handle)
    view.fs.release(handle)
    other = View(store, tmp_path / "other")
    assert other.read("new/0/00") == b"changed again"
    assert other.read("new/1/made") == b"made"
    assert sorted(other.names()) == ["elsewhere", "new"]


def test_a_failing_copy_leaves_everything_as_it_was(store: MemoryStore, tmp_path: Path) -> None:
    view = View(store, tmp_path)
    before = store.keys
    store.hooks["copy"] = some(FILES // 2, AWAY)
    with pytest.raises(Unavailable):
        view.rename("old", "new")
    assert store.keys == before
    assert view.read("old/1/01") == b"1"
    with pytest.raises(NotFound):
        view.inode("new")
    store.hooks.clear()
    view.rename("old", "new")
    check(store)


def test_a_failing_deletion_is_tried_again(store: MemoryStore, tmp_path: Path) -> None:
    view = View(store, tmp_path)
    store.hooks["delete"] = some(FILES // 2, AWAY)
    with pytest.raises(SidecarError):
        view.rename("old", "new")
    assert view.read("new/1/01") == b"1"
    store.hooks.clear()
    assert view.fs.sync(float("inf")) == {}
    check(store)


def test_what_somebody_else_adds_meanwhile_is_not_lost(store: MemoryStore, tmp_path: Path) -> None:
    view = View(store, tmp_path)
    copying, gate = gated_copies(store)
    with ThreadPoolExecutor(1) as threads:
        rename = threads.submit(view.rename, "old", "new")
        assert copying.wait(60)
        store.put("old/late", b"late")
        store.put("old/1/01", b"newer")
        gate.set()
        rename.result()
    assert "old/late" in store.keys
    assert View(store, tmp_path / "other").read("new/1/01") in (b"1", b"newer")


@pytest.mark.parametrize("copies", [0, 1, FILES // 2, FILES - 1])
@pytest.mark.parametrize("how", ["sent again", "next start"])
def test_a_worker_dies_while_it_copies(
    store: MemoryStore, tmp_path: Path, copies: int, how: str
) -> None:
    store.requests.clear()
    self_destruct(store, tmp_path, how, "copy", copies)
    check(store)
    # Up to sixteen copies were in flight; only these may be repeated. The memory store puts what
    # it copies; the other three are the written file, its directory and the new one.
    assert store.requests["put"] <= FILES + 16 + 3


@pytest.mark.parametrize("deletions", [0, 1, FILES // 2, FILES])
@pytest.mark.parametrize("how", ["sent again", "next start"])
def test_a_worker_dies_while_it_deletes(
    store: MemoryStore, tmp_path: Path, deletions: int, how: str
) -> None:
    self_destruct(store, tmp_path, how, "delete", deletions)
    check(store)


@pytest.mark.parametrize("files", [0, 1, 3])
def test_a_worker_dies_before_it_has_noted_where_all_files_are(
    store: MemoryStore, tmp_path: Path, files: int
) -> None:
    """What the kernel looked up before is read without asking for the name again."""
    fs = build(store, tmp_path)[0]
    fs.recovery.begin()
    old = fs.lookup(ROOT, "old").attributes.inode
    inner = fs.lookup(old, "1").attributes.inode
    known = {n: fs.lookup(inner, f"{n:02}").attributes.inode for n in (1, 5, 9, 13)}
    fs.recovery.begin_request(8)
    rename_object, left = fs.namespace._rename_object, iter(range(files))

    def rename_some(*arguments: Any) -> None:
        if next(left, None) is None:
            raise Died
        rename_object(*arguments)

    fs.namespace._rename_object = rename_some  # type: ignore[method-assign]
    with pytest.raises(Died):
        fs.rename(ROOT, "old", ROOT, "new", 0)
    fs = build(store, tmp_path)[0]
    fs.recovery.restore()
    fs.recovery.resent(8)
    fs.recovery.begin_request(8)
    fs.rename(ROOT, "old", ROOT, "new", 0)
    fs.recovery.end_request(8)
    check(store)
    for number, inode in known.items():
        handle = fs.open(inode, os.O_RDONLY)
        result = fs.read(handle, 0, 10)
        assert b"".join(result.views) == b"%d" % number
        result.release()


def self_destruct(store: MemoryStore, state: Path, how: str, operation: str, count: int) -> None:
    """A worker dies at this point of a rename; its successor completes it."""
    store.hooks[operation] = some(count, Died())
    fs = build(store, state)[0]
    fs.recovery.begin()
    inode = fs.lookup(ROOT, "old").attributes.inode
    inner = fs.lookup(inode, "1").attributes.inode
    handle = fs.open(fs.lookup(inner, "05").attributes.inode, os.O_RDWR)
    dirty = fs.create(inner, "dirty", 0o600, os.O_RDWR)[1]
    fs.write(dirty, 0, b"dirty")
    fs.recovery.begin_request(8)
    with pytest.raises(Died):
        fs.rename(ROOT, "old", ROOT, "new", 0)
    store.hooks.clear()
    fs = build(store, state)[0]
    if how == "next start":
        fs.recovery.finish_predecessor()
    else:
        fs.recovery.restore()
        fs.recovery.resent(8)
        fs.recovery.revoke(8)
        fs.recovery.begin_request(8)
        fs.rename(ROOT, "old", ROOT, "new", 0)
        fs.recovery.end_request(8)
        assert fs.lookup(ROOT, "new").attributes.inode == inode
        result = fs.read(handle, 0, 10)
        assert b"".join(result.views) == b"5"
        result.release()
        fs.flush(dirty)
    info = store.head("new/1/dirty")
    assert info.size_bytes == 5
    store.delete("new/1/dirty")


def test_a_rename_whose_request_does_not_come_again(store: MemoryStore, tmp_path: Path) -> None:
    """Its program was killed while no worker was alive: nothing is lost or duplicated."""
    store.hooks["copy"] = some(FILES // 2, Died())
    fs = build(store, tmp_path)[0]
    fs.recovery.begin()
    before = store.keys
    fs.lookup(ROOT, "old")
    fs.recovery.begin_request(8)
    with pytest.raises(Died):
        fs.rename(ROOT, "old", ROOT, "new", 0)
    fs = build(store, tmp_path)[0]
    fs.recovery.restore()
    fs.recovery.all_resent()
    fs.sync(float("inf"))
    assert store.keys == before
