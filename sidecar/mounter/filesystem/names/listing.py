"""The entries of one directory, loaded page by page and shared by everyone who asks.

A listing has no lifetime of its own: its users compare ``as_of_s`` to one.
"""

from __future__ import annotations

import contextlib
import itertools
import threading
import time
from bisect import bisect_left, bisect_right
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import Executor, Future
from typing import NamedTuple

from sidecar.errors import SidecarError
from sidecar.mounter.filesystem.names.name_memory import NameMemory, OpenNames
from sidecar.mounter.filesystem.names.names import (
    LINK_SUFFIX,
    is_link_key,
    is_probe_key,
    is_spellable,
)
from sidecar.mounter.filesystem.names.own_changes import OwnChanges
from sidecar.mounter.filesystem.names.remotes import (
    REMOTE_DIRECTORY,
    ForgottenObject,
    Listed,
    Remote,
    from_relative_key,
    to_relative_key,
)
from sidecar.mounter.store.interface import ObjectInfo, Page, Store

_Entries = list[tuple[str, Remote]]
_WAIT_FOR_NAME_S = 0.25
_MOST_ADDED = 10_000
"""A listing to which this mount has added so many names is not valid any more."""
NUMBERS = itertools.count(1)
"""Numbers of listings, also of those that another worker made."""


class ListingCost(NamedTuple):
    """The cost of listing a directory.

    Attributes:
        as_of_s: when that was (monotonic).
        duration_s: how long the store took for the loaded pages.
        names: how many names they had.
    """

    as_of_s: float
    duration_s: float
    names: int


class PrefetchedPage(NamedTuple):
    """A page that was requested before it was needed."""

    requested_s: float
    page: Future[Page]


class Listing:
    """One reading of one directory. Safe to use from any thread.

    Pages are loaded on demand and once, however many threads wait for them. Each name has a
    place. Places are in the store's order (a directory sorts as ``name/``), and names are only
    added after them, so a place is a stable directory offset. A name that this mount deleted keeps
    its place, and leaves the listing.

    Attributes:
        number: no other listing of this process has it.
        fully_loaded: no page is missing.
        has_marker: the directory has an object of its own.
        as_of_s: when the last loaded page was requested (monotonic).
        used_s: when names after another one were last asked for (monotonic).
        journalled: how many of its names the journal has.

    Args:
        prefix: the directory's key, ending in ``/``; empty for the root.
        changes: what this mount changed lately.
        hidden: called with (key, reason) for each key that no path shows.
        threads: prefetch pages.
        memory: keeps the names.
        first_page: if it was requested before.
    """

    def __init__(
        self,
        store: Store,
        prefix: str,
        changes: OwnChanges,
        hidden: Callable[[str, str], None],
        threads: Executor,
        memory: NameMemory,
        first_page: PrefetchedPage | None = None,
    ) -> None:
        self._store = store
        self._prefix = prefix
        self._changes = changes
        self._hidden = hidden
        self._threads = threads
        self._memory = memory
        self._loading = threading.Lock()  # held while the store is asked for a page
        self._lock = threading.Lock()  # never is
        self._renames = 0
        self._page_loaded = threading.Condition()
        self._wait_until_s: float | None = None  # None: nobody has waited for a name yet
        self._token: str | None = None
        self._prefetched = first_page
        self._deferred: _Entries = []  # entries that a later page may shadow
        self._last_key = ""
        self._count = 0
        self._chunks = [memory.new(prefix)]
        self._starts = [0]  # the place of each chunk's first name
        self._bounds: list[str] = []  # the highest key up to the end of each chunk but the last
        self._highest_key = ""
        # Names whose key came after higher ones, so that a search would miss them.
        self._strays: dict[str, int] = {}
        self._shown = 0
        self._counts = True
        self._invalidated: set[str] = set()
        self.number = next(NUMBERS)
        self.journalled = 0
        self.fully_loaded = False
        self.has_marker = False
        self.as_of_s = time.monotonic()  # the first page is requested next
        self.used_s = float("-inf")
        self._duration_s = 0.0
        self._last_position = -1

    def __len__(self) -> int:
        """The number of places so far."""
        return self._count

    @property
    def shows_any(self) -> bool:
        """Whether any of the loaded names is still there."""
        return self._shown > 0

    @property
    def cost(self) -> ListingCost:
        """The cost of the pages loaded so far."""
        return ListingCost(self.as_of_s, self._duration_s, len(self))

    def restore(self, lost: Iterable[list[str]]) -> None:
        """Give names the places that they had in a lost listing of the directory.

        Call it before any page is loaded. Other names come after them.

        Args:
            lost: their relative keys, in the order of their places.
        """
        with self._lock:
            for key in itertools.chain.from_iterable(lost):
                self._append_one(from_relative_key(key)[0], key, None)

    # --- pages ---------------------------------------------------------------------------

    def load_until(self, count: int, *, prefetch: bool = False) -> None:
        """Load pages until there are ``count`` names or none is missing.

        Args:
            prefetch: request the next page before it is needed: the caller wants them all.

        Raises what the store raises.
        """
        while not self.fully_loaded and len(self) < count:
            self._load_page(len(self), prefetch=prefetch)

    def load_all(self) -> None:
        """Load every page that is missing. Raises what the store raises."""
        while not self.fully_loaded:
            self._load_page(len(self), prefetch=True)

    def wait_for(self, name: str) -> None:
        """Have the missing pages loaded, and wait a moment for the one that has ``name``.

        The moment begins with the first call. So a directory of few pages is read as a whole,
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
        with contextlib.suppress(SidecarError):  # the caller then asks for its name alone
            self.load_all()

    def _load_page(self, seen: int, *, prefetch: bool) -> None:
        with self._loading:
            if self.fully_loaded or len(self) > seen:
                return  # another thread loaded it while this one waited
            renames = self._renames
            prefetched, self._prefetched = self._prefetched, None
            if prefetched is not None:
                requested_s, page = prefetched.requested_s, prefetched.page.result()
            else:
                requested_s = time.monotonic()
                page = self._store.list_page(self._prefix, self._token)
            self._duration_s += time.monotonic() - requested_s
            is_last = page.next_token is None
            entries = sorted(self._deferred + _entries(page, len(self._prefix)), key=_relative_key)
            end = len(entries) if is_last else _end(entries)
            entries, deferred = entries[:end], entries[end:]
            end_key = None if is_last else entries[-1][0] if entries else ""
            reconciled_s = time.monotonic()
            changed = self._changed(entries, end_key)
            right = self._changes.reconcile(self._prefix, changed, requested_s)
            with self._lock:
                if renames != self._renames:
                    return  # the page is of the key that the directory had before
                right |= self._changes.since(self._prefix, reconciled_s)
                self._deferred = deferred
                self._add_page(entries, right, end_key)
                self._token = page.next_token
                self.fully_loaded = is_last
                if prefetch and not is_last:
                    next_s = time.monotonic()
                    future = self._threads.submit(self._store.list_page, self._prefix, self._token)
                    self._prefetched = PrefetchedPage(next_s, future)
                if self._counts:
                    self.as_of_s = requested_s
        with self._page_loaded:
            self._page_loaded.notify_all()

    def _changed(self, entries: _Entries, end: str | None) -> dict[str, Remote | None]:
        """What the page up to ``end`` has under names that this mount changed; None: nothing."""
        names = self._changes.names(self._prefix)
        within = (name for name in names if _is_within(name, self._last_key, end))
        listed: dict[str, Remote | None] = dict.fromkeys(within)
        if listed:
            for key, remote in entries:
                name = from_relative_key(key)[0]
                if name in listed and (listed[name] is None or remote is REMOTE_DIRECTORY):
                    listed[name] = remote
        return listed

    def _add_page(
        self, entries: _Entries, right: dict[str, Remote | None], end: str | None
    ) -> None:
        """Add the entries, corrected by ``right``: this mount's own changes.

        They are corrected before anybody sees them: a name that was made is never absent.
        """
        if right:
            own: _Entries = []
            for name, found in right.items():
                if not _is_within(name, self._last_key, end):
                    self._apply(name, found)
                elif found is not None:
                    own.append((to_relative_key(name, found, len(self._prefix)), found))
            others = [entry for entry in entries if from_relative_key(entry[0])[0] not in right]
            entries = sorted(others + own, key=_relative_key)
        directories = {key[:-1] for key, remote in entries if not isinstance(remote, ObjectInfo)}
        self._add_entries(entries, directories)

    def _add_entries(self, entries: _Entries, directories: set[str]) -> None:
        """Add entries in the order of their keys. Most are new, and are added together."""
        new: dict[str, Listed | None] = {}
        is_last, last = self._memory.is_last, self._chunks[-1]
        known = self._memory.names(last).listed
        for key, remote in entries:
            if new and key.endswith(LINK_SUFFIX):
                self._append(new, key)  # it is looked for
                new, last = {}, self._chunks[-1]
                known = self._memory.names(last).listed
            name = self._name_of(key, remote, directories)
            if name is None:
                continue
            # The order of keys does not show whether a name is new: names that were made while the
            # listing was fresh were appended.
            if name in known or name in self._strays or (self._bounds and name <= self._bounds[-1]):
                found = self._find(name)
                if found is not None:
                    self._set(found, name, remote)
                    continue
            new[name] = remote
            if is_last(last.count + len(new), name):
                self._append(new, key)
                new, last = {}, self._chunks[-1]
                known = self._memory.names(last).listed
        if entries:
            self._append(new, entries[-1][0])
            self._last_key = entries[-1][0]

    def _name_of(self, key: str, remote: Remote, directories: set[str]) -> str | None:
        """The name of an entry; None if no path shows it."""
        if not key:
            self.has_marker = True
            return None
        if is_probe_key(key):
            return None  # the probe of a sidecar that is starting, or was killed
        is_object = isinstance(remote, ObjectInfo)
        name = key.removesuffix(LINK_SUFFIX) if is_object else key[:-1]
        if not is_spellable(name):
            self._hidden(self._prefix + key, "name")
        elif is_object and (name in directories or self._is_behind_a_file(name, key)):
            self._hidden(self._prefix + key, "shadowed")
        else:
            return name
        return None

    def _is_behind_a_file(self, name: str, key: str) -> bool:
        """Whether ``key`` is a link's and a file, which sorts before it, has its name."""
        if key == name:
            return False
        found = self.get(name)
        if isinstance(found, ForgottenObject):
            return not found.is_link
        return isinstance(found, ObjectInfo) and not is_link_key(found.key)

    # --- chunks --------------------------------------------------------------------------

    def _find(self, name: str) -> tuple[int, Listed | None] | None:
        """The number of the chunk with a place for ``name``, and what has the name."""
        bounds, find = self._bounds, self._memory.find
        if name in self._strays:
            numbers = {self._strays[name]}
        elif not bounds or name > bounds[-1]:
            numbers = {len(bounds)}
        else:  # its key may be a file's, a directory's or a link's
            keys = (name, f"{name}/", name + LINK_SUFFIX)
            numbers = {bisect_left(bounds, key) for key in keys}
        for number in numbers:
            found = find(self._chunks[number], name)
            if found is not None:
                return number, found[0]
        return None

    def _set(self, found: tuple[int, Listed | None], name: str, listed: Listed | None) -> None:
        """Change what has a name that has a place; None: nothing.

        Args:
            found: the result of :meth:`_find`.
        """
        number, known = found
        self._shown += (listed is not None) - (known is not None)
        self._memory.set(self._chunks[number], name, listed)

    def _append(self, listed: dict[str, Listed | None], key: str) -> None:
        """Add places for names that have none.

        Args:
            key: the highest of their keys.
        """
        if not listed:
            return
        bounds = self._bounds
        self._highest_key = max(self._highest_key, key)
        self._shown += sum(known is not None for known in listed.values())
        chunk = self._chunks[-1]
        self._memory.add(chunk, listed)
        self._count += len(listed)
        if self._memory.is_last(
            chunk.count, next(reversed(listed))
        ):  # in an order that is safe for readers without the lock
            self._chunks.append(self._memory.new(self._prefix))
            self._starts.append(self._count)
            bounds.append(self._highest_key)

    def _append_one(self, name: str, key: str, listed: Listed | None) -> None:
        """Add one place, wherever its key belongs."""
        if self._bounds and key <= self._bounds[-1]:
            self._strays[name] = len(self._bounds)
        self._append({name: listed}, key)

    # --- names ---------------------------------------------------------------------------

    def covers(self, name: str) -> bool:
        """Whether the loaded pages say whether ``name`` exists, and what it is."""
        is_passed = self.fully_loaded or f"{name}/" <= self._last_key
        return is_passed and name not in self._invalidated

    def get(self, name: str) -> Listed | None:
        """What has ``name``; None if nothing has it, or no loaded page."""
        found = self._find(name)
        return found[1] if found is not None else None

    def stretch(self, place: int) -> tuple[int, OpenNames]:
        """Names around an existing place: the place of the first, and all of them."""
        number = bisect_right(self._starts, place) - 1
        return self._starts[number], self._memory.names(self._chunks[number])

    def packed_keys(self, place: int = 0) -> Iterator[tuple[int, bytes]]:
        """(place, packed keys of the names from there), from a place or before it to the end."""
        first = bisect_right(self._starts, place) - 1
        for number in range(first, len(self._chunks)):
            if self._chunks[number].count:
                yield self._starts[number], self._memory.packed_keys(self._chunks[number])

    def invalidate(self, name: str) -> None:
        """Distrust this and later pages about ``name``, until :meth:`apply`."""
        with self._lock:
            self._invalidated.add(name)

    def is_invalidated(self, name: str) -> bool:
        """Whether its answer about ``name`` is out of date."""
        return name in self._invalidated

    def apply(self, name: str, remote: Remote | None) -> None:
        """Note that the store now has ``remote`` under ``name``; None: the name is gone."""
        with self._lock:
            self._apply(name, remote)

    def _apply(self, name: str, remote: Remote | None) -> None:
        self._invalidated.discard(name)
        found = self._find(name)
        if found is not None:  # a name that is made again keeps its place
            self._set(found, name, remote)
        elif remote is not None and self.covers(name):
            if len(self._strays) < _MOST_ADDED:
                key = to_relative_key(name, remote, len(self._prefix))
                self._append_one(name, key, remote)
            else:  # a reader of the listing need not see what was made since
                self._counts, self.as_of_s = False, float("-inf")
        # otherwise a later page will bring it

    def next_if_sequential(self, name: str, count: int) -> _Entries:
        """The ``count`` entries behind ``name``, if names are asked for in order.

        They are if ``name`` is at most ``count`` places after the name of the last call;
        else the list is empty.
        """
        self.used_s = time.monotonic()
        with self._lock:
            found = self._find(name)
            if found is None:
                return []
            number = found[0]
            place = self._memory.names(self._chunks[number]).place(name)
            position = self._starts[number] + place
            last, self._last_position = self._last_position, position
            if not last < position <= last + count:
                return []
            following: _Entries = []
            end = min(position + 1 + count, len(self))
            position += 1
            while position < end:
                start, opened = self.stretch(position)
                for other in opened.names[position - start : end - start]:
                    listed = opened.listed[other]
                    if listed is not None and not isinstance(listed, ForgottenObject):
                        following.append((other, listed))
                position = start + len(opened.names)
            return following

    def rename(
        self,
        prefix: str,
        copied: Mapping[str, tuple[ObjectInfo, ObjectInfo]],
    ) -> None:
        """Note that the directory has the key ``prefix`` now, and its objects are copies.

        Names keep their places; missing pages are loaded under the new key.

        Args:
            copied: old key to (the version that was copied, the copy).
        """
        with self._lock:
            self._renames += 1
            self._prefix = prefix
            self._token, self._prefetched, self._last_key = None, None, ""
            self._deferred = []
            self._invalidated.clear()
            rename = self._memory.rename
            self._shown = sum(rename(chunk, prefix, copied) for chunk in self._chunks)

    def __del__(self) -> None:
        self._memory.release(self._chunks)


def _entries(page: Page, skip: int) -> _Entries:
    """What a page has, by relative key: the key without the first ``skip`` characters."""
    entries: _Entries = [(prefix[skip:], REMOTE_DIRECTORY) for prefix in page.prefixes]
    return entries + [(info.key[skip:], info) for info in page.objects]


def _end(entries: _Entries) -> int:
    """How many entries, in order, no later page can shadow."""
    for index, (key, remote) in enumerate(entries):
        if isinstance(remote, ObjectInfo) and f"{key.removesuffix(LINK_SUFFIX)}/" > entries[-1][0]:
            return index  # a directory of this name may still come, and would win
    return len(entries)


def _is_within(name: str, before: str, end: str | None) -> bool:
    return before < f"{name}/" and (end is None or f"{name}/" <= end)


def _relative_key(entry: tuple[str, Remote]) -> str:
    return entry[0]
