"""The entries of one directory, loaded page by page and shared by everyone who asks.

Knows no inodes. It is never out of date by itself: who asks compares ``as_of_s`` to a lifetime.
"""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Executor, Future
from typing import NamedTuple

from sidecar.errors import SidecarError
from sidecar.mounter.filesystem.names import LINK_SUFFIX, is_link_key, is_probe_key, is_spellable
from sidecar.mounter.store.interface import ObjectInfo, Page, Store

_WAIT_FOR_NAME_S = 0.25
_FREED_TOGETHER = 5000


class RemoteDirectory:
    """What a listing says of a directory: that there are keys below it, and no more."""

    __slots__ = ()


REMOTE_DIRECTORY = RemoteDirectory()

Remote = ObjectInfo | RemoteDirectory
"""What the store has under a name: an object (a file's or a link's), or a directory.

``Remote | None`` is an answer about one name; None: nothing has this name.
"""


class RecentChanges:
    """What this mount changed in one directory lately. Safe to use from any thread.

    A LIST that was requested before a change ended may or may not show it; the change wins.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._by_name: dict[str, tuple[float, Remote | None]] = {}

    def add(self, name: str, remote: Remote | None) -> None:
        """The store now has ``remote`` under ``name``; None: the name is gone."""
        with self._lock:
            self._by_name[name] = (time.monotonic(), remote)

    def since(self, moment_s: float) -> dict[str, Remote | None]:
        """The changes that ended after ``moment_s`` (monotonic), by name."""
        if not self._by_name:
            return {}
        with self._lock:
            return {
                name: remote
                for name, (ended_s, remote) in self._by_name.items()
                if ended_s >= moment_s
            }

    def __bool__(self) -> bool:
        """Whether anything is remembered."""
        return bool(self._by_name)

    def drop_before(self, moment_s: float) -> None:
        """Forget the changes that ended before ``moment_s`` (monotonic)."""
        with self._lock:
            self._by_name = {
                name: change for name, change in self._by_name.items() if change[0] >= moment_s
            }


class ListingCost(NamedTuple):
    """What it took to list a directory.

    Attributes:
        as_of_s: when that was (monotonic).
        duration_s: how long the store took for the pages that were loaded.
    """

    as_of_s: float
    duration_s: float


class _PrefetchedPage(NamedTuple):
    """A page that was requested before anybody needs it."""

    requested_s: float
    page: Future[Page]


class Listing:
    """One reading of one directory. Safe to use from any thread.

    Pages are loaded on demand and once, however many threads wait for them. ``names`` is in
    the store's order (a directory sorts as ``name/``) and only grows, so an index into it is
    a stable directory offset. A name that this mount deleted stays in ``names`` and leaves
    ``entries``.

    Attributes:
        fully_loaded: no page is missing.
        has_marker: the directory has an object of its own.
        as_of_s: when the page that was loaded last was requested (monotonic).
        used_s: when the names behind another one were last asked for (monotonic).

    Args:
        prefix: the directory's key, ending in ``/``; empty for the root.
        hidden: called with (key, reason) for each key that no path shows.
        threads: prefetch pages.
        returned: names that were returned from a lost listing of the same directory: they keep
            their places, and other names come behind them.
    """

    def __init__(
        self,
        store: Store,
        prefix: str,
        changes: RecentChanges,
        hidden: Callable[[str, str], None],
        threads: Executor,
        returned: Sequence[str] = (),
    ) -> None:
        self._store = store
        self._prefix = prefix
        self._changes = changes
        self._hidden = hidden
        self._threads = threads
        self._lock = threading.Lock()
        self._page_loaded = threading.Condition()
        self._wait_until_s: float | None = None  # None: nobody has waited for a name yet
        self._token: str | None = None
        self._prefetched: _PrefetchedPage | None = None
        self._deferred: list[tuple[str, Remote]] = []  # entries that a later page may shadow
        self._last_key = ""
        self.names = list(returned)
        self.entries: dict[str, Remote] = {}
        self._vacant = set(self.names)  # in `names` and not in `entries`
        self._invalidated: set[str] = set()
        self.fully_loaded = False
        self.has_marker = False
        self.as_of_s = time.monotonic()  # the first page is requested next
        self.used_s = float("-inf")
        self._duration_s = 0.0
        self._positions: dict[str, int] = {}
        self._last_position = -1

    @property
    def cost(self) -> ListingCost:
        """What the pages loaded so far took."""
        return ListingCost(self.as_of_s, self._duration_s)

    # --- pages ---------------------------------------------------------------------------

    def load_until(self, count: int, *, prefetch: bool = False) -> None:
        """Load pages until there are ``count`` names or none is missing.

        Args:
            prefetch: request the next page before it is asked for: the caller wants them all.

        Raises what the store raises.
        """
        while not self.fully_loaded and len(self.names) < count:
            self._load_page(len(self.names), prefetch=prefetch)

    def load_all(self) -> None:
        """Load every page that is missing. Raises what the store raises."""
        while not self.fully_loaded:
            self._load_page(len(self.names), prefetch=True)

    def wait_for(self, name: str) -> None:
        """Have the missing pages loaded, and wait a moment for the one that has ``name``.

        The moment begins with the first call: so a directory of few pages is read as a whole,
        and nobody waits for one of thousands. Ask :meth:`covers` afterwards.
        """
        with self._page_loaded:
            now_s = time.monotonic()
            if self._wait_until_s is None:
                self._wait_until_s = now_s + _WAIT_FOR_NAME_S
                threading.Thread(target=self._load_rest, name="listing", daemon=True).start()
            left_s = max(0.0, self._wait_until_s - now_s)
            self._page_loaded.wait_for(lambda: self.covers(name), left_s)

    def _load_rest(self) -> None:
        with contextlib.suppress(SidecarError):  # who waits for a name asks for it alone then
            self.load_all()

    def _load_page(self, seen: int, *, prefetch: bool) -> None:
        with self._lock:
            if self.fully_loaded or len(self.names) > seen:
                return  # another thread loaded it while this one waited
            if self._prefetched is not None:
                (requested_s, future), self._prefetched = self._prefetched, None
                page = future.result()
            else:
                requested_s = time.monotonic()
                page = self._store.list_page(self._prefix, self._token)
            self._duration_s += time.monotonic() - requested_s
            self._add_page(page)
            self._token = page.next_token
            self.fully_loaded = page.next_token is None
            if prefetch and not self.fully_loaded:
                next_s = time.monotonic()
                future = self._threads.submit(self._store.list_page, self._prefix, self._token)
                self._prefetched = _PrefetchedPage(next_s, future)
            for name, remote in self._changes.since(requested_s).items():
                self._apply(name, remote)
            self.as_of_s = requested_s
        with self._page_loaded:
            self._page_loaded.notify_all()

    def _add_page(self, page: Page) -> None:
        skip = len(self._prefix)
        entries: list[tuple[str, Remote]] = self._deferred
        entries += [(prefix[skip:], REMOTE_DIRECTORY) for prefix in page.prefixes]
        entries += [(info.key[skip:], info) for info in page.objects]
        entries.sort(key=_relative_key)
        directories = {key[:-1] for key, remote in entries if not isinstance(remote, ObjectInfo)}
        end = len(entries)
        if page.next_token is not None and entries:
            last = entries[-1][0]
            for index, (key, remote) in enumerate(entries):
                is_object = isinstance(remote, ObjectInfo)
                if is_object and f"{key.removesuffix(LINK_SUFFIX)}/" > last:
                    end = index  # a directory of this name may still come, and would win
                    break
        self._deferred = entries[end:]
        for key, remote in entries[:end]:
            self._add_entry(key, remote, directories)
            self._last_key = key

    def _add_entry(self, key: str, remote: Remote, directories: set[str]) -> None:
        if not key:
            self.has_marker = True
            return
        if is_probe_key(key):
            return  # of a sidecar that starts just now, or that did not come to remove it
        is_object = isinstance(remote, ObjectInfo)
        name = key.removesuffix(LINK_SUFFIX) if is_object else key[:-1]
        if not is_spellable(name):
            self._hidden(self._prefix + key, "name")
        elif is_object and (name in directories or self._is_behind_a_file(name, key)):
            self._hidden(self._prefix + key, "shadowed")
        else:
            # The order of keys does not tell whether a name is new: what was made while the
            # listing was fresh was appended.
            if name not in self.entries and name not in self._vacant:
                self.names.append(name)
            self._vacant.discard(name)
            self.entries[name] = remote

    def _is_behind_a_file(self, name: str, key: str) -> bool:
        """Whether ``key`` is a link's and a file has its name, which sorts before it."""
        if key == name:
            return False
        found = self.entries.get(name)
        return isinstance(found, ObjectInfo) and not is_link_key(found.key)

    # --- names ---------------------------------------------------------------------------

    def covers(self, name: str) -> bool:
        """Whether the pages loaded so far say whether ``name`` exists, and what it is."""
        is_passed = self.fully_loaded or f"{name}/" <= self._last_key
        return is_passed and name not in self._invalidated

    def invalidate(self, name: str) -> None:
        """What this or a page to come says of ``name`` is out of date, until :meth:`apply`."""
        with self._lock:
            self._invalidated.add(name)

    def is_invalidated(self, name: str) -> bool:
        """Whether what it says of ``name`` is out of date."""
        return name in self._invalidated

    def apply(self, name: str, remote: Remote | None) -> None:
        """The store now has ``remote`` under ``name``; None: the name is gone."""
        with self._lock:
            self._apply(name, remote)

    def _apply(self, name: str, remote: Remote | None) -> None:
        self._invalidated.discard(name)
        if remote is None:
            if name in self.entries:
                del self.entries[name]
                self._vacant.add(name)
        elif name in self.entries:
            self.entries[name] = remote
        elif name in self._vacant:
            self._vacant.remove(name)
            self.entries[name] = remote  # made again: where it was, not a second time
        elif self.covers(name):
            self.entries[name] = remote
            self.names.append(name)
        # else a page still to come will bring it

    def next_if_sequential(self, name: str, count: int) -> list[tuple[str, Remote]]:
        """The ``count`` entries behind ``name``, if names are asked for in order.

        They are if ``name`` is at most ``count`` places behind the name of the last call;
        else the list is empty.
        """
        self.used_s = time.monotonic()
        with self._lock:
            while len(self._positions) < len(self.names):
                self._positions[self.names[len(self._positions)]] = len(self._positions)
            position = self._positions.get(name)
            if position is None:
                return []
            last, self._last_position = self._last_position, position
            if not last < position <= last + count:
                return []
            names = self.names[position + 1 : position + 1 + count]
            return [(n, self.entries[n]) for n in names if n in self.entries]

    def rename(
        self,
        prefix: str,
        changes: RecentChanges,
        copied: Mapping[str, tuple[ObjectInfo, ObjectInfo]],
    ) -> None:
        """The directory has the key ``prefix`` now, and its objects are copies.

        Names keep their places; pages that are missing are loaded under the new key.

        Args:
            changes: of the directory, from now on.
            copied: old key to (the version that was copied, the copy).
        """
        with self._lock:
            self._prefix = prefix
            self._changes = changes
            self._token, self._prefetched, self._last_key = None, None, ""
            self._deferred.clear()
            for name, remote in list(self.entries.items()):
                if isinstance(remote, ObjectInfo):
                    pair = copied.get(remote.key)
                    self._apply(name, pair[1] if pair is not None else None)

    def __del__(self) -> None:
        """Free the names bit by bit.

        To free a million at once stops every thread of the process for a second.
        """
        while self.names or self.entries or self._positions:
            del self.names[-_FREED_TOGETHER:]
            for _ in range(_FREED_TOGETHER):
                if self.entries:
                    self.entries.popitem()
                if self._positions:
                    self._positions.popitem()
            time.sleep(0)


def _relative_key(entry: tuple[str, Remote]) -> str:
    return entry[0]
