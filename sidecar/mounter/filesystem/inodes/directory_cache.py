"""What is remembered of the store's directories: listings, absent names, own changes.

Keeps the first two with each Directory, and drops what has expired. Binds no name to an inode.
"""

from __future__ import annotations

import contextlib
import logging
import threading
import time
import weakref
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Executor, Future
from typing import Protocol

from sidecar.errors import SidecarError
from sidecar.mounter.filesystem.inodes.inode import Directory, Inode
from sidecar.mounter.filesystem.inodes.inode_table import InodeTable
from sidecar.mounter.filesystem.inodes.subtree_locks import is_at_or_below
from sidecar.mounter.filesystem.names.listing import Listing, PrefetchedPage
from sidecar.mounter.filesystem.names.name_memory import NameMemory
from sidecar.mounter.filesystem.names.own_changes import REMEMBERED_S, OwnChanges
from sidecar.mounter.filesystem.names.remotes import Remote
from sidecar.mounter.store.interface import ObjectInfo, Page, Store

log = logging.getLogger(__name__)

_SEQUENTIAL_USE_S = 10.0
"""A listing whose names are asked for in order is kept for as long after each, though expired."""
_MAX_LOGGED_KEYS = 10_000
_MOST_EXPECTED = 8
_EXPECTED_S = 10.0
"""Who comes to a directory later than that after its name was asked for lists it himself."""


class Reading(Protocol):
    """Who reads a directory, and sees one listing of it all the while.

    Attributes:
        listing: None while nothing is loaded.
    """

    directory: Directory
    listing: Listing | None


class _ExpectedPages:
    """First pages of what may be directories, few of them. Safe to use from any thread."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._pages: dict[str, PrefetchedPage] = {}

    def add(self, key: str, request: Callable[[], Future[Page]]) -> None:
        """Request a directory's first page, unless that was done."""
        with self._lock:
            if key not in self._pages:
                while len(self._pages) >= _MOST_EXPECTED:
                    del self._pages[next(iter(self._pages))]
                self._pages[key] = PrefetchedPage(time.monotonic(), request())

    def take(self, key: str) -> PrefetchedPage | None:
        """The page of a directory, which may be on its way."""
        with self._lock:
            return self._pages.pop(key, None)

    def drop_before(self, moment_s: float) -> None:
        """Forget what was requested before ``moment_s`` (monotonic)."""
        with self._lock:
            pages = self._pages.items()
            self._pages = {key: page for key, page in pages if page.requested_s >= moment_s}


class DirectoryCache:
    """What is remembered of the directories of one mount. Safe to use from any thread.

    Args:
        ttl_s: how long a listing counts.
        hidden: counts keys that no path shows, by reason.
        threads: load pages before somebody needs them.
        budget_bytes: what listings may take.

    Attributes:
        memory: where the names of listings are.
        changes: what this mount changed lately.
    """

    def __init__(
        self,
        store: Store,
        inodes: InodeTable,
        ttl_s: float,
        hidden: Callable[[str], None],
        threads: Executor,
        budget_bytes: int,
    ) -> None:
        self._store = store
        self._inodes = inodes
        self._ttl_s = ttl_s
        self._hidden = hidden
        self._threads = threads
        self.memory = NameMemory(budget_bytes)
        self.changes = OwnChanges(store, threads)
        self._expected = _ExpectedPages()
        self._logged_keys: set[str] = set()
        self._logged_keys_lock = threading.Lock()
        self._remembered: set[Directory] = set()  # with a listing or absent names
        self._readings: weakref.WeakSet[Reading] = weakref.WeakSet()

    # --- listings ------------------------------------------------------------------------

    def fresh_listing(self, directory: Directory) -> Listing:
        """The directory's listing; a new one if it has none that counts."""
        with directory.lock:
            listing = directory.listing
            if listing is None or listing.as_of_s + self._ttl_s <= time.monotonic():
                listing = self.relist(directory)
            return listing

    def relist(self, directory: Directory) -> Listing:
        """A new listing in place of the directory's, with no page loaded yet.

        The caller holds the directory's lock.
        """
        # A page that was requested before anybody came counts no longer than any other.
        self._expected.drop_before(time.monotonic() - min(_EXPECTED_S, self._ttl_s))
        with self._inodes.lock:  # no rename makes the key another one in between
            listing = directory.listing = self.unshared_listing(directory)
            self._remembered.add(directory)
            directory.misses = 0
            directory.misses_took_s = 0.0
        return listing

    def unshared_listing(self, directory: Directory) -> Listing:
        """A listing with no page loaded yet, and not the directory's.

        The caller holds the inodes' lock until the directory or a reading refers to it.
        """
        return Listing(
            self._store,
            directory.key,
            self.changes,
            self._hide,
            self._threads,
            self.memory,
            self._expected.take(directory.key),
        )

    def expect(self, directory: Directory, name: str) -> None:
        """A name may be that of a directory: request its first page, before anybody knows.

        Who opens a path below a directory that was never listed waits for one round trip less.
        """
        key = f"{directory.key}{name}/"
        with contextlib.suppress(RuntimeError):  # a limit of processes: it is listed in its turn
            self._expected.add(key, lambda: self._threads.submit(self._store.list_page, key))

    def prefetch(self, directory: Directory) -> None:
        """Load the first page of the directory's listing, in a thread."""
        self._threads.submit(self._load_first_page, directory)

    def _load_first_page(self, directory: Directory) -> None:
        with contextlib.suppress(SidecarError):  # who reads the directory will be told
            self.fresh_listing(directory).load_until(1)

    def add_reading(self, reading: Reading) -> None:
        """Let a reading's listing follow renames of directories, for as long as it lives."""
        with self._inodes.lock:
            self._readings.add(reading)

    # --- names ---------------------------------------------------------------------------

    def apply_change(self, directory: Directory, name: str, remote: Remote | None) -> None:
        """This mount made ``remote`` of a name in the store; None: it removed the name."""
        directory.negative.discard(name)
        self.changes.add(directory.key, name, remote)
        self._expected.take(f"{directory.key}{name}/")
        listing = directory.listing
        if listing is not None:
            listing.apply(name, remote)

    def add_absent(self, directory: Directory, name: str, until_s: float) -> None:
        """Nothing has this name, which counts until ``until_s`` (monotonic)."""
        directory.negative.add(name, until_s)
        self._remembered.add(directory)

    def invalidate(self, directory: Directory, name: str) -> None:
        """What listings say of a name is out of date. The caller holds the inodes' lock."""
        listings = {reading.listing for reading in self._readings if reading.directory is directory}
        for listing in listings | {directory.listing}:
            if listing is not None:
                listing.invalidate(name)

    def rename(
        self,
        renamed: Directory,
        old: str,
        below: Sequence[Inode],
        copied: Mapping[str, tuple[ObjectInfo, ObjectInfo]],
    ) -> None:
        """A directory has its new name. The caller holds the inodes' lock.

        Args:
            old: its key before.
            below: the directory itself, and all inodes below it.
            copied: old key to (the version that was copied, the copy).
        """
        self._expected.drop_before(time.monotonic())
        self.changes.rename(old, renamed.key, copied)
        directories = [inode for inode in below if isinstance(inode, Directory)]
        for directory in directories:
            directory.negative.clear()
        listings = {directory.listing: directory for directory in directories}
        listings |= {reading.listing: reading.directory for reading in self._readings}
        for listing, directory in listings.items():
            if listing is not None and is_at_or_below(directory, renamed):
                listing.rename(directory.key, copied)

    # --- expiry --------------------------------------------------------------------------

    def drop_expired(self) -> None:
        """Let go of what no longer counts, also where nobody asks again.

        Every second or so. Who was given a listing a moment ago still has all of it.
        """
        now_s = time.monotonic()
        self._expected.drop_before(now_s - _EXPECTED_S)
        self.changes.drop_before(now_s - REMEMBERED_S)
        self._drop_all_expired(now_s)
        self.memory.tidy()
        if self.memory.used_bytes > self.memory.budget_bytes:
            self.shrink(self.memory.budget_bytes)

    def shrink(self, target_bytes: int) -> int:
        """Let listings take about ``target_bytes`` or less. Returns what they take then.

        Names that are being read stay, at some 5 to 20 bytes each; everything else can be asked
        for again.
        """
        self.memory.shrink(target_bytes)
        if self.memory.used_bytes > target_bytes:
            self._drop_unread()
            self.memory.shrink(target_bytes)
        return self.memory.used_bytes

    def _drop_unread(self) -> None:
        """Let go of every listing that nobody reads, whether it counts or not."""
        with self._inodes.lock:
            being_read = {reading.listing for reading in self._readings}
            for directory in list(self._remembered):
                listing = directory.listing
                if listing is not None and listing not in being_read:
                    directory.expired_listing_cost = listing.cost
                    directory.listing = None

    def _drop_all_expired(self, now_s: float) -> None:
        with self._inodes.lock:
            being_read = {reading.listing for reading in self._readings}
            # Kept until the lock is free: to free them takes its time.
            expired = [
                self._drop_expired(directory, now_s, being_read)
                for directory in list(self._remembered)
            ]
        expired.clear()

    def _drop_expired(
        self, directory: Directory, now_s: float, being_read: set[Listing | None]
    ) -> Listing | None:
        """The listing that the directory no longer has; None if it keeps its own."""
        listing, expired = directory.listing, None
        if listing is not None and len(listing) and listing not in being_read:
            needed_until_s = max(listing.as_of_s + self._ttl_s, listing.used_s + _SEQUENTIAL_USE_S)
            if needed_until_s <= now_s:
                directory.listing, expired = None, listing
                directory.expired_listing_cost = listing.cost
        directory.negative.drop_expired(now_s)
        is_listed = directory.listing is not None and len(directory.listing)
        if not (is_listed or directory.negative):
            self._remembered.discard(directory)
        return expired

    def _hide(self, key: str, reason: str) -> None:
        self._hidden(reason)
        with self._logged_keys_lock:
            if key in self._logged_keys:
                return
            if len(self._logged_keys) < _MAX_LOGGED_KEYS:
                self._logged_keys.add(key)
        log.warning("key left out: %r (%s)", key, reason)
