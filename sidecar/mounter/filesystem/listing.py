"""The entries of one directory, fetched page by page and shared by everyone who asks."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

from sidecar.mounter.filesystem.names import is_spellable
from sidecar.mounter.store.base import ObjectInfo, Page, Store

HiddenCallback = Callable[[str, str], None]

Remote = ObjectInfo | None
"""What the store has under a name: an object, or None for a directory."""


class Changes:
    """What this mount changed in one directory, for listings that were asked for before.

    A LIST that began before a change ended may or may not show it; the change wins.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._made: dict[str, tuple[float, bool, Remote]] = {}

    def made(self, name: str, exists: bool, remote: Remote) -> None:
        """``name`` now is ``remote`` in the store, or is gone (``exists`` false)."""
        with self._lock:
            self._made[name] = (time.monotonic(), exists, remote)

    def since(self, moment_s: float) -> dict[str, tuple[bool, Remote]]:
        """The changes that ended after ``moment_s`` (monotonic); older ones may be dropped."""
        if not self._made:
            return {}
        with self._lock:
            return {
                name: (exists, remote)
                for name, (ended, exists, remote) in self._made.items()
                if ended >= moment_s
            }

    def forget_before(self, moment_s: float) -> None:
        """Drop changes that no listing still under way can have missed."""
        with self._lock:
            self._made = {n: made for n, made in self._made.items() if made[0] >= moment_s}


class Listing:
    """One reading of one directory.

    Pages are loaded on demand and once, however many threads wait for them. ``names`` only
    grows, so an index into it is a stable directory offset; a name that this mount deleted
    stays in ``names`` and leaves ``entries``.

    Args:
        prefix: the directory's key, ending in ``/``; empty for the root.
        hidden: called with (name, reason) for each key that no path shows.
    """

    def __init__(
        self, store: Store, prefix: str, changes: Changes, hidden: HiddenCallback
    ) -> None:
        self._store = store
        self._prefix = prefix
        self._changes = changes
        self._hidden = hidden
        self._lock = threading.Lock()
        self._token: str | None = None
        self._held: list[ObjectInfo] = []
        self._last_key = ""
        self.names: list[str] = []
        self.entries: dict[str, Remote] = {}
        self.complete = False
        self.has_marker = False
        self.loaded_s = float("-inf")

    def load_until(self, count: int) -> None:
        """Load pages until there are ``count`` names or the listing is complete."""
        while not self.complete and len(self.names) < count:
            self._load_page(len(self.names))

    def load_all(self) -> None:
        """Load every page that is missing."""
        while not self.complete:
            self._load_page(len(self.names))

    def covers(self, name: str) -> bool:
        """Whether the pages loaded so far say all there is to say about ``name``."""
        return self.complete or f"{self._prefix}{name}/" <= self._last_key

    def apply(self, name: str, exists: bool, remote: Remote) -> None:
        """A change through this mount that ended in the store."""
        with self._lock:
            self._apply(name, exists, remote)

    def _apply(self, name: str, exists: bool, remote: Remote) -> None:
        if not exists:
            self.entries.pop(name, None)
            return
        if name not in self.entries:
            self.names.append(name)
        self.entries[name] = remote

    def _load_page(self, seen: int) -> None:
        with self._lock:
            if self.complete or len(self.names) > seen:
                return  # another thread loaded it while this one waited
            asked_s = time.monotonic()
            page = self._store.list_page(self._prefix, self._token)
            self._take(page)
            for name, (exists, remote) in self._changes.since(asked_s).items():
                self._apply(name, exists, remote)
            self._token = page.next_token
            self.complete = page.next_token is None
            self.loaded_s = time.monotonic()

    def _take(self, page: Page) -> None:
        skip = len(self._prefix)
        last = max(
            page.objects[-1].key if page.objects else "",
            page.prefixes[-1] if page.prefixes else "",
            self._last_key,
        )
        final = page.next_token is None
        for prefix in page.prefixes:
            name = prefix[skip:-1]
            if not is_spellable(name):
                self._hidden(prefix, "name")
            elif name not in self.entries:
                self.names.append(name)
                self.entries[name] = None
        objects = self._held + page.objects
        self._held = []
        for info in objects:
            name = info.key[skip:]
            if not name:
                self.has_marker = True
            elif not final and f"{info.key}/" > last:
                # A directory of the same name may still come, and would win.
                self._held.append(info)
            elif not is_spellable(name):
                self._hidden(info.key, "name")
            elif name in self.entries:
                if self.entries[name] is None:
                    self._hidden(info.key, "shadowed")
            else:
                self.names.append(name)
                self.entries[name] = info
        self._last_key = last


def find_remote(store: Store, prefix: str, name: str) -> tuple[bool, Remote]:
    """Ask the store for one name: (exists, what).

    One LIST of the keys that begin with the name answers for the object, the directory and
    the absence at once; only a name that many others begin with needs a second request.
    """
    key = prefix + name
    page = store.list_page(key, limit=_NAME_PAGE)
    found: ObjectInfo | None = None
    for info in page.objects:
        if info.key == key:
            found = info
    if f"{key}/" in page.prefixes:
        return True, None
    last = max(
        page.objects[-1].key if page.objects else "", page.prefixes[-1] if page.prefixes else ""
    )
    if page.next_token is not None and last < f"{key}/":
        below = store.list_page(f"{key}/", delimiter="", limit=1)
        if below.objects:
            return True, None
    return found is not None, found


_NAME_PAGE = 16
