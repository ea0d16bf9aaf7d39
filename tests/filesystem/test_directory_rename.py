"""Renaming directories: requests, concurrent operations, workers that die."""

from __future__ import annotations

import os
import threading
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from sidecar.errors import NotFound, SidecarError, Unavailable
from sidecar.mounter.filesystem.inodes import ROOT
from sidecar.mounter.store.interface import ObjectInfo
from tests.filesystem.view import View
from tests.support.memory_store import MemoryStore
from tests.support.serve import build

FILES = 40


class SlowStore(MemoryStore):
    """Copies wait at a gate, fail, or end their worker after some.

    Attributes:
        gate: copies wait for it.
        copying: set once one waits.
        copies: how many are still made before ``failure``.
    """

    def __init__(self) -> None:
        super().__init__()
        self.gate = threading.Event()
        self.gate.set()
        self.copying = threading.Event()
        self.copies = 1 << 30
        self.deletions = 1 << 30
        self.failure: BaseException = Unavailable("the store is told to fail")

    def copy(
        self,
        source: str,
        target: str,
        *,
        known: ObjectInfo | None = None,
        metadata: Mapping[str, str] | None = None,
    ) -> ObjectInfo:
        self.copying.set()
        assert self.gate.wait(60)
        self.copies -= 1
        if self.copies < 0:
            raise self.failure
        return super().copy(source, target, known=known, metadata=metadata)

    def delete(self, key: str) -> None:
        self.deletions -= 1
        if self.deletions < 0:
            raise self.failure
        super().delete(key)


class Died(BaseException):
    """Stands for the death of the worker."""


@pytest.fixture
def store() -> SlowStore:
    store = SlowStore()
    for number in range(FILES):
        store.put(f"old/{number % 4}/{number:02}", b"%d" % number)
    return store


def keys(store: MemoryStore) -> list[str]:
    return [info.key for info in store.list_page("", delimiter="").objects]


def moved(prefix: str = "new") -> list[str]:
    return sorted([f"{prefix}/", *(f"{prefix}/{n % 4}/{n:02}" for n in range(FILES))])


def check(store: MemoryStore) -> None:
    assert keys(store) == moved()
    for number in range(FILES):
        info = store.head(f"new/{number % 4}/{number:02}")
        data = bytearray(info.size_bytes)
        store.get_range(info.key, info.version, 0, memoryview(data))
        assert data == b"%d" % number


def test_every_object_is_copied_once_and_nothing_is_downloaded(
    store: SlowStore, tmp_path: Path
) -> None:
    view = View(store, tmp_path)
    view.rename("old", "new")
    check(store)
    assert store.requests["copy"] == FILES
    assert store.requests.get("get", 0) == FILES  # the check's own


def test_keys_that_no_path_can_spell_go_along(store: SlowStore, tmp_path: Path) -> None:
    store.put("old//x", b"")
    store.put("old/link.rclonelink", b"target")
    View(store, tmp_path).rename("old", "new")
    assert keys(store) == sorted([*moved(), "new//x", "new/link.rclonelink"])


def test_a_save_waits_for_the_rename_and_goes_to_the_new_name(
    store: SlowStore, tmp_path: Path
) -> None:
    """An unrelated one does not wait."""
    view = View(store, tmp_path)
    handle = view.open("old/0/00", os.O_RDWR)
    view.fs.write(handle, 0, b"changed")
    store.gate.clear()
    with ThreadPoolExecutor(3) as threads:
        rename = threads.submit(view.rename, "old", "new")
        assert store.copying.wait(60)
        saved = threads.submit(view.fs.flush, handle)
        made = threads.submit(view.write, "old/1/made", b"made")
        view.write("elsewhere", b"")
        assert not saved.done()
        assert not made.done()
        view.fs.write(handle, 7, b" again")  # A write does not wait.
        store.gate.set()
        for done in (rename, saved, made):
            done.result()
    view.fs.flush(handle)
    view.fs.release(handle)
    other = View(store, tmp_path / "other")
    assert other.read("new/0/00") == b"changed again"
    assert other.read("new/1/made") == b"made"
    assert sorted(other.names()) == ["elsewhere", "new"]


def test_a_failing_copy_leaves_everything_as_it_was(store: SlowStore, tmp_path: Path) -> None:
    view = View(store, tmp_path)
    before = keys(store)
    store.copies = FILES // 2
    with pytest.raises(Unavailable):
        view.rename("old", "new")
    assert keys(store) == before
    assert view.read("old/1/01") == b"1"
    with pytest.raises(NotFound):
        view.inode("new")
    store.copies = 1 << 30
    view.rename("old", "new")
    check(store)


def test_a_failing_deletion_is_tried_again(store: SlowStore, tmp_path: Path) -> None:
    view = View(store, tmp_path)
    store.deletions = FILES // 2
    with pytest.raises(SidecarError):
        view.rename("old", "new")
    assert view.read("new/1/01") == b"1"
    store.deletions = 1 << 30
    assert view.fs.sync(float("inf")) == {}
    check(store)


def test_what_somebody_else_adds_meanwhile_is_not_lost(store: SlowStore, tmp_path: Path) -> None:
    view = View(store, tmp_path)
    store.gate.clear()
    with ThreadPoolExecutor(1) as threads:
        rename = threads.submit(view.rename, "old", "new")
        assert store.copying.wait(60)
        store.put("old/late", b"late")
        store.put("old/1/01", b"newer")
        store.gate.set()
        rename.result()
    assert "old/late" in keys(store)
    assert View(store, tmp_path / "other").read("new/1/01") in (b"1", b"newer")


@pytest.mark.parametrize("copies", [0, 1, FILES // 2, FILES - 1])
@pytest.mark.parametrize("how", ["sent again", "next start"])
def test_a_worker_dies_while_it_copies(
    store: SlowStore, tmp_path: Path, copies: int, how: str
) -> None:
    self_destruct(store, tmp_path, how, copies=copies)
    check(store)
    # Up to sixteen copies were in flight; only these may be repeated.
    assert store.requests["copy"] <= FILES + 16


@pytest.mark.parametrize("deletions", [0, 1, FILES // 2, FILES])
@pytest.mark.parametrize("how", ["sent again", "next start"])
def test_a_worker_dies_while_it_deletes(
    store: SlowStore, tmp_path: Path, deletions: int, how: str
) -> None:
    self_destruct(store, tmp_path, how, deletions=deletions)
    check(store)


@pytest.mark.parametrize("files", [0, 1, 3])
def test_a_worker_dies_before_it_has_noted_where_all_files_are(
    store: SlowStore, tmp_path: Path, files: int
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


def self_destruct(
    store: SlowStore, state: Path, how: str, *, copies: int = 1 << 30, deletions: int = 1 << 30
) -> None:
    """A worker dies at this point of a rename; its successor completes it."""
    store.failure, store.copies, store.deletions = Died(), copies, deletions
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
    store.copies = store.deletions = 1 << 30
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


def test_a_rename_whose_request_does_not_come_again(store: SlowStore, tmp_path: Path) -> None:
    """Its program was killed while no worker was alive: nothing is lost or duplicated."""
    store.failure, store.copies = Died(), FILES // 2
    fs = build(store, tmp_path)[0]
    fs.recovery.begin()
    before = keys(store)
    fs.lookup(ROOT, "old")
    fs.recovery.begin_request(8)
    with pytest.raises(Died):
        fs.rename(ROOT, "old", ROOT, "new", 0)
    fs = build(store, tmp_path)[0]
    fs.recovery.restore()
    fs.recovery.all_resent()
    fs.sync(float("inf"))
    assert keys(store) == before
