"""What is remembered of the store's directories: listings, absent names, own changes.

Each Directory has its listing and absent names. Those that have expired are dropped here.
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
"""How long an expired listing is kept after each name, if names are asked for in order."""
_MAX_LOGGED_KEYS = 10_000
_MOST_EXPECTED = 8
_EXPECTED_S = 10.0
"""How long the first page that was requested with a directory's name is kept."""


class Reading(Protocol):
    """A reading of a directory, which uses one listing all the while.

    Attributes:
        listing: None while nothing is loaded.
    """

    directory: Directory
    listing: Listing | None


class _ExpectedPages:
    """First pages of names that may be directories, a few. Safe to use from any thread."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._pages: dict[str, PrefetchedPage] = {}

    def add(self, key: str, request: Callable[[], Future[Page]]) -> None:
        """Request a directory's first page, unless that was done already."""
        with self._lock:
            if key not in self._pages:
                while len(self._pages) >= _MOST_EXPECTED:
                    del self._pages[next(iter(self._pages))]
                self._pages[key] = PrefetchedPage(time.monotonic(), request())

    def take(self, key: str) -> PrefetchedPage | None:
        """The page of a directory, which may still be on its way."""
        with self._lock:
            return self._pages.pop(key, None)

    def drop_before(self, moment_s: float) -> None:
        """Forget pages that were requested before ``moment_s`` (monotonic)."""
        with self._lock:
            pages = self._pages.items()
            self._pages = {key: page for key, page in pages if page.requested_s >= moment_s}


class DirectoryCache:
    """What is remembered of one mount's directories. Safe to use from any thread.

    Args:
        ttl_s: how long a listing is valid.
        hidden: counts keys that no path shows, by reason.
        threads: load pages before they are needed.
        budget_bytes: memory for listings.

    Attributes:
        memory: keeps the names of listings.
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
        self._remembered: set[Directory] = set()  # with a listing or absent names
        self._readings: weakref.WeakSet[Reading] = weakref.WeakSet()

    # --- listings ------------------------------------------------------------------------

    def fresh_listing(self, directory: Directory) -> Listing:
        """The directory's listing; a new one if it has no valid one."""
        with directory.lock:
            listing = directory.listing
            if listing is None or listing.as_of_s + self._ttl_s <= time.monotonic():
                listing = self.relist(directory)
            return listing

    def relist(self, directory: Directory) -> Listing:
        """A new listing in place of the directory's, with no page loaded yet.

        The caller holds the directory's lock.
        """
        # A page that was requested earlier must not be older than any other may be.
        self._expected.drop_before(time.monotonic() - min(_EXPECTED_S, self._ttl_s))
        with self._inodes.lock:  # so that no rename gives the directory another key meanwhile
            listing = directory.listing = self.unshared_listing(directory)
            self._remembered.add(directory)
            directory.misses = 0
            directory.misses_took_s = 0.0
        return listing

    def unshared_listing(self, directory: Directory) -> Listing:
        """A listing with no page loaded yet, which is not the directory's.

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
        """Request the first page of a name that may be a directory's, before that is known.

        A program that opens a path in a directory that was never listed waits one round trip less.
        """
        key = f"{directory.key}{name}/"
        with contextlib.suppress(RuntimeError):  # no thread can start: it is listed later
            self._expected.add(key, lambda: self._threads.submit(self._store.list_page, key))

    def prefetch(self, directory: Directory) -> None:
        """Load the first page of the directory's listing, in a thread."""
        self._threads.submit(self._load_first_page, directory)

    def _load_first_page(self, directory: Directory) -> None:
        with contextlib.suppress(SidecarError):  # reading the directory raises it again
            self.fresh_listing(directory).load_until(1)

    def add_reading(self, reading: Reading) -> None:
        """Let a reading's listing follow renames of directories, for as long as it lives."""
        with self._inodes.lock:
            self._readings.add(reading)

    # --- names ---------------------------------------------------------------------------

    def apply_change(self, directory: Directory, name: str, remote: Remote | None) -> None:
        """Note that this mount made ``remote`` in the store under a name; None: removed it."""
        directory.negative.discard(name)
        self.changes.add(directory.key, name, remote)
        self._expected.take(f"{directory.key}{name}/")
        listing = directory.listing
        if listing is not None:
            listing.apply(name, remote)

    def add_absent(self, directory: Directory, name: str, until_s: float) -> None:
        """Note that nothing has this name, until ``until_s`` (monotonic)."""
        directory.negative.add(name, until_s)
        self._remembered.add(directory)

    def invalidate(self, directory: Directory, name: str) -> None:
        """Drop what listings say about a name. The caller holds the inodes' lock."""
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
        """Note that a directory has a new name. The caller holds the inodes' lock.

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
        """Drop everything that has expired, even if nobody asks again.

        Called about every second. A caller that has just got a listing still has all of it.
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
        """Drop every listing that nobody reads, whether it is valid or not."""
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
            # Kept until the lock is free, since freeing them takes time.
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
        if key in self._logged_keys:  # two threads may log one key: that does no harm
            return
        if len(self._logged_keys) < _MAX_LOGGED_KEYS:
            self._logged_keys.add(key)
        log.warning("key left out: %r (%s)", key, reason)
