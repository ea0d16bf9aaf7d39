"""Names of listings in a budget of memory: what is packed, forgotten or shared reads the same."""

from __future__ import annotations

import gc
import random
from collections.abc import Sequence
from concurrent.futures import Executor, Future
from pathlib import Path
from typing import Any

import pytest

from sidecar.errors import NotFound
from sidecar.mounter.filesystem.inodes.inode import ROOT, Inode
from sidecar.mounter.filesystem.names import packed_names
from sidecar.mounter.filesystem.names.listing import Listing
from sidecar.mounter.filesystem.names.name_memory import OPEN_NAME_BYTES, NameMemory
from sidecar.mounter.filesystem.names.names import LINK_SUFFIX
from sidecar.mounter.filesystem.names.own_changes import OwnChanges
from sidecar.mounter.filesystem.names.remotes import (
    FORGOTTEN_FILE,
    REMOTE_DIRECTORY,
    ForgottenObject,
    Listed,
)
from sidecar.mounter.store.interface import ObjectInfo
from sidecar.units import MIB
from tests.filesystem.view import View
from tests.support.memory_store import MemoryStore, bare_store

TINY_BYTES = 256 * 1024
"""Enough for a few hundred open names."""


class AtOnce(Executor):
    def submit(self, fn: Any, /, *args: Any, **kwargs: Any) -> Future[Any]:
        done: Future[Any] = Future()
        done.set_result(fn(*args, **kwargs))
        return done


def listing_of(store: MemoryStore, memory: NameMemory, prefix: str = "") -> Listing:
    changes = OwnChanges(store, AtOnce())
    return Listing(store, prefix, changes, lambda _key, _why: None, AtOnce(), memory)


def lines_of(listing: Listing) -> list[tuple[str, Listed | None]]:
    """Every name, by place, and what has it."""
    lines: list[tuple[str, Listed | None]] = []
    while len(lines) < len(listing):
        start, opened = listing.stretch(len(lines))
        lines += [(name, opened.listed[name]) for name in opened.names[len(lines) - start :]]
    return lines


def filled(names: int, seed: int, *, bare: bool = True) -> MemoryStore:
    """Files, directories and links, with versions and metadata of several kinds."""
    choose = random.Random(seed)
    store = bare_store() if bare else MemoryStore()
    for number in range(names):
        name = f"{choose.choice(['a', 'entry', 'ü'])}{choose.choice(' -./0_~ß')}{number:05}"
        name = name.replace("/", ".")
        key = name + choose.choice(["", "", "", "", "/inner", LINK_SUFFIX])
        store.put(key, b"x" * choose.randrange(9), {"mode": "100600"} if number % 3 else {})
    return store


# --- packing ------------------------------------------------------------------------------------


@pytest.mark.parametrize("bare", [False, True])
@pytest.mark.parametrize("versions", ["hexadecimal", "others"])
def test_what_is_packed_comes_back(bare: bool, versions: str) -> None:
    choose = random.Random(7)
    listed: dict[str, Listed | None] = {}
    for number in range(1000):
        kind = choose.randrange(12)
        name = f"{number:04}"
        if kind == 0:
            listed[name] = REMOTE_DIRECTORY
        elif kind == 1:
            listed[name] = None
        elif kind == 2:
            listed[name] = FORGOTTEN_FILE
        else:
            version = f"{choose.getrandbits(128):032x}"
            if versions == "others" and kind == 3:
                version = f'"é{version}-{kind}'
            info = ObjectInfo(f"dir/{name}", choose.getrandbits(50), number / 7, version)
            if not bare:
                info = info._replace(metadata={"a": str(kind)}, properties=None)
            listed[name] = info
    keys = packed_names.join_keys(packed_names.keys_of(listed, len("dir/")))
    details = packed_names.pack_details(listed)
    assert packed_names.unpack(keys, details, "dir/") == listed
    index = packed_names.index(keys)
    assert index is not None
    for name, known in listed.items():
        assert packed_names.find(keys, index, details, "dir/", name) == (known,)
    for name in ("", "0", "00000", "0500x", "zzz", "\0"):
        assert packed_names.find(keys, index, details, "dir/", name) is None
    assert packed_names.unpack_keys(packed_names.pack_keys(["a", "b/", "\udcff"])) == [
        "a",
        "b/",
        "\udcff",
    ]


def test_a_size_that_no_object_has_is_forgotten() -> None:
    listed: dict[str, Listed | None] = {"a": ObjectInfo("a", 1 << 70, 0.0, "v")}
    assert packed_names.pack_details(listed) is None


# --- listings -------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(4))
def test_a_small_budget_changes_no_answer(seed: int) -> None:
    """Besides that what is known of an object may be forgotten, which is another request."""
    store = filled(5_000, seed)
    large, small = listing_of(store, NameMemory()), listing_of(store, NameMemory(TINY_BYTES))
    choose = random.Random(seed)
    known = [f"made-{number}" for number in range(200)]
    while not (large.fully_loaded and small.fully_loaded):
        for listing in (large, small):
            listing.load_until(len(listing) + 1)
        known += [name for name, _ in choose.choices(lines_of(large), k=30)]
        for _ in range(60):
            name = choose.choice(known)
            remote = choose.choice([None, REMOTE_DIRECTORY, ObjectInfo(name, 5, 1.0, "made")])
            for listing in (large, small):
                listing.apply(name, remote)
    expected, found = lines_of(large), lines_of(small)
    assert [name for name, _ in found] == [name for name, _ in expected]
    assert len({name for name, _ in found}) == len(found)
    forgotten = 0
    for (name, listed), (_, other) in zip(expected, found, strict=True):
        if isinstance(other, ForgottenObject):
            assert isinstance(listed, ObjectInfo)
            assert other.is_link == listed.key.endswith(LINK_SUFFIX)
            forgotten += 1
        else:
            assert other == listed
        again = small.get(name)
        assert again == listed or isinstance(again, ForgottenObject)
    assert forgotten
    assert small.get("absent") is None
    assert small.shows_any


def test_listings_of_one_directory_share_what_is_the_same() -> None:
    """Twelve readers who began at different times, of a directory that hardly changes."""
    store, memory = filled(20_000, 1), NameMemory(MIB)
    listings = []
    for number in range(12):
        store.put(f"a-{number:03}-new", b"")  # shifts every place
        listings.append(listing_of(store, memory))
        listings[-1].load_all()
        if number == 0:
            alone = memory.used_bytes
    assert memory.used_bytes < 1.5 * alone
    assert [len(listing) for listing in listings] == list(range(20_001, 20_013))


def test_what_nobody_reads_is_freed() -> None:
    memory = NameMemory()
    listing = listing_of(filled(3_000, 2), memory)
    listing.load_all()
    assert memory.used_bytes > 3_000 * 20
    del listing
    gc.collect()
    memory.tidy()
    assert memory.used_bytes == 0


def test_a_listing_to_which_very_many_names_are_added_counts_no_longer() -> None:
    listing = listing_of(filled(3_000, 3), NameMemory())
    listing.load_all()
    for number in range(20_000):
        listing.apply(f" {number:05}", ObjectInfo(f" {number:05}", 1, 1.0, "v"))
    assert len(listing) < 15_000
    assert listing.as_of_s == float("-inf")


# --- a file system with a small budget ----------------------------------------------------------


def names_and_offsets(view: View, handle: int, offset: int, most: int) -> list[tuple[str, int]]:
    found = []
    for line in view.fs.read_directory(handle, offset):
        found.append((line.name, line.offset))
        if len(found) == most:
            break
    if found:
        view.fs.entries_read(handle, found[-1][1])
    return found


@pytest.mark.parametrize("seed", range(3))
def test_a_directory_beyond_the_budget_is_read_whole_while_it_changes(
    tmp_path: Path, seed: int
) -> None:
    """Every name that nobody touched comes once, from wherever a reader goes on."""
    store = MemoryStore()
    for number in range(6_000):
        store.put(f"entry-{number:05}" + ("/inner" if number % 7 == 0 else ""), b"content")
    view = View(store, tmp_path, ttl_s=0.01, names_bytes=TINY_BYTES)
    view.fs.recovery.begin()
    choose = random.Random(seed)
    untouched = {f"entry-{number:05}" for number in range(6_000)}
    handles = [view.fs.open_directory(ROOT) for _ in range(3)]
    read: dict[int, list[tuple[str, int]]] = {handle: [] for handle in handles}
    ended: set[int] = set()
    while len(ended) < len(handles):
        handle = choose.choice(handles)
        lines = read[handle]
        if lines and choose.random() < 0.1:  # seekdir(3)
            del lines[choose.randrange(len(lines)) + 1 :]
            ended.discard(handle)
        elif choose.random() < 0.02:  # rewinddir(3)
            lines.clear()
            ended.discard(handle)
        more = names_and_offsets(view, handle, lines[-1][1] if lines else 0, 700)
        lines += more
        if not more:
            ended.add(handle)
        file = f"entry-{choose.randrange(6_000):05}"
        if int(file[-5:]) % 7:
            untouched.discard(file)
            try:
                if choose.random() < 0.5:
                    view.unlink(file)
                else:
                    view.rename(file, f"entry-{choose.randrange(6_000):05}-moved")
            except NotFound:
                pass
        view.write(f"entry-{choose.randrange(9_000):05}-made", b"x")
        view.fs.namespace.directory_cache.drop_expired()
    for lines in read.values():
        names = [name for name, _ in lines]
        assert len(names) == len(set(names))
        assert untouched <= set(names)
        assert len({offset for _, offset in lines}) == len(lines)


def test_readers_go_on_in_the_next_worker_and_share_one_listing(tmp_path: Path) -> None:
    store = filled(6_000, 4, bare=False)
    view = View(store, tmp_path, names_bytes=TINY_BYTES)
    view.fs.recovery.begin()
    first, second = view.fs.open_directory(ROOT), view.fs.open_directory(ROOT)
    expected = names_and_offsets(view, first, 0, 10_000)
    got = {first: expected[:1700], second: expected[:4100]}
    other = view.fs.open_directory(ROOT)
    for handle, lines in got.items():
        names_and_offsets(view, handle, 0, len(lines))
    successor = View(store, tmp_path, names_bytes=TINY_BYTES)
    successor.fs.recovery.restore()
    memory = successor.fs.namespace.directory_cache.memory
    for handle in (first, second, other):
        start = got.get(handle, [("", 0)])[-1][1]
        behind = names_and_offsets(successor, handle, start, 10_000)
        assert behind == [line for line in expected if line[1] > start]
        for _, offset in random.Random(1).choices(expected, k=20):  # seekdir(3), also back
            assert (
                names_and_offsets(successor, handle, offset, 1)[:1]
                == [line for line in expected if line[1] > offset][:1]
            )
    # One chunk stays open. hash() decides where it ends, another place in each run: at most 4,096.
    assert memory.used_bytes < 6_000 * OPEN_NAME_BYTES


def test_many_handles_of_a_large_directory_take_little_of_the_journal(tmp_path: Path) -> None:
    """What their readers got is the same names."""
    store = MemoryStore()
    names = 20_000
    for number in range(names):
        store.put(f"entry-of-a-large-directory-{number:08}", b"")
    view = View(store, tmp_path)
    view.fs.recovery.begin()
    for _ in range(12):
        handle = view.fs.open_directory(ROOT)
        offset = 0
        while lines := names_and_offsets(view, handle, offset, 2_000):
            offset = lines[-1][1]
    view.fs.recovery.begin()  # a snapshot
    size = len((tmp_path / "journal").read_bytes().rstrip(b"\0"))
    assert size < names * 20  # main: 12 times 36 bytes a name


def test_names_can_be_made_to_take_less(tmp_path: Path) -> None:
    """What the worker does when memory is short. Nothing is lost but answers."""
    view = View(filled(5_000, 5), tmp_path)
    handle = view.fs.open_directory(ROOT)
    expected = names_and_offsets(view, handle, 0, 10_000)
    memory = view.fs.namespace.directory_cache.memory
    before = memory.used_bytes
    assert view.fs.namespace.shrink(0) < before / 5
    assert names_and_offsets(view, handle, 0, 10_000) == expected
    view.fs.release_directory(handle)
    gc.collect()
    view.fs.namespace.shrink(0)
    assert memory.used_bytes == 0
    assert sorted(view.names()) == sorted(name for name, _ in expected[2:])
    assert view.stat(expected[10][0]).inode


# --- inodes ---------------------------------------------------------------------------------------


def test_only_inodes_that_nobody_uses_are_to_be_forgotten(tmp_path: Path) -> None:
    store = MemoryStore()
    for number in range(400):
        store.put(f"file-{number:03}", b"x")
        store.put(f"dir-{number:03}/inner", b"x")
    view = View(store, tmp_path, read_only=True)
    view.fs.namespace.inodes.most = 200
    asked: set[str] = set()

    def forget(inodes: Sequence[Inode]) -> None:
        asked.update(inode.name for inode in inodes)

    view.fs.tell_kernel(lambda _inode: None, forget)
    handle = view.open("file-000")
    view.fs.release(view.open("file-001"))  # the kernel may have pages of it
    for number in range(110):
        view.inode(f"file-{number:03}")
        view.inode(f"dir-{number:03}")
    assert not asked  # a few more do no harm
    for number in range(110, 250):
        view.inode(f"file-{number:03}")
    assert asked
    view.fs.namespace.shrink(0)
    assert all(name.startswith("file-") for name in asked)
    assert not asked & {"file-000", "file-001"}
    for number in range(250, 400):  # with more than twice as many, also what was read
        view.inode(f"file-{number:03}")
    view.fs.namespace.shrink(0)
    assert "file-001" in asked
    assert "file-000" not in asked
    view.fs.release(handle)
