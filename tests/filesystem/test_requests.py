"""Which operations cost requests, and how long answers are cached."""

from __future__ import annotations

import threading
import time
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from pathlib import Path
from typing import Any

import pytest

from sidecar.errors import NotFound, WouldBlock
from sidecar.mounter.filesystem.inodes.inode import ROOT
from sidecar.mounter.filesystem.inodes.name_resolver import RELIST_MISSES
from sidecar.mounter.store.interface import Page
from sidecar.mounter.system.shortage import NO_THREAD
from tests.filesystem.view import View, delay_next_list, paged_store
from tests.support.memory_store import Hook, MemoryStore, before
from tests.support.waiting import wait_until


def fill(store: MemoryStore, count: int) -> list[str]:
    names = [f"{number:04}" for number in range(count)]
    for name in names:
        store.put(f"dir/{name}", b"content")
    return names


def asked(store: MemoryStore) -> int:
    return sum(store.requests[kind] for kind in ("list", "head", "get") if kind in store.requests)


def test_stat_after_a_listing_costs_nothing(tmp_path: Path) -> None:
    store = MemoryStore()
    names = fill(store, 2_500)
    view = View(store, tmp_path)
    assert view.names("dir") == names
    before = asked(store)
    assert before <= 5  # one LIST for `dir` and one HEAD, three pages
    for name in names:
        assert view.stat(f"dir/{name}").size_bytes == 7
    assert asked(store) == before


def test_the_first_names_come_before_the_last_page(tmp_path: Path) -> None:
    store = paged_store(100)
    fill(store, 1_000)
    view = View(store, tmp_path)
    handle = view.fs.open_directory(view.inode("dir"))
    assert len(list(islice(view.fs.read_directory(handle, 0), 10))) == 10
    assert store.requests["list"] < 1 + 10
    assert len(list(view.fs.read_directory(handle, 0))) == 1_002
    assert store.requests["list"] == 1 + 10  # one for the root


def test_lookups_at_the_same_time_share_one_listing(tmp_path: Path) -> None:
    store = MemoryStore()
    names = fill(store, 30)
    view = View(store, tmp_path)
    directory = view.inode("dir")
    before = store.requests["list"]
    late, gate = delay_next_list(store)
    with ThreadPoolExecutor(8) as threads:
        found = [threads.submit(view.fs.lookup, directory, name) for name in names]
        assert late.wait(300)
        gate.set()
        assert len({entry.result().attributes.inode for entry in found}) == 30
    assert store.requests["list"] - before == 1


def recorded_store() -> tuple[MemoryStore, list[str]]:
    """A store, and the prefixes that are listed."""
    listed: list[str] = []
    return MemoryStore(list=before(lambda prefix, *_, **__: listed.append(prefix))), listed


def test_a_path_costs_a_round_trip_less_than_it_has_directories(tmp_path: Path) -> None:
    """What looks like a directory is listed together with the one that it is in."""
    listed: list[str] = []
    other_listed = threading.Event()

    def list_together(list_page: Hook, prefix: str, *arguments: Any, **named: Any) -> Page:
        """The root only while another directory is being listed."""
        listed.append(prefix)
        if prefix:
            other_listed.set()
        else:
            assert other_listed.wait(300)
        return list_page(prefix, *arguments, **named)

    store = MemoryStore(list=list_together)
    store.put("dir/file", b"content")
    view = View(store, tmp_path)
    assert view.read("dir/file") == b"content"
    assert view.names("dir") == ["file"]
    assert sorted(listed) == ["", "dir/"]


def test_what_was_listed_ahead_counts_for_its_lifetime_and_not_longer(tmp_path: Path) -> None:
    store = MemoryStore()
    store.put("dir/old", b"content")
    view = View(store, tmp_path, ttl_s=0.05)
    view.inode("dir")  # which lists it, too
    store.put("dir/new", b"content")
    time.sleep(0.1)
    assert view.names("dir") == ["new", "old"]


def test_what_looks_like_a_file_is_not_listed(tmp_path: Path) -> None:
    store, listed = recorded_store()
    store.put("file.txt", b"content")
    view = View(store, tmp_path)
    assert view.read("file.txt") == b"content"
    # Nor is anything in a directory that was listed before.
    with pytest.raises(NotFound):
        view.inode("absent")
    time.sleep(0.1)  # it would be asked for by a thread
    assert listed == [""]


def test_where_no_thread_can_be_started_it_is_listed_in_its_turn(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise RuntimeError(NO_THREAD)

    store, listed = recorded_store()
    store.put("dir/file", b"content")
    view = View(store, tmp_path)
    monkeypatch.setattr(ThreadPoolExecutor, "submit", refuse)
    assert view.stat("dir/file").size_bytes == len(b"content")
    assert listed == ["", "dir/"]


def test_what_was_listed_before_a_directory_was_made_does_not_count(tmp_path: Path) -> None:
    store = MemoryStore()
    store.put("x/other", b"content")
    store.put("z/b/file", b"content")
    view = View(store, tmp_path)
    for path in ("new", "x/b"):
        with pytest.raises(NotFound):
            view.inode(path)
    store.put("new/file", b"content")
    view.fs.make_directory(ROOT, "new")
    assert view.names("new") == ["file"]
    view.rename("x", "y")
    view.rename("z", "x")
    assert view.names("x/b") == ["file"]


@pytest.mark.parametrize(
    ("order", "ahead"), [("abcdef", "cdef"), ("fedcba", "")], ids=["in order", "backwards"]
)
def test_directories_that_are_read_in_order_are_listed_ahead(
    tmp_path: Path, order: str, ahead: str
) -> None:
    store, listed = recorded_store()
    for name in order:
        store.put(f"{name}/file", b"content")
    view = View(store, tmp_path)
    assert [name for name in view.names() if view.inode(name)] == sorted(order)
    listed.clear()
    for number, name in enumerate(order):
        assert view.names(name) == ["file"]
        soon = {
            f"{later}/" for later in order[number + 1 : number + 3] if later in ahead and number
        }
        wait_until(lambda: soon <= set(listed), lambda: listed)  # noqa: B023
    assert sorted(listed) == [f"{name}/" for name in sorted(order)]


def test_a_slow_walk_lists_nothing_ahead_that_is_old_when_it_is_read(tmp_path: Path) -> None:
    store, listed = recorded_store()
    for name in "abcdef":
        store.put(f"{name}/file", b"content")
    view = View(store, tmp_path, ttl_s=0.3)
    inodes = {name: view.inode(name) for name in view.names()}
    for inode in inodes.values():
        time.sleep(0.15)  # more than a third of the lifetime
        view.fs.release_directory(view.fs.open_directory(inode))
    assert set(listed) & {f"{name}/" for name in inodes} == set()


@pytest.mark.parametrize(
    ("directory_s", "name_s", "listings"),
    [pytest.param(0.0, 0.005, 1, id="quick"), pytest.param(0.5, 0.0, 0, id="slow")],
)
def test_a_directory_is_listed_again_where_that_saves_time(
    tmp_path: Path, directory_s: float, name_s: float, listings: int
) -> None:
    """As for a program that creates one file after another."""
    listed: list[str] = []

    def slow(prefix: str, *_: object, **__: object) -> None:
        listed.append(prefix)
        time.sleep(directory_s if prefix == "dir/" else name_s)

    store = MemoryStore(list=before(slow))
    fill(store, 5)
    view = View(store, tmp_path, ttl_s=0.4)
    view.names("dir")
    directory = view.inode("dir")
    time.sleep(0.41)
    listed.clear()
    for number in range(RELIST_MISSES + 4):
        with pytest.raises(NotFound):
            view.fs.lookup(directory, f"new-{number}")
    assert listed.count("dir/") == listings


def test_a_second_walk_is_a_listing_for_each_directory(tmp_path: Path) -> None:
    """As of `git status` and `rsync -a`: the lifetime is over, and every name is asked for."""
    store, listed = recorded_store()
    directories = [f"dir.{number}" for number in range(40)]
    for directory in directories:
        for number in range(12):
            store.put(f"{directory}/{number}.txt", b"content")
    view = View(store, tmp_path, ttl_s=1.0)
    for directory in directories:
        view.names(directory)
    time.sleep(1.1)
    listed.clear()
    for directory in directories:
        for number in range(12):
            view.stat(f"{directory}/{number}.txt")
    # The root once more for each second that it takes.
    assert len(listed) <= 2 * len(directories), listed
    assert set(listed) == {"", *(f"{directory}/" for directory in directories)}


@pytest.mark.parametrize(("count", "lists"), [(200, True), (900, False)])
def test_one_name_of_a_larger_directory_does_not_list_it_again(
    tmp_path: Path, count: int, lists: bool
) -> None:
    store, listed = recorded_store()
    names = fill(store, count)
    view = View(store, tmp_path, ttl_s=1.0)
    view.names("dir")
    time.sleep(1.1)
    listed.clear()
    view.stat(f"dir/{names[0]}")
    assert ("dir/" in listed) == lists


@pytest.mark.parametrize("count", [3, 1_000], ids=["listed", "asked_by_name"])
def test_a_missing_name_is_remembered(tmp_path: Path, count: int) -> None:
    store = paged_store(100)
    fill(store, count)
    view = View(store, tmp_path)
    with pytest.raises(NotFound):
        view.inode("dir/missing")
    before = asked(store)
    with pytest.raises(NotFound):
        view.inode("dir/missing")
    assert asked(store) == before


def test_a_few_names_of_a_huge_directory_do_not_list_it(tmp_path: Path) -> None:
    store = paged_store(100)
    fill(store, 5_000)
    view = View(store, tmp_path)
    for name in ("4900", "4950", "4999"):
        assert view.stat(f"dir/{name}").size_bytes == 7
    assert asked(store) < 10


def test_no_name_waits_for_the_pages_of_a_huge_directory(tmp_path: Path) -> None:
    gate = threading.Event()

    def list_few(list_page: Hook, prefix: str, token: str | None = None, **named: Any) -> Page:
        if token is not None:
            gate.wait(300)
        return list_page(prefix, token, **{**named, "limit": 100})

    store = MemoryStore(list=list_few)
    names = fill(store, 1_000)
    view = View(store, tmp_path)
    try:
        for name in names[500:510]:  # More than it takes to begin a listing of the rest.
            assert view.stat(f"dir/{name}").size_bytes == 7
    finally:
        gate.set()


def test_names_of_a_directory_of_some_pages_are_asked_for_together(tmp_path: Path) -> None:
    store = paged_store(100)
    names = fill(store, 1_000)
    view = View(store, tmp_path)
    for name in names[100:]:
        assert view.stat(f"dir/{name}").size_bytes == 7
    assert asked(store) < 20  # Ten pages, and a few names before.


def test_an_answer_is_believed_for_its_lifetime_and_not_longer(tmp_path: Path) -> None:
    store = MemoryStore()
    fill(store, 1)
    believing = View(store, tmp_path / "believing")
    asking = View(store, tmp_path / "asking", ttl_s=0.02)
    assert believing.stat("dir/0000").size_bytes == asking.stat("dir/0000").size_bytes == 7
    for view in (believing, asking):
        with pytest.raises(NotFound):
            view.inode("dir/new")
    store.put("dir/0000", b"longer content")
    store.put("dir/new", b"")
    time.sleep(0.03)
    assert asking.stat("dir/0000").size_bytes == 14
    assert asking.stat("dir/new").size_bytes == 0
    assert asking.names("dir") == ["0000", "new"]
    assert believing.stat("dir/0000").size_bytes == 7
    with pytest.raises(NotFound):
        believing.inode("dir/new")
    assert believing.names("dir") == ["0000"]


def test_who_may_not_wait_is_told_and_nothing_is_asked(tmp_path: Path) -> None:
    store = MemoryStore()
    fill(store, 3)
    view = View(store, tmp_path)
    with pytest.raises(WouldBlock):
        view.fs.lookup(ROOT, "dir", wait=False)
    assert asked(store) == 0
    directory = view.inode("dir")
    handle = view.fs.open_directory(directory)
    with pytest.raises(WouldBlock):
        list(view.fs.read_directory(handle, 0, wait=False))
    assert view.names("dir") == ["0000", "0001", "0002"]
    before = asked(store)
    assert len(list(view.fs.read_directory(handle, 0, wait=False))) == 5
    assert view.fs.lookup(directory, "0001", wait=False).attributes.size_bytes == 7
    assert asked(store) == before
