"""A request whose worker died before its answer left is sent again to the next one."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from sidecar.errors import FileExists, NotFound
from sidecar.mounter.filesystem.filesystem import FileSystem
from sidecar.mounter.filesystem.inodes.inode import ROOT
from sidecar.mounter.filesystem.journal.journal import Journal
from sidecar.mounter.filesystem.journal.replay import (
    MOST_CRASHES,
    MOST_DEATHS,
    RecoveredState,
    ReplayedRequest,
)
from sidecar.mounter.system.state_directory import StateDirectory
from tests.support.memory_store import Hook, MemoryStore
from tests.support.serve import build

UNIQUE = 8


class Died(BaseException):
    """Stands for the death of the worker."""


def die_at(store: MemoryStore, operation: str, key: str, *, after: bool) -> None:
    """The next such change of the key ends its worker, when it is made or in its place."""

    def die(change: Hook, changed: str, *rest: object, **more: object) -> object:
        if changed != key:
            return change(changed, *rest, **more)
        del store.hooks[operation]
        if after:
            change(changed, *rest, **more)
        raise Died

    store.hooks[operation] = die


Operation = Callable[[FileSystem], object]


class Mount:
    """A file system and its successors."""

    def __init__(self, store: MemoryStore, state: Path) -> None:
        self._store, self._state = store, state
        self.fs = build(store, state)[0]
        self.fs.recovery.begin()

    def take_over(self, *, crashed: bool = False) -> None:
        self.fs = build(self._store, self._state)[0]
        self.fs.recovery.restore(crashed=crashed)

    def ask(self, operation: Operation, unique: int = UNIQUE) -> object:
        """Do a request as the transport does, without the answer."""
        self.fs.recovery.begin_request(unique)
        return operation(self.fs)

    def send_again(self, operation: Operation, unique: int = UNIQUE) -> object:
        """Do a request that is sent again, as the transport does."""
        replayed = self.fs.recovery.resent(unique)
        if replayed.answer is not None:
            return replayed.answer
        self.fs.recovery.revoke(unique)
        result = self.ask(operation, unique)
        self.fs.recovery.end_request(unique)
        return result


@pytest.fixture
def store() -> MemoryStore:
    store = MemoryStore()
    for key in ("a", "b", "d/", "e/f"):
        store.put(key, b"" if key.endswith("/") else key.encode())
    return store


@pytest.fixture
def mount(store: MemoryStore, tmp_path: Path) -> Mount:
    return Mount(store, tmp_path)


CHANGES: dict[str, tuple[Operation, tuple[str, str], list[str]]] = {
    "unlink": (lambda fs: fs.unlink(ROOT, "a"), ("delete", "a"), ["b", "d/", "e/f"]),
    "rmdir": (lambda fs: fs.remove_directory(ROOT, "d"), ("delete", "d/"), ["a", "b", "e/f"]),
    "mkdir": (
        lambda fs: fs.make_directory(ROOT, "n"),
        ("put", "n/"),
        ["a", "b", "d/", "e/f", "n/"],
    ),
    "rename": (
        lambda fs: fs.rename(ROOT, "a", ROOT, "n", 1),
        ("put", "n"),
        ["b", "d/", "e/f", "n"],
    ),
    "rename, old name": (
        lambda fs: fs.rename(ROOT, "a", ROOT, "n", 1),
        ("delete", "a"),
        ["b", "d/", "e/f", "n"],
    ),
    "rename over": (
        lambda fs: fs.rename(ROOT, "a", ROOT, "b", 0),
        ("put", "b"),
        ["b", "d/", "e/f"],
    ),
}


@pytest.mark.parametrize("after", [False, True], ids=["before", "after"])
@pytest.mark.parametrize("change", CHANGES)
def test_a_worker_dies_around_a_change(
    store: MemoryStore, mount: Mount, change: str, after: bool
) -> None:
    operation, moment, expected = CHANGES[change]
    number = mount.fs.lookup(ROOT, "a").attributes.inode
    die_at(store, *moment, after=after)
    with pytest.raises(Died):
        mount.ask(operation)
    mount.take_over()
    mount.send_again(operation)
    assert store.keys == expected
    if change.startswith("rename"):
        assert mount.fs.lookup(ROOT, expected[-1] if "n" in expected else "b").attributes.inode == (
            number
        )


@pytest.mark.parametrize("change", CHANGES)
def test_what_was_done_is_not_done_twice(store: MemoryStore, mount: Mount, change: str) -> None:
    """It was done, and then the name was used again: the answer is that of the first time."""
    operation, _, expected = CHANGES[change]
    mount.ask(operation)
    mount.fs.recovery.replied(UNIQUE, b"reply")
    mount.take_over()
    store.put("z", b"")
    assert mount.send_again(operation) == (0, b"reply")
    assert store.keys == [*expected, "z"]


def test_a_new_request_hears_the_truth(store: MemoryStore, mount: Mount) -> None:
    die_at(store, "delete", "a", after=True)
    with pytest.raises(Died):
        mount.ask(CHANGES["unlink"][0])
    mount.take_over()
    mount.fs.recovery.begin_request(UNIQUE + 2)
    with pytest.raises(NotFound):
        mount.fs.unlink(ROOT, "a")


def test_creation_is_exclusive_and_survives(mount: Mount) -> None:
    flags = os.O_CREAT | os.O_EXCL | os.O_RDWR

    def create(fs: FileSystem) -> object:
        return fs.create(ROOT, "new", 0o640, flags)

    entry, handle = mount.ask(create)  # type: ignore[misc]
    mount.take_over()
    again, handle_again = mount.send_again(create)  # type: ignore[misc]
    assert again.attributes.mode == entry.attributes.mode
    assert handle_again > handle
    assert len(mount.fs.files.opened()) == 1  # the handle that never arrived is gone
    assert mount.fs.namespace.inodes.get(again.attributes.inode).lookups == 1
    mount.fs.recovery.begin_request(UNIQUE + 2)
    with pytest.raises(FileExists):
        create(mount.fs)


GIVING: dict[str, Operation] = {
    "lookup": lambda fs: fs.lookup(ROOT, "a"),
    "open": lambda fs: fs.open(fs.namespace.find(fs.namespace.inodes.root, "a").id, os.O_RDWR),
    "opendir": lambda fs: fs.open_directory(ROOT),
}


@pytest.mark.parametrize("deaths", [1, 2, 3])
@pytest.mark.parametrize("giving", GIVING)
def test_what_never_arrived_is_revoked(mount: Mount, giving: str, deaths: int) -> None:
    """However often it is sent, one lookup, one handle."""
    inode = mount.fs.lookup(ROOT, "a").attributes.inode
    mount.ask(GIVING[giving])
    for _ in range(deaths):
        mount.take_over()
        mount.send_again(GIVING[giving])
        # Its answer is lost too, except the last one's.
        mount.fs.recovery.begin_request(UNIQUE)
    assert mount.fs.namespace.inodes.get(inode).lookups == (2 if giving == "lookup" else 1)
    assert len(mount.fs.files.opened()) == (giving == "open")
    assert len(mount.fs.recovery._directories) == (giving == "opendir")


def test_what_was_answered_stays_granted(mount: Mount, tmp_path: Path) -> None:
    mount.ask(GIVING["lookup"])
    mount.fs.recovery.end_request(UNIQUE)
    mount.take_over()
    mount.fs.recovery.all_resent()
    mount.take_over()
    assert mount.fs.namespace.inodes.get(2).lookups == 1
    assert RecoveredState.read(Journal(StateDirectory.open(tmp_path))).requests == {}


def test_requests_in_flight_survive_compaction(mount: Mount, tmp_path: Path) -> None:
    mount.ask(GIVING["lookup"])
    mount.fs.recovery.begin_request(UNIQUE + 2)
    mount.fs.make_directory(ROOT, "n")
    mount.fs.recovery.replied(UNIQUE + 2, b"reply")
    mount.fs.recovery.begin()  # writes a snapshot
    requests = RecoveredState.read(Journal(StateDirectory.open(tmp_path))).requests
    assert ReplayedRequest(requests[UNIQUE]).granted == [("lookup", 2)]
    assert ReplayedRequest(requests[UNIQUE + 2]).answer == (0, b"reply")


@pytest.mark.parametrize(
    ("crashed", "most"), [(True, MOST_CRASHES), (False, MOST_DEATHS)], ids=["crashed", "killed"]
)
def test_a_request_that_ends_every_worker_is_refused(
    store: MemoryStore, mount: Mount, crashed: bool, most: int
) -> None:
    def die(fs: FileSystem) -> None:
        die_at(store, "delete", "a", after=False)
        fs.unlink(ROOT, "a")

    with pytest.raises(Died):
        mount.ask(die)
    for _ in range(most - 1):
        mount.take_over(crashed=crashed)
        with pytest.raises(Died):
            mount.send_again(die)
    mount.take_over(crashed=crashed)
    assert mount.send_again(die) == (errno.EIO, b"")
    assert store.keys == ["a", "b", "d/", "e/f"]
