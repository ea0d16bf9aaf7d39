"""A listing while this mount changes the directory."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Executor, Future
from typing import Any

from sidecar.mounter.filesystem.names.listing import Listing
from sidecar.mounter.filesystem.names.name_memory import NameMemory
from sidecar.mounter.filesystem.names.own_changes import OwnChanges
from tests.support.memory_store import MemoryStore


class BusyMachine(Executor):
    """Runs what is submitted before the submitting thread goes on.

    Args:
        meanwhile: called in between.
    """

    def __init__(self, meanwhile: Callable[[], None]) -> None:
        self._meanwhile = meanwhile

    def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
        done: Future[Any] = Future()
        done.set_result(fn(*args, **kwargs))
        self._meanwhile()
        return done


def names_of(listing: Listing) -> list[str]:
    """The names that are there, by place."""
    names: list[str] = []
    place = 0
    while place < len(listing):
        start, opened = listing.stretch(place)
        names += [name for name in opened.names[place - start :] if opened.listed[name] is not None]
        place = start + len(opened.names)
    return names


def test_a_file_made_while_its_page_was_requested_is_listed() -> None:
    """The store answered before the file existed, but this mount knows its own changes."""
    store = MemoryStore()
    names = [f"{number:04}" for number in range(1500)]  # two pages
    for name in names:
        store.put(name, b"")

    def make_a_file() -> None:
        changes.add("", "1200-new", store.put("1200-new", b""))

    threads = BusyMachine(make_a_file)
    changes = OwnChanges(store, threads)
    listing = Listing(store, "", changes, lambda _key, _why: None, threads, NameMemory())
    listing.load_all()
    assert sorted(names_of(listing)) == sorted([*names, "1200-new"])
