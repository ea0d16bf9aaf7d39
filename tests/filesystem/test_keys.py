"""From keys to paths: what a bucket's keys look like as a tree."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest

from sidecar.errors import NotEmpty, NotFound, NotPermitted
from sidecar.mounter.filesystem.inodes.inode import ROOT
from tests.filesystem.view import View, paged_store
from tests.support.memory_store import MemoryStore

UNSPELLABLE = ["./x", "../x", "nul\0", "n" * 256, "é" * 128, "dir//x", "/x"]


def fill(store: MemoryStore, *keys: str) -> MemoryStore:
    for key in keys:
        store.put(key, key.encode())
    return store


def test_prefixes_are_directories_without_any_marker(tmp_path: Path) -> None:
    view = View(fill(MemoryStore(), "a/b/c", "a/d"), tmp_path)
    assert view.names() == ["a"]
    assert view.names("a") == ["b", "d"]
    assert view.read("a/b/c") == b"a/b/c"


def test_a_marker_object_is_the_directory_and_no_file(tmp_path: Path) -> None:
    view = View(fill(MemoryStore(), "empty/", "full/", "full/file"), tmp_path)
    assert view.names() == ["empty", "full"]
    assert view.names("empty") == []
    assert view.names("full") == ["file"]
    assert view.hidden("name") == 0


def test_keys_that_no_path_can_spell_are_left_out_and_counted(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    store = fill(MemoryStore(), "dir/file", "ok", *UNSPELLABLE)
    view = View(store, tmp_path, ttl_s=0)
    with caplog.at_level(logging.WARNING):
        for _ in range(2):
            assert view.names() == ["dir", "ok"]
            assert view.names("dir") == ["file"]
    assert view.hidden("name") == 2 * len(UNSPELLABLE)
    lines = [record.getMessage() for record in caplog.records]
    assert len(lines) == len(set(lines)) == len(UNSPELLABLE)


@pytest.mark.parametrize("page", [1, 2, 1000])
def test_a_directory_wins_over_a_file_of_the_same_name(tmp_path: Path, page: int) -> None:
    # `a-b` sorts between the two, so a page may end there.
    store = fill(paged_store(page), "a", "a-b", "a/b", "z")
    view = View(store, tmp_path)
    assert view.names() == ["a-b", "a", "z"]
    assert view.names("a") == ["b"]
    assert view.hidden("shadowed") == 1


@pytest.mark.parametrize("page", [1, 2, 1000])
def test_a_directory_wins_also_when_it_is_asked_for_by_name(tmp_path: Path, page: int) -> None:
    store = fill(paged_store(page), "a", *(f"a-{number}" for number in range(40)), "a/b")
    view = View(store, tmp_path)
    assert view.names("a") == ["b"]


@pytest.mark.parametrize("page", [1, 3, 7, 1000])
def test_every_name_once_whatever_the_pages(tmp_path: Path, page: int) -> None:
    keys = ["a/1", "a.b", "a0", "b", "b-c/1", "b-c/2", "c/1", "d"]
    view = View(fill(paged_store(page), *keys), tmp_path)
    assert sorted(view.names()) == ["a", "a.b", "a0", "b", "b-c", "c", "d"]


def test_a_prefix_that_is_part_of_a_name_is_no_directory(tmp_path: Path) -> None:
    view = View(fill(MemoryStore(), "name-longer"), tmp_path)
    with pytest.raises(NotFound):
        view.inode("name")


def test_a_directory_whose_object_has_content_is_not_removed(tmp_path: Path) -> None:
    store = MemoryStore()
    store.put("e/", b"hidden", {"theirs": "kept"})
    store.put("other/", b"")
    view = View(store, tmp_path)
    assert view.names("e") == []
    with pytest.raises(NotEmpty):
        view.fs.remove_directory(ROOT, "e")
    with pytest.raises(NotEmpty):
        view.rename("other", "e")
    # Setting an attribute keeps its content.
    view.fs.set_attributes(view.inode("e"), {"mode": 0o700})
    assert read(store, "e/") == b"hidden"
    assert store.head("e/").metadata == {"theirs": "kept", "mode": "16832"}
    view.fs.make_directory(view.inode("e"), "below")
    view.rename("e", "moved")
    assert read(store, "moved/") == b"hidden"


def read(store: MemoryStore, key: str) -> bytes:
    found = store.head(key)
    content = bytearray(found.size_bytes)
    store.get_range(key, found.version, 0, memoryview(content))
    return bytes(content)


def test_a_sidecar_s_probe_is_no_name(tmp_path: Path) -> None:
    store = MemoryStore()
    probe = "dir/.mount-sidecar-probe-0123456789abcdef"
    store.put(probe, b"")
    store.put("dir/file", b"")
    view = View(store, tmp_path)
    assert view.names("dir") == ["file"]
    assert view.hidden("name") == 0
    with pytest.raises(NotPermitted):
        view.write(probe, b"")
    view.unlink("dir/file")
    view.fs.remove_directory(ROOT, "dir")
    assert store.keys == []
