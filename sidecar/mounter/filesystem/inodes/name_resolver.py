"""What the store has under one name: from a listing of the directory, or by a request of its own.

This module decides which of the two costs less.
"""

from __future__ import annotations

import time
from typing import NamedTuple

from sidecar.errors import WouldBlock
from sidecar.mounter.filesystem.inodes.directory_cache import DirectoryCache
from sidecar.mounter.filesystem.inodes.inode import Directory
from sidecar.mounter.filesystem.names.listing import Listing
from sidecar.mounter.filesystem.names.names import LINK_SUFFIX, is_link_key
from sidecar.mounter.filesystem.names.remotes import REMOTE_DIRECTORY, ForgottenObject, Remote
from sidecar.mounter.store.interface import Store

RELIST_MISSES = 16
"""After this many names asked for one by one, listing the directory again may be cheaper."""
_NAMES_FOR_ONE = 250
"""Listing this many names costs about as much as asking for one, which is also a request."""
_LOAD_ALL_MISSES = 3
"""After this many names that are not on the first page, the other pages are loaded."""
_COST_LIFETIME_S = 60.0
"""How long after its expiry a listing shows what the next one will cost."""
_NAME_PAGE = 16


class Resolution(NamedTuple):
    """An answer about one name.

    Attributes:
        remote: what the store has; None: nothing has this name.
        fresh_until_s: until when that is valid (monotonic).
    """

    remote: Remote | None
    fresh_until_s: float


class NameResolver:
    """Answers about the names of one mount. Safe to use from any thread.

    Args:
        ttl_s: how long an answer is valid.
    """

    def __init__(self, store: Store, directory_cache: DirectoryCache, ttl_s: float) -> None:
        self._store = store
        self._directory_cache = directory_cache
        self._ttl_s = ttl_s

    def resolve(self, directory: Directory, name: str, *, wait: bool) -> Resolution:
        """What the store has under a name.

        Raises the store's errors, and WouldBlock if the store must be asked and ``wait`` is False.
        """
        now_s = time.monotonic()
        listing = directory.listing
        if listing is not None and listing.as_of_s + self._ttl_s > now_s:
            listed = self._listed(listing, name)
            if listed is not None:
                return listed
        if not wait:
            raise WouldBlock(name)
        with directory.lock:
            listing = directory.listing
            is_fresh = listing is not None and listing.as_of_s + self._ttl_s > now_s
            if not is_fresh and self._is_listing_worthwhile(directory, now_s):
                if listing is None and directory.expired_listing_cost is None:
                    self._expect_directory(directory, name)
                listing, is_fresh = self._directory_cache.relist(directory), True
            elif listing is None or not (is_fresh and listing.covers(name)):
                directory.misses += 1
            load_all = directory.misses >= _LOAD_ALL_MISSES
        if listing is not None and is_fresh:
            if not (len(listing) or listing.fully_loaded):
                listing.load_until(1)
            if load_all and not (listing.covers(name) or listing.is_invalidated(name)):
                listing.wait_for(name)
            listed = self._listed(listing, name)
            if listed is not None:
                return listed
        return self._ask(directory, listing, name)

    def _listed(self, listing: Listing, name: str) -> Resolution | None:
        """A listing's answer about a name; None if it has none."""
        if not listing.covers(name):
            return None
        remote = listing.get(name)
        if isinstance(remote, ForgottenObject):
            return None
        return Resolution(remote, listing.as_of_s + self._ttl_s)

    def _ask(self, directory: Directory, listing: Listing | None, name: str) -> Resolution:
        requested_s = time.monotonic()
        remote = _find_remote(self._store, directory.key, name)
        with directory.lock:
            directory.misses_took_s += time.monotonic() - requested_s
        changes = self._directory_cache.changes
        right = changes.reconcile(directory.key, {name: remote}, requested_s)
        remote = right.get(name, remote)
        if listing is not None and listing.is_invalidated(name):
            listing.apply(name, remote)
        return Resolution(remote, requested_s + self._ttl_s)

    def _expect_directory(self, directory: Directory, name: str) -> None:
        """Expect a path to go on below ``name``, if that looks like a directory."""
        if "." not in name:
            self._directory_cache.expect(directory, name)

    def _is_listing_worthwhile(self, directory: Directory, now_s: float) -> bool:
        """Whether to list a directory that has no fresh listing.

        A listing answers for ``ttl_s``, and then saves the cost of names asked for one by one. For
        a small directory it costs no more than the first of them. For a large one the store may
        take longer than ``ttl_s``, above all if the directory is being written to.
        """
        listing = directory.listing
        cost = listing.cost if listing is not None else directory.expired_listing_cost
        if cost is None:
            return True  # the directory was never listed
        is_quick = 2 * cost.duration_s <= self._ttl_s
        if is_quick and directory.misses >= cost.names // _NAMES_FOR_ONE:
            return True
        if directory.misses < RELIST_MISSES:
            return False
        since_s = now_s - (cost.as_of_s + self._ttl_s)
        if since_s > _COST_LIFETIME_S:
            return True
        return cost.duration_s * since_s <= directory.misses_took_s * self._ttl_s


def _find_remote(store: Store, prefix: str, name: str) -> Remote | None:
    """Ask the store for one name below ``prefix``; None: nothing has it.

    One LIST of the keys that begin with the name finds the object, the directory, the link or
    the absence at once; only a name that many others begin with needs more requests.
    """
    key = prefix + name
    page = store.list_page(key, limit=_NAME_PAGE)
    link_key = key + LINK_SUFFIX
    objects = {info.key: info for info in page.objects}
    if f"{key}/" in page.prefixes:
        return REMOTE_DIRECTORY
    last = max(
        page.objects[-1].key if page.objects else "", page.prefixes[-1] if page.prefixes else ""
    )
    if page.next_token is not None and last < f"{key}/":
        below = store.list_page(f"{key}/", delimiter="", limit=1)
        if below.objects:
            return REMOTE_DIRECTORY
        if last < link_key:
            more = store.list_page(link_key, limit=1)
            objects.update((info.key, info) for info in more.objects)
    found = None if is_link_key(key) else objects.get(key)
    return found or objects.get(link_key)
