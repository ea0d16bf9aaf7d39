"""What this mount changed in the store lately, which a listing may not show yet.

A LIST that was requested before a change ended may or may not show the change. And some stores list
from an index that lags behind their objects (MinIO's gateway, by a second under load). So a change
wins over listings for a bounded time. If a listing that was requested after the change contradicts
it, somebody else may have changed the name since. Then the object itself is asked for, since no
store that we know is late with that. A listing that agrees says nothing about the next one, which
may be from before a name was made that is removed by now.
"""

from __future__ import annotations

import contextlib
import functools
import itertools
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Executor, Future
from typing import Final, NamedTuple

from sidecar.errors import NotFound, SidecarError
from sidecar.mounter.filesystem.names.names import LINK_SUFFIX
from sidecar.mounter.filesystem.names.remotes import (
    REMOTE_DIRECTORY,
    ForgottenObject,
    Listed,
    Remote,
    RemoteDirectory,
    to_relative_key,
)
from sidecar.mounter.store.interface import ObjectInfo, Store

REMEMBERED_S: Final = 120.0
"""No LIST that may have missed a change takes longer, and no index that we know lags longer."""
_MOST_REMEMBERED: Final = 20_000
_MOST_INSIDE: Final = 4
_MOST_ASKED: Final = 64
"""How many objects are asked for if one page contradicts them. The others are taken to be alike."""


class OwnChange(NamedTuple):
    """A change of a name.

    Attributes:
        ended_s: when the store had made it (monotonic).
        remote: what has had the name since; None: nothing.
    """

    ended_s: float
    remote: Remote | None


class _Contradiction(NamedTuple):
    name: str
    change: OwnChange
    listed: Listed | None


class OwnChanges:
    """The recent changes of one mount, by their directory's key. Safe to use from any thread.

    Args:
        threads: ask for several objects at once.
    """

    def __init__(self, store: Store, threads: Executor) -> None:
        self._store = store
        self._threads = threads
        self._lock = threading.Lock()
        self._changes: dict[str, dict[str, OwnChange]] = {}
        self._count = 0

    def add(self, directory_key: str, name: str, remote: Remote | None) -> None:
        """Note that the store now has ``remote`` under a name; None: the name is gone."""
        with self._lock:
            self._add(directory_key, name, OwnChange(time.monotonic(), remote))
            self._make_room()

    def rename(
        self, old: str, new: str, copied: Mapping[str, tuple[ObjectInfo, ObjectInfo]]
    ) -> None:
        """Note that a directory has the key ``new`` instead of ``old``, and copied objects.

        Args:
            copied: old key to (the version that was copied, the copy).
        """
        with self._lock:
            for key in [key for key in self._changes if key.startswith(old)]:
                self._count -= len(self._changes.pop(key))
            now_s = time.monotonic()
            # Only the last ones: the others were copied a while ago.
            for info, copy in list(copied.values())[-_MOST_REMEMBERED // 4 :]:
                for root, key, remote in ((old, info.key, None), (new, copy.key, copy)):
                    self._add_below(root, key, remote, now_s)
            self._make_room()

    def names(self, directory_key: str) -> list[str]:
        """The changed names of a directory."""
        with self._lock:
            return list(self._changes.get(directory_key, ()))

    def is_removed(self, directory_key: str, name: str) -> bool:
        """Whether this mount removed a name."""
        change = self._changes.get(directory_key, {}).get(name)
        return change is not None and change.remote is None

    def below(self, prefix: str) -> dict[str, ObjectInfo | None]:
        """The objects made at and below a prefix, by key; None: the object was removed.

        For a directory, the object has nothing but its key.
        """
        found: dict[str, ObjectInfo | None] = {}
        with self._lock:
            for directory_key, changes in self._changes.items():
                if not directory_key.startswith(prefix):
                    continue
                for name, change in changes.items():
                    key, remote = directory_key + name, change.remote
                    if remote is None:
                        found |= dict.fromkeys((key, f"{key}/", key + LINK_SUFFIX))
                    elif isinstance(remote, ObjectInfo):
                        found[remote.key] = remote
                    else:
                        found[f"{key}/"] = ObjectInfo(f"{key}/", 0, 0.0, "")
        return found

    def drop_before(self, moment_s: float) -> None:
        """Forget the changes that ended before ``moment_s`` (monotonic)."""
        with self._lock:
            self._drop_before(moment_s)

    def since(self, directory_key: str, moment_s: float) -> dict[str, Remote | None]:
        """What this mount made of a directory's names from a moment (monotonic) on."""
        with self._lock:
            changes = self._changes.get(directory_key, {}).items()
            return {name: change.remote for name, change in changes if change.ended_s >= moment_s}

    # --- what a listing says ----------------------------------------------------------------

    def reconcile(
        self, directory_key: str, listed: Mapping[str, Listed | None], requested_s: float
    ) -> dict[str, Remote | None]:
        """The corrected entries, by name, for names about which a listing is or may be wrong.

        Args:
            listed: the listing's entries for changed names; some may be missing.
            requested_s: when the listing was requested (monotonic).
        """
        with self._lock:
            changes = dict(self._changes.get(directory_key, {}))
        right = {
            name: change.remote for name, change in changes.items() if change.ended_s >= requested_s
        }
        doubts = [
            _Contradiction(name, changes[name], remote)
            for name, remote in listed.items()
            if name in changes and name not in right and not _is_same(changes[name].remote, remote)
        ]
        if doubts:
            doubts.sort(key=lambda doubt: doubt.change.ended_s, reverse=True)
            right |= self._settle(directory_key, doubts)
        return right

    def _settle(
        self, directory_key: str, doubts: Sequence[_Contradiction]
    ) -> dict[str, Remote | None]:
        """Decide between changes and listing; names for which the listing is right are left out.

        Args:
            doubts: the latest changes first. A listing that has those has the others.
        """
        asked, others = doubts[:_MOST_ASKED], doubts[_MOST_ASKED:]
        right: dict[str, Remote | None] = {}
        found = self._at_once(
            [functools.partial(self._ask, directory_key, doubt) for doubt in asked]
        )
        for doubt, remote in zip(asked, found, strict=True):
            if not (isinstance(remote, ForgottenObject) or _is_same(remote, doubt.listed)):
                right[doubt.name] = remote
            self._learn(directory_key, doubt, remote)
        for doubt in others:
            if right:
                right[doubt.name] = doubt.change.remote
            else:
                self._learn(directory_key, doubt, doubt.listed)
        return right

    def _ask(self, directory_key: str, doubt: _Contradiction) -> Listed | None:
        """What has a name. If the store does not say, what this mount made of it."""
        name, change, listed = doubt
        made = change.remote
        key = directory_key + to_relative_key(
            name, listed if made is None else made, len(directory_key)
        )
        try:
            if made is None and isinstance(listed, RemoteDirectory):
                below = self._store.list_page(key, delimiter="", limit=1).objects
                return REMOTE_DIRECTORY if any(map(self._head, _keys(below))) else None
            found: Listed | None = self._head(key)
            if isinstance(made, RemoteDirectory):
                # Maybe it has no object of its own, but others below.
                inside = itertools.islice(filter(None, self.below(key).values()), _MOST_INSIDE)
                is_there = found is not None or any(map(self._head, _keys(inside)))
                return REMOTE_DIRECTORY if is_there else listed
        except SidecarError:
            return made
        return listed if found is None and isinstance(listed, RemoteDirectory) else found

    def _head(self, key: str) -> ObjectInfo | None:
        try:
            return self._store.head(key)
        except NotFound:
            return None

    def _at_once(self, calls: Sequence[Callable[[], Listed | None]]) -> list[Listed | None]:
        """The results of the calls. This thread makes those that no other thread has begun."""
        running: list[Future[Listed | None]] = []
        with contextlib.suppress(RuntimeError):  # no thread can be started
            running.extend(self._threads.submit(call) for call in calls)
        results = [
            call() if future.cancel() else future.result()
            for call, future in zip(calls, running, strict=False)
        ]
        return results + [call() for call in calls[len(running) :]]

    # --- what is remembered, with the lock held -----------------------------------------------

    def _add(self, directory_key: str, name: str, change: OwnChange) -> None:
        changes = self._changes.setdefault(directory_key, {})
        self._count += name not in changes
        changes[name] = change

    def _add_below(self, root: str, key: str, remote: Remote | None, now_s: float) -> None:
        """Note an object that was made or removed, with the directories below ``root``."""
        while key != root:
            above, _, name = key.removesuffix("/").rpartition("/")
            directory_key = f"{above}/"
            if key.endswith("/"):
                remote = remote and REMOTE_DIRECTORY
            else:
                name = name.removesuffix(LINK_SUFFIX)
            known = self._changes.get(directory_key, {}).get(name)
            if known is not None and known.ended_s == now_s and key.endswith("/"):
                return
            self._add(directory_key, name, OwnChange(now_s, remote))
            key = directory_key

    def _learn(self, directory_key: str, doubt: _Contradiction, remote: Listed | None) -> None:
        """Note that something else has got a name since this mount changed it."""
        with self._lock:
            changes = self._changes.get(directory_key, {})
            if changes.get(doubt.name) is not doubt.change:
                return  # this mount changed it once more
            if isinstance(remote, ForgottenObject):
                del changes[doubt.name]
                self._count -= 1
            else:
                changes[doubt.name] = doubt.change._replace(remote=remote)

    def _make_room(self) -> None:
        if self._count > _MOST_REMEMBERED:
            ends_s = sorted(
                change.ended_s for changes in self._changes.values() for change in changes.values()
            )
            self._drop_before(ends_s[-_MOST_REMEMBERED // 2])

    def _drop_before(self, moment_s: float) -> None:
        for directory_key, changes in list(self._changes.items()):
            kept = {name: change for name, change in changes.items() if change.ended_s >= moment_s}
            self._count -= len(changes) - len(kept)
            if kept:
                self._changes[directory_key] = kept
            else:
                del self._changes[directory_key]


def _is_same(remote: Remote | None, listed: Listed | None) -> bool:
    """Whether a listing's entry for a name agrees with what is known of it."""
    if isinstance(remote, ObjectInfo):
        if isinstance(listed, ObjectInfo):
            return (remote.key, remote.version) == (listed.key, listed.version)
        return isinstance(listed, ForgottenObject)
    return type(remote) is type(listed)


def _keys(objects: Iterable[ObjectInfo]) -> Iterator[str]:
    return (info.key for info in objects)
