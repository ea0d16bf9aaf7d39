"""Links as objects: rclone's convention, and a link beside an object of the same name."""

from __future__ import annotations

import stat
from pathlib import Path

import pytest

from sidecar.errors import NotFound, NotPermitted
from sidecar.mounter.filesystem.inodes.inode import ROOT
from tests.filesystem.view import View, paged_store
from tests.support.memory_store import MemoryStore

PAGES = [1, 2, 3, 1000]


def fill(store: MemoryStore, *keys: str) -> MemoryStore:
    for key in keys:
        store.put(key, b"target")
    return store


def kind(view: View, path: str) -> int:
    return stat.S_IFMT(view.stat(path).mode)


def test_a_link_of_another_tool_is_shown(tmp_path: Path) -> None:
    view = View(fill(MemoryStore(), "dir/link.rclonelink"), tmp_path, read_only=True)
    assert view.names("dir") == ["link"]
    assert view.fs.read_link(view.inode("dir/link")) == b"target"
    assert view.stat("dir/link").size_bytes == len(b"target")
    with pytest.raises(NotFound):
        view.inode("dir/link.rclonelink")


def test_a_link_is_found_by_name_without_a_listing(tmp_path: Path) -> None:
    keys = [f"name{mark}{number}" for mark in " -+" for number in range(40)]
    view = View(fill(paged_store(16), *keys, "name.rclonelink"), tmp_path)
    assert kind(view, "name") == stat.S_IFLNK
    with pytest.raises(NotFound):
        view.inode("nam")


def test_a_link_that_was_made_is_an_object_with_the_suffix(tmp_path: Path) -> None:
    store = MemoryStore()
    view = View(store, tmp_path)
    view.fs.symlink(ROOT, "link", b"elsewhere")
    assert [info.key for info in store.list_page("").objects] == ["link.rclonelink"]
    assert view.fs.read_link(view.inode("link")) == b"elsewhere"
    assert store.requests.get("get", 0) == 0  # the target is known
    other = View(store, tmp_path / "other")
    assert other.fs.read_link(other.inode("link")) == b"elsewhere"


@pytest.mark.parametrize("by_name", [False, True], ids=["listed", "asked by name"])
@pytest.mark.parametrize("page", PAGES)
def test_a_file_wins_over_a_link(tmp_path: Path, page: int, by_name: bool) -> None:
    store = fill(paged_store(page), "a", "a-b", "a.rclonelink", "z")
    view = View(store, tmp_path)
    if not by_name:
        assert view.names() == ["a", "a-b", "z"]
        assert view.hidden("shadowed") == 1
    assert kind(view, "a") == stat.S_IFREG


@pytest.mark.parametrize("by_name", [False, True], ids=["listed", "asked by name"])
@pytest.mark.parametrize("page", PAGES)
def test_a_directory_wins_over_a_link(tmp_path: Path, page: int, by_name: bool) -> None:
    store = fill(paged_store(page), "a-b", "a.rclonelink", "a.x", "a/b", "z")
    view = View(store, tmp_path)
    if not by_name:
        assert view.names() == ["a-b", "a.x", "a", "z"]
        assert view.hidden("shadowed") == 1
    assert kind(view, "a") == stat.S_IFDIR


def test_a_link_without_a_name_is_left_out(tmp_path: Path) -> None:
    view = View(fill(MemoryStore(), ".rclonelink", "dir/.rclonelink", "dir/x"), tmp_path)
    assert view.names() == ["dir"]
    assert view.names("dir") == ["x"]
    assert view.hidden("name") == 2


def test_no_file_gets_a_name_that_would_be_a_link(tmp_path: Path) -> None:
    store = MemoryStore()
    view = View(store, tmp_path)
    view.write("file", b"")
    with pytest.raises(NotPermitted):
        view.write("file.rclonelink", b"")
    with pytest.raises(NotPermitted):
        view.rename("file", "other.rclonelink")
    view.fs.make_directory(ROOT, "dir.rclonelink")
    view.fs.symlink(ROOT, "link.rclonelink", b"x")
    assert sorted(view.names()) == ["dir.rclonelink", "file", "link.rclonelink"]


def test_what_replaces_a_link_leaves_nothing_of_it(tmp_path: Path) -> None:
    store = MemoryStore()
    view = View(store, tmp_path)
    for name in ("a", "b"):
        view.fs.symlink(ROOT, name, b"x")
    view.write("file", b"content")
    view.rename("file", "a")
    assert [info.key for info in store.list_page("").objects] == ["a", "b.rclonelink"]
    view.rename("b", "a")
    assert [info.key for info in store.list_page("").objects] == ["a.rclonelink"]


def test_a_changed_link_is_a_new_inode(tmp_path: Path) -> None:
    store = fill(MemoryStore(), "link.rclonelink")
    view = View(store, tmp_path, ttl_s=0)
    old = view.inode("link")
    assert view.fs.read_link(old) == b"target"
    store.put("link.rclonelink", b"another")
    assert view.inode("link") != old
    assert view.fs.read_link(view.inode("link")) == b"another"
