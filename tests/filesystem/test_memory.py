"""Cached names are freed when they have expired."""

from __future__ import annotations

import tracemalloc
from collections.abc import Iterator
from pathlib import Path

import pytest

from sidecar.errors import NotFound
from sidecar.mounter.filesystem.inodes.inode import ROOT
from sidecar.mounter.store.interface import ObjectInfo, Page
from tests.filesystem.view import View
from tests.support.memory_store import Hook, MemoryStore


def pages(names: int) -> Hook:
    """A root with many names that are made page by page."""

    def page(
        _: Hook, prefix: str, token: str | None = None, *, limit: int = 1000, **__: str
    ) -> Page:
        start = int(token or 0)
        end = min(names, start + limit)
        objects = [ObjectInfo(f"name-{n:08}", n, 1e9, f"{n:032x}") for n in range(start, end)]
        return Page(objects, [], str(end) if end < names else None)

    return page


@pytest.fixture
def traced() -> Iterator[None]:
    tracemalloc.start()
    yield
    tracemalloc.stop()


@pytest.mark.usefixtures("traced")
@pytest.mark.parametrize("count", [50_000, pytest.param(200_000, marks=pytest.mark.soak)])
def test_a_large_listing_is_freed_when_nobody_reads_it_and_nobody_believes_it(
    tmp_path: Path, count: int
) -> None:
    store = MemoryStore(list=pages(count))
    view = View(store, tmp_path, ttl_s=0)
    before = tracemalloc.get_traced_memory()[0]
    reading = view.fs.open_directory(ROOT)
    lines = view.fs.read_directory(reading, 0)
    names = [next(lines).name for _ in range(count // 2)]
    view.fs.namespace.directory_cache.drop_expired()
    names += [line.name for line in lines]  # An open reading goes on.
    assert len(names) == len(set(names)) == count + 2
    del names
    view.fs.release_directory(reading)
    del lines
    listed = tracemalloc.get_traced_memory()[0] - before
    assert listed > count * 10
    view.fs.namespace.directory_cache.drop_expired()
    assert tracemalloc.get_traced_memory()[0] - before < listed / 10
    # A name that is asked for then does not list it all again.
    lists = store.requests["list"]
    view.inode("name-00000000")
    assert store.requests["list"] == lists + 1


def test_what_is_believed_stays(tmp_path: Path) -> None:
    store = MemoryStore()
    store.put("file", b"x")
    view = View(store, tmp_path)
    assert view.names() == ["file"]
    with pytest.raises(NotFound):
        view.inode("absent")
    view.write("new", b"x")
    requests = dict(store.requests)
    view.fs.namespace.directory_cache.drop_expired()
    assert view.names() == ["file", "new"]
    with pytest.raises(NotFound):
        view.inode("absent")
    assert store.requests == requests


def test_who_has_asked_a_listing_still_has_all_of_it(tmp_path: Path) -> None:
    """A slow lookup still uses the listing that it found; expiry must not empty it."""
    store = MemoryStore()
    store.put("file", b"x")
    view = View(store, tmp_path, ttl_s=0)
    view.names()
    listing = view.fs.namespace.inodes.root.listing
    assert listing is not None
    view.fs.namespace.directory_cache.drop_expired()
    assert view.fs.namespace.inodes.root.listing is not listing
    assert listing.covers("file")
    assert listing.get("file") is not None
