"""Races between calls: none fails because of one, as on a local disk."""

from __future__ import annotations

import contextlib
import functools
import os
import sys
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor, wait
from pathlib import Path
from typing import Any

import pytest

from sidecar.errors import NotFound, Stale
from sidecar.mounter.filesystem.content import contested_names
from sidecar.mounter.filesystem.inodes.inode import ROOT
from sidecar.mounter.filesystem.names.own_changes import OwnChanges
from sidecar.mounter.filesystem.names.remotes import REMOTE_DIRECTORY
from sidecar.mounter.store.interface import ObjectInfo
from tests.filesystem.view import View
from tests.support.memory_store import MemoryStore, after, before


@pytest.fixture
def store() -> MemoryStore:
    store = MemoryStore()
    store.put("file", b"content")
    store.put("other", b"theirs")
    return store


@pytest.fixture
def view(store: MemoryStore, tmp_path: Path) -> View:
    return View(store, tmp_path)


def test_a_file_is_renamed_while_it_is_read(store: MemoryStore, view: View) -> None:
    handle = view.open("file")
    store.once("get", before(lambda *_: view.rename("file", "new")))
    assert view.read_handle(handle) == b"content"


def test_a_file_is_unlinked_while_it_is_read(store: MemoryStore, view: View) -> None:
    handle = view.open("file")
    store.once("get", before(lambda *_: view.unlink("file")))
    assert view.read_handle(handle) == b"content"


def test_a_file_is_replaced_while_it_is_read(store: MemoryStore, view: View) -> None:
    handle = view.open("file")
    store.once("get", before(lambda *_: view.rename("other", "file")))
    assert view.read_handle(handle) == b"content"


@pytest.mark.parametrize("change", ["unlink", "rename"])
def test_a_file_is_opened_while_it_loses_its_name(
    store: MemoryStore, view: View, change: str
) -> None:
    """After ESTALE from open, the kernel looks the name up again."""
    inode = view.inode("file")
    came: list[object] = []

    def open_it() -> None:
        try:
            came.append(view.fs.open(inode, os.O_RDWR))
        except Stale as error:
            came.append(error)

    opening = threading.Thread(target=open_it)
    store.once("delete", before(lambda _: opening.start()))
    if change == "unlink":
        view.unlink("file")
    else:
        view.rename("other", "file")
    opening.join()
    if isinstance(came[0], int):  # it came first, so it goes on
        assert view.read_handle(came[0]) == b"content"
    else:
        assert isinstance(came[0], Stale)
        with pytest.raises(Stale):
            view.fs.open(inode, os.O_RDONLY | os.O_TRUNC)


@pytest.mark.parametrize("flags", [os.O_RDONLY, os.O_RDWR | os.O_TRUNC])
def test_a_name_that_was_lost_once_before_open_is_not_lost_again(
    store: MemoryStore, view: View, monkeypatch: pytest.MonkeyPatch, flags: int
) -> None:
    """The kernel looks it up and opens it a second time at ESTALE, and not a third time."""
    monkeypatch.setattr(contested_names, "CONTESTED_S", 0.2)
    first, second = view.inode("file"), view.inode("other")
    view.rename("other", "file")
    with pytest.raises(Stale):
        view.fs.open(first, flags)
    view.unlink("file")
    handle = view.fs.open(second, flags)
    time.sleep(0.2)
    view.fs.files.let_go_of_contested()
    assert view.read_handle(handle) == (b"" if flags & os.O_TRUNC else b"theirs")
    view.fs.release(handle)
    assert view.fs.files.contents.budget.used_bytes == 0


@pytest.mark.parametrize("forgotten", [True, False])
def test_a_contested_file_that_nobody_opens_is_dropped(
    view: View, monkeypatch: pytest.MonkeyPatch, forgotten: bool
) -> None:
    """The kernel has forgotten it, or the program is killed between its LOOKUP and OPEN."""
    monkeypatch.setattr(contested_names, "CONTESTED_S", 600.0 if forgotten else 0.2)
    first, second = view.inode("file"), view.inode("other")
    view.rename("other", "file")
    with pytest.raises(Stale):
        view.fs.open(first, os.O_RDONLY)
    view.unlink("file")
    view.fs.files.let_go_of_contested()
    assert view.fs.files.contents.budget.used_bytes > 0, "it may be opened yet"
    if forgotten:
        view.fs.forget(second, 1 << 20)
    else:
        time.sleep(0.2)
    view.fs.files.let_go_of_contested()
    assert view.fs.files.contents.budget.used_bytes == 0


def test_a_file_whose_deletion_fails_is_opened_meanwhile(store: MemoryStore, view: View) -> None:
    inode = view.inode("file")
    handles: list[int] = []

    def fail(_: str) -> None:
        opening.start()
        raise Stale("the store says no")

    opening = threading.Thread(target=lambda: handles.append(view.fs.open(inode, os.O_RDONLY)))
    store.once("delete", before(fail))
    with pytest.raises(Stale):
        view.unlink("file")
    opening.join()
    assert view.read_handle(handles[0]) == b"content"


def test_a_file_that_is_written_is_renamed_over_another_one(store: MemoryStore, view: View) -> None:
    handle = view.open("file", os.O_WRONLY)
    view.fs.write(handle, 0, b"CONTENT")
    view.rename("file", "other")
    view.fs.flush(handle)
    view.fs.release(handle)
    assert view.read("other") == b"CONTENT"
    assert view.metric("mount_sidecar_overwritten_versions_total") == 0


@pytest.mark.parametrize("change", ["closed", "given a mode", "cut"])
def test_a_file_is_changed_while_another_one_takes_its_name(
    store: MemoryStore, view: View, change: str
) -> None:
    """What is saved of it then must not replace the other one in the store."""
    inode = view.inode("file")
    if change == "closed":
        handle = view.open("file", os.O_WRONLY)
        view.fs.write(handle, 0, b"CONTENT")

    def change_it() -> None:
        with contextlib.suppress(Stale):
            if change == "closed":
                view.fs.flush(handle)
            elif change == "cut":
                view.fs.set_attributes(inode, {}, 3)
            else:
                view.fs.set_attributes(inode, {"mode": 0o600})

    changing = threading.Thread(target=change_it)

    def meet(*_: object, **__: object) -> None:
        changing.start()
        changing.join(0.5)  # it waits for the rename, or does harm

    store.once("copy", after(meet))
    view.rename("other", "file")
    changing.join()
    assert store.content("file") == b"theirs"
    assert view.read("file") == b"theirs"
    assert view.stat("file").mode & 0o777 == 0o644
    assert view.metric("mount_sidecar_overwritten_versions_total") == 0


def test_absent_names_expire_while_others_are_made(store: MemoryStore, view: View) -> None:
    """Cached absences expire in one thread while another adds some."""
    view.names()
    absent = [f"absent-{number}" for number in range(2_000)]
    for name in absent:
        with pytest.raises(NotFound):
            view.inode(name)
    ended = threading.Event()

    def expire() -> None:
        while not ended.is_set():
            view.fs.namespace.directory_cache.drop_expired()

    interval_s = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        with ThreadPoolExecutor(1) as threads:
            expiring = threads.submit(expire)
            old = "file"
            for new in absent[:200]:
                view.rename(old, new)
                assert view.fs.absence_ttl_s(ROOT, new) == 0
                old = new
            ended.set()
            expiring.result()
    finally:
        ended.set()
        sys.setswitchinterval(interval_s)


@pytest.mark.parametrize("call", ["mkdir", "opendir"])
def test_nobody_waits_for_a_page_that_another_thread_loads(
    store: MemoryStore, view: View, call: str
) -> None:
    """The store may take long: the thread that reads all requests must not wait for it."""
    for number in range(1_500):  # two pages
        store.put(f"large/{number:04}/object", b"")
    namespace = view.fs.namespace
    listing = namespace.directory_cache.fresh_listing(namespace.directory(view.inode("large")))
    listing.load_until(1)
    inside = view.inode("large/0001")
    calls: dict[str, Callable[[], object]] = {
        "mkdir": lambda: view.fs.make_directory(view.inode("large"), "new", 0o755),
        "opendir": lambda: view.fs.open_directory(inside),
    }
    came: list[Future[object]] = []
    waiting: list[Future[object]] = []
    with ThreadPoolExecutor(1) as threads:

        def meanwhile(*_: object, **__: object) -> None:
            calling = threads.submit(calls[call])
            waiting.extend(wait([calling], 5).not_done)
            came.append(calling)

        store.once("list", before(meanwhile))
        listing.load_all()
    assert came[0].result() is not None
    assert not waiting
    assert len(names := view.names("large")) == len(set(names))
    assert ("new" in names) == (call == "mkdir")


def test_a_name_that_is_made_while_a_page_is_corrected_is_shown(
    store: MemoryStore, view: View, monkeypatch: pytest.MonkeyPatch
) -> None:
    for number in range(1_500):
        store.put(f"large/{number:04}", b"")
    namespace = view.fs.namespace
    listing = namespace.directory_cache.fresh_listing(namespace.directory(view.inode("large")))
    listing.load_until(1)
    reconcile = OwnChanges.reconcile

    def meanwhile(*arguments: Any) -> object:
        right = reconcile(*arguments)
        monkeypatch.undo()
        make = functools.partial(view.fs.make_directory, view.inode("large"), "new", 0o755)
        thread = threading.Thread(target=make)
        thread.start()
        thread.join()
        return right

    monkeypatch.setattr(OwnChanges, "reconcile", meanwhile)
    listing.load_all()
    assert listing.get("new") is REMOTE_DIRECTORY


def test_a_page_of_a_directory_that_is_renamed_meanwhile_is_asked_for_again(
    store: MemoryStore, view: View
) -> None:
    for number in range(1_500):
        store.put(f"large/{number:04}", b"")
    namespace = view.fs.namespace
    listing = namespace.directory_cache.fresh_listing(namespace.directory(view.inode("large")))
    listing.load_until(1)
    store.once("list", before(lambda *_, **__: listing.rename("renamed/", {})))
    for number in range(1_500):
        store.put(f"renamed/{number:04}", b"")
    listing.load_all()
    assert len(listing) == 1_500
    assert all(
        isinstance(found := listing.get(f"{number:04}"), ObjectInfo)
        and found.key.startswith("renamed/")
        for number in range(1_000, 1_500)
    )
