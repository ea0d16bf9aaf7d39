"""The entries of one directory, fetched page by page and shared by everyone who asks."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Executor, Future

from sidecar.errors import SidecarError
from sidecar.mounter.filesystem.names import LINK_SUFFIX, is_link_key, is_probe_key, is_spellable
from sidecar.mounter.store.interface import ObjectInfo, Page, Store

_REST_WAIT_S = 0.25
_FREED_TOGETHER = 5000

HiddenCallback = Callable[[str, str], None]

Remote = ObjectInfo | None
"""What the store has under a name: an object (a file's or a link's), or None for a directory."""


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

    def __bool__(self) -> bool:
        """Whether anything is remembered."""
        return bool(self._made)

    def forget_before(self, moment_s: float) -> None:
        """Drop changes that no listing still under way can have missed."""
        with self._lock:
            self._made = {n: made for n, made in self._made.items() if made[0] >= moment_s}


class Listing:
    """One reading of one directory.

    Pages are loaded on demand and once, however many threads wait for them. ``names`` is in
    the store's order (a directory sorts as ``name/``) and only grows, so an index into it is
    a stable directory offset; a name that this mount deleted stays in ``names`` and leaves
    ``entries``.

    Attributes:
        took_s: how long the store took for the pages loaded so far.
        used_s: when it was last asked for what follows a name (monotonic).

    Args:
        prefix: the directory's key, ending in ``/``; empty for the root.
        hidden: called with (name, reason) for each key that no path shows.
        threads: ask for pages ahead of a reader.
        given: names that a reader of an earlier, lost listing of the same directory got
            already: they keep their places, and what is not among them comes behind.
    """

    def __init__(
        self,
        store: Store,
        prefix: str,
        changes: Changes,
        hidden: HiddenCallback,
        threads: Executor,
        given: Sequence[str] = (),
    ) -> None:
        self._store = store
        self._prefix = prefix
        self._changes = changes
        self._hidden = hidden
        self._lock = threading.Lock()
        self._paged = threading.Condition()
        self._rest_asked_s: float | None = None
        self._threads = threads
        self._asked: tuple[float, Future[Page]] | None = None
        self._token: str | None = None
        self._held: list[tuple[str, Remote]] = []
        self._last = ""
        self.names = list(given)
        self._vacant = set(self.names)  # in `names` and not in `entries`
        self._doubted: set[str] = set()
        self.entries: dict[str, Remote] = {}
        self.complete = False
        self.has_marker = False
        self.loaded_s = float("-inf")
        self.took_s = 0.0
        self.used_s = float("-inf")
        self._positions: dict[str, int] = {}
        self._followed = -1

    def load_until(self, count: int, *, ahead: bool = False) -> None:
        """Load pages until there are ``count`` names or the listing is complete.

        Args:
            ahead: the caller will want all of them: ask for the next page already.
        """
        while not self.complete and len(self.names) < count:
            self._load_page(len(self.names), ahead=ahead)

    def load_all(self) -> None:
        """Load every page that is missing."""
        while not self.complete:
            self._load_page(len(self.names), ahead=True)

    def await_rest(self, name: str) -> None:
        """Have the missing pages loaded, and give them a moment to tell of ``name``.

        The moment is counted from when they were first asked for: a directory of few pages is
        read at once, and nobody waits for one of thousands. Check :meth:`covers` afterwards.
        """
        with self._paged:
            if self._rest_asked_s is None:
                self._rest_asked_s = time.monotonic()
                threading.Thread(target=self._load_rest, name="rest", daemon=True).start()
            left_s = self._rest_asked_s + _REST_WAIT_S - time.monotonic()
            self._paged.wait_for(lambda: self.covers(name), max(0.0, left_s))

    def covers(self, name: str) -> bool:
        """Whether the pages loaded so far say all there is to say about ``name``."""
        return (self.complete or f"{name}/" <= self._last) and name not in self._doubted

    def doubts(self, name: str) -> bool:
        """Whether what it says of ``name`` turned out to be old."""
        return name in self._doubted

    def doubt(self, name: str) -> None:
        """What it says of ``name``, now or by a page to come, is old; until :meth:`apply`."""
        with self._lock:
            self._doubted.add(name)

    def follow(self, name: str, count: int) -> list[tuple[str, Remote]]:
        """The ``count`` entries behind ``name``, if it follows what was last asked here.

        As readers that go through the names in order do, perhaps skipping some.
        """
        self.used_s = time.monotonic()
        with self._lock:
            while len(self._positions) < len(self.names):
                self._positions[self.names[len(self._positions)]] = len(self._positions)
            here = self._positions.get(name)
            if here is None:
                return []
            last, self._followed = self._followed, here
            if not last < here <= last + count:
                return []
            names = self.names[here + 1 : here + 1 + count]
            return [(n, self.entries[n]) for n in names if n in self.entries]

    def without_names(self) -> Listing:
        """What is worth remembering of it once it is not believed any more: what it cost."""
        rest = Listing(self._store, self._prefix, self._changes, self._hidden, self._threads)
        rest.loaded_s, rest.took_s = self.loaded_s, self.took_s
        return rest

    def __del__(self) -> None:
        """Nobody looks at it any more: free its names, bit by bit.

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

    def apply(self, name: str, exists: bool, remote: Remote) -> None:
        """A change through this mount that ended in the store, or what the store says by now."""
        with self._lock:
            self._apply(name, exists, remote)

    def move(
        self, prefix: str, changes: Changes, copied: Mapping[str, tuple[ObjectInfo, ObjectInfo]]
    ) -> None:
        """The directory has another key, and what is in it too.

        Names keep their places; what is still to be loaded is loaded under the new key.

        Args:
            copied: old key to (the version that was copied, the copy).
        """
        with self._lock:
            self._prefix = prefix
            self._changes = changes
            self._token, self._asked, self._last = None, None, ""
            self._held.clear()
            for name, remote in list(self.entries.items()):
                if remote is not None:
                    pair = copied.get(remote.key)
                    self._apply(name, pair is not None, pair[1] if pair else None)

    def _apply(self, name: str, exists: bool, remote: Remote) -> None:
        self._doubted.discard(name)
        if not exists:
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

    def _load_rest(self) -> None:
        with contextlib.suppress(SidecarError):  # who waits for a name will ask for it alone
            self.load_all()

    def _load_page(self, seen: int, *, ahead: bool) -> None:
        with self._lock:
            if self.complete or len(self.names) > seen:
                return  # another thread loaded it while this one waited
            if self._asked is not None:
                (asked_s, coming), self._asked = self._asked, None
                page = coming.result()
            else:
                asked_s = time.monotonic()
                page = self._store.list_page(self._prefix, self._token)
            self.took_s += time.monotonic() - asked_s
            self._take(page)
            self._token = page.next_token
            self.complete = page.next_token is None
            if ahead and not self.complete:
                coming = self._threads.submit(self._store.list_page, self._prefix, self._token)
                self._asked = time.monotonic(), coming
            for name, (exists, remote) in self._changes.since(asked_s).items():
                self._apply(name, exists, remote)
            self.loaded_s = asked_s
        with self._paged:
            self._paged.notify_all()

    def _take(self, page: Page) -> None:
        skip = len(self._prefix)
        lines: list[tuple[str, Remote]] = self._held
        lines += [(prefix[skip:], None) for prefix in page.prefixes]
        lines += [(info.key[skip:], info) for info in page.objects]
        lines.sort(key=_sort_key)
        directories = {key[:-1] for key, remote in lines if remote is None}
        settled = len(lines)
        if page.next_token is not None and lines:
            last = lines[-1][0]
            for index, (key, remote) in enumerate(lines):
                if remote is not None and f"{key.removesuffix(LINK_SUFFIX)}/" > last:
                    settled = index  # a directory of this name may still come, and would win
                    break
        self._held = lines[settled:]
        for key, remote in lines[:settled]:
            self._add(key, remote, directories)
            self._last = key

    def _add(self, key: str, remote: Remote, directories: set[str]) -> None:
        if not key:
            self.has_marker = True
            return
        if is_probe_key(key):
            return  # of a sidecar that starts just now, or did not come to remove it
        name = key.removesuffix(LINK_SUFFIX) if remote is not None else key[:-1]
        if not is_spellable(name):
            self._hidden(self._prefix + key, "name")
        elif remote is not None and (name in directories or self._is_behind_a_file(name, key)):
            self._hidden(self._prefix + key, "shadowed")
        else:
            # Not by their order: what was made while the listing was fresh was given last.
            if name not in self.entries and name not in self._vacant:
                self.names.append(name)
            self._vacant.discard(name)
            self.entries[name] = remote

    def _is_behind_a_file(self, name: str, key: str) -> bool:
        """Whether this is a link's key, and a file has its name; ``name`` sorts before it."""
        if key == name:
            return False
        found = self.entries.get(name)
        return found is not None and not is_link_key(found.key)


def _sort_key(line: tuple[str, Remote]) -> str:
    return line[0]


def find_remote(store: Store, prefix: str, name: str) -> tuple[bool, Remote]:
    """Ask the store for one name: (exists, what).

    One LIST of the keys that begin with the name answers for the object, the directory the
    link and the absence at once; only a name that many others begin with needs more.
    """
    key = prefix + name
    page = store.list_page(key, limit=_NAME_PAGE)
    link_key = key + LINK_SUFFIX
    objects = {info.key: info for info in page.objects}
    if f"{key}/" in page.prefixes:
        return True, None
    last = max(
        page.objects[-1].key if page.objects else "", page.prefixes[-1] if page.prefixes else ""
    )
    if page.next_token is not None and last < f"{key}/":
        below = store.list_page(f"{key}/", delimiter="", limit=1)
        if below.objects:
            return True, None
        if last < link_key:
            more = store.list_page(link_key, limit=1)
            objects.update((info.key, info) for info in more.objects)
    found = None if is_link_key(key) else objects.get(key)
    found = found or objects.get(link_key)
    return found is not None, found


_NAME_PAGE = 16
