"""Directories get other names: the store copies every object below, then deletes the old ones.

Written down before it begins. A worker that dies is followed by one that is asked again and
skips what is copied already; a sidecar that dies, by a next start that finishes the move.
The inode keeps its number, and so does everything below it: who has a file open goes on.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor, as_completed

from sidecar import logs
from sidecar.errors import NotFound, SidecarError, Stale
from sidecar.mounter.filesystem.inodes import Directory
from sidecar.mounter.filesystem.journal import Journal, Record
from sidecar.mounter.filesystem.namespace import Namespace
from sidecar.mounter.store.interface import ObjectInfo, Store

log = logging.getLogger(__name__)

COPIES_AT_ONCE = 16
_DELETED_AT_ONCE = 64  # a request of S3 takes a thousand; the others take one
_PROGRESS_S = 10.0

Move = tuple[str, str]
"""The old key of a directory and the new one; both end in ``/``."""
Copied = dict[str, tuple[ObjectInfo, ObjectInfo]]
"""Old key to (the version that was copied, the copy)."""


class DirectoryRename:
    """The moves of one mount, the unfinished ones of its predecessors included.

    Attributes:
        unfinished: by the directory's inode.
    """

    def __init__(self, store: Store, namespace: Namespace, journal: Journal) -> None:
        self._store = store
        self._namespace = namespace
        self._journal = journal
        self.unfinished: dict[int, Move] = {}

    def records(self) -> list[Record]:
        """For a successor. Takes no lock."""
        return [("moving", number, *move) for number, move in list(self.unfinished.items())]

    def move(self, inode: Directory, target: Directory, name: str, marker: dict[str, str]) -> None:
        """Give a directory another name. The caller holds it and both parents still.

        Args:
            marker: metadata of the directory's object, where it has to be made.

        Raises what the store raises. Where that comes before everything is copied, the old
        name stays and what was copied is deleted again; later, the new name is there, and
        what is left of the old one is deleted at the next opportunity.
        """
        old, new = inode.key, f"{target.key}{name}/"
        self._store.check_key(new)
        self._begin(inode.id, old, new)
        try:
            copied = self._copy_all(old, new)
            if old not in copied:
                self._store.put(new, b"", marker)  # so that it stays when it is empty
        except SidecarError:
            self._undo(inode.id, old, new)
            raise
        self._namespace.rename_directory(inode, target, name, copied)
        self._delete(old, copied)
        self._end(inode.id)

    def complete(self, number: int) -> None:
        """The inode has its new name already: delete what is left of the old one."""
        old, new = self.unfinished[number]
        there = {info.key for info in self._below(new)}
        left = [info.key for info in self._below(old)]
        self._delete(old, [key for key in left if new + key[len(old) :] in there])
        self._end(number)

    def finish(self, number: int) -> None:
        """The rest of a move that nobody asks for any more."""
        inode = self._namespace.inodes.find(number)
        old, new = self.unfinished[number]
        if inode is not None and inode.key == old and not inode.detached:
            self._undo(number, old, new)
        else:
            self.complete(number)

    def finish_predecessor(self, number: int, move: Move) -> None:
        """The whole of a move whose sidecar ended."""
        old, new = move
        self._begin(number, old, new)
        copied = self._copy_all(old, new)
        try:
            self._store.head(new)
        except NotFound:
            self._store.put(new, b"")
        self._delete(old, copied)
        self._end(number)
        logs.event(log, "finished renaming a directory", old=old, new=new)

    def _begin(self, number: int, old: str, new: str) -> None:
        self.unfinished[number] = old, new
        self._journal.write(("moving", number, old, new))

    def _end(self, number: int) -> None:
        self.unfinished.pop(number, None)
        self._journal.write(("moved", number))

    def _undo(self, number: int, old: str, new: str) -> None:
        """Delete the copies of what is still there. What fails is tried again later."""
        originals = {info.key[len(old) :] for info in self._below(old)}
        copies = [info.key for info in self._below(new) if info.key[len(new) :] in originals]
        self._delete(new, copies)
        self._end(number)

    def _below(self, prefix: str) -> Iterable[ObjectInfo]:
        token = None
        while True:
            page = self._store.list_page(prefix, token, delimiter="")
            yield from page.objects
            token = page.next_token
            if token is None:
                return

    def _copy_all(self, old: str, new: str) -> Copied:
        """Copy what is not there yet."""
        there = {info.key[len(new) :]: info for info in self._below(new)}
        copied: Copied = {}
        wanted: list[ObjectInfo] = []
        for info in self._below(old):
            copy = there.get(info.key[len(old) :])
            # The new name was free when this began: what is there is our copy.
            if copy and copy.size_bytes == info.size_bytes and copy.mtime_s >= info.mtime_s:
                copied[info.key] = info, copy
            else:
                wanted.append(info)
        total = len(copied) + len(wanted)
        shown_s = time.monotonic()
        threads = ThreadPoolExecutor(COPIES_AT_ONCE, thread_name_prefix="move")
        try:
            running = [
                threads.submit(self._copy, info, new + info.key[len(old) :]) for info in wanted
            ]
            for done in as_completed(running):
                pair = done.result()
                if pair is not None:
                    copied[pair[0].key] = pair
                if time.monotonic() - shown_s >= _PROGRESS_S:
                    shown_s = time.monotonic()
                    logs.event(
                        log,
                        "renaming a directory",
                        old=old,
                        new=new,
                        copied=len(copied),
                        objects=total,
                    )
        finally:
            threads.shutdown(cancel_futures=True)
        return copied

    def _copy(self, info: ObjectInfo, new_key: str) -> tuple[ObjectInfo, ObjectInfo] | None:
        """(what was copied, the copy); None for what somebody else deleted meanwhile."""
        self._store.check_key(new_key)
        while True:
            try:
                if info.key.endswith("/") and not info.size_bytes:
                    # Some servers (JuiceFS's gateway) make directories of these, and copy none.
                    found = self._store.head(info.key)
                    return info, self._store.put(new_key, b"", found.metadata, like=found)
                return info, self._store.copy(info.key, new_key, version=info.version)
            except NotFound:
                return None
            except Stale:  # somebody else changed it
                try:
                    info = self._store.head(info.key)
                except NotFound:
                    return None

    def _delete(self, prefix: str, keys: Iterable[str]) -> None:
        """Delete files first, then the objects that mark directories, the deepest first."""
        wanted = set(keys)
        files = sorted(key for key in wanted if not key.endswith("/"))
        batches = [
            files[start : start + _DELETED_AT_ONCE]
            for start in range(0, len(files), _DELETED_AT_ONCE)
        ]
        with ThreadPoolExecutor(COPIES_AT_ONCE, thread_name_prefix="move") as threads:
            for _ in threads.map(self._store.delete_many, batches):
                pass
        # Servers that make directories of keys (JuiceFS's gateway) show those that a bulk
        # deletion left empty, and delete them only one by one.
        left = {
            info.key
            for info in self._below(prefix)
            if info.key.endswith("/") and (info.key in wanted or not info.size_bytes)
        }
        for key in sorted(left | {prefix}, reverse=True):
            self._store.delete(key)
