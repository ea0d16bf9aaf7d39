"""A directory gets another name: the store copies every object below, then deletes the old ones.

The journal notes it before it begins. If the worker dies, its successor gets the request again and
skips what is copied already. If the sidecar dies, the next start finishes the rename. The inode
keeps its number, and so does everything below it, so programs go on with open files.

:mod:`sidecar.mounter.filesystem.rename` checks the rules of rename(2).
"""

from __future__ import annotations

import logging
import time
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor, as_completed

from sidecar import logs
from sidecar.errors import NotFound, SidecarError, Stale
from sidecar.mounter.filesystem.inodes.inode import Directory
from sidecar.mounter.filesystem.inodes.namespace import Namespace
from sidecar.mounter.filesystem.journal.journal import Journal
from sidecar.mounter.filesystem.journal.records import Record, RenameBegun, RenameEnded
from sidecar.mounter.store.interface import ObjectInfo, Store

log = logging.getLogger(__name__)

COPIES_AT_ONCE = 16
_DELETED_AT_ONCE = 64  # one request takes a thousand on S3, and one key on the others
_PROGRESS_S = 10.0

Copied = dict[str, tuple[ObjectInfo, ObjectInfo]]
"""Old key to (the version that was copied, the copy)."""


class DirectoryRename:
    """Renames directories of one mount, and finishes what its predecessors began.

    Attributes:
        in_flight: renames that are not complete, by the directory's inode.
    """

    def __init__(self, store: Store, namespace: Namespace, journal: Journal) -> None:
        self._store = store
        self._namespace = namespace
        self._journal = journal
        self.in_flight: dict[int, RenameBegun] = {}

    def records(self) -> list[Record]:
        """The renames in flight, for a successor. Takes no lock."""
        return list(self.in_flight.values())

    def rename(self, inode: Directory, target: Directory, name: str) -> None:
        """Give a directory another name. The caller locks it (:meth:`SubtreeLocks.exclusive`).

        Raises the store's errors. Before everything is copied, the old name then stays and the
        copies are deleted again. After that, the new name is there, and the rest of the old one is
        deleted at the next opportunity.
        """
        begun = RenameBegun(inode.id, inode.key, f"{target.key}{name}/")
        self._store.check_key(begun.new_key)
        self._begin(begun)
        try:
            copied = self._copy_all(begun)
            if begun.old_key not in copied:
                self._store.put(begun.new_key, b"")  # so that it stays when it is empty
        except SidecarError:
            self._undo(begun)
            raise
        self._namespace.rename_directory(inode, target, name, copied)
        self._delete(begun.old_key, copied)
        self._end(inode.id)

    def complete(self, inode_id: int) -> None:
        """Delete the rest of the old name, if any, of an inode that has its new name already."""
        begun = self.in_flight.get(inode_id)
        if begun is None:
            return
        old, new = begun.old_key, begun.new_key
        there = {info.key: info for info in self._below(new)}
        self._namespace.adopt_copies(inode_id, old, there)
        left = [info.key for info in self._below(old)]
        self._delete(old, [key for key in left if new + key[len(old) :] in there])
        self._end(inode_id)

    def finish_all(self) -> None:
        """Complete or undo renames in flight whose system call ended, or whose program did."""
        for inode_id in list(self.in_flight):
            inode = self._namespace.inodes.find(inode_id)
            with self._namespace.subtree_locks.shared(inode or self._namespace.inodes.root):
                begun = self.in_flight.get(inode_id)
                if begun is None:
                    continue
                has_old_name = (
                    inode is not None and inode.key == begun.old_key and not inode.detached
                )
                try:
                    if has_old_name:
                        self._undo(begun)
                    else:
                        self.complete(inode_id)
                except SidecarError as error:
                    log.warning("a renamed directory has leftovers: %s", error)

    def finish_predecessor(self, begun: RenameBegun) -> None:
        """Do a whole rename whose sidecar ended. Raises the store's errors."""
        self._begin(begun)
        copied = self._copy_all(begun)
        try:
            self._store.head(begun.new_key)
        except NotFound:
            self._store.put(begun.new_key, b"")
        self._delete(begun.old_key, copied)
        self._end(begun.inode)
        logs.event(log, "finished renaming a directory", old=begun.old_key, new=begun.new_key)

    def _begin(self, begun: RenameBegun) -> None:
        self.in_flight[begun.inode] = begun
        self._journal.write(begun)

    def _end(self, inode_id: int) -> None:
        self.in_flight.pop(inode_id, None)
        self._journal.write(RenameEnded(inode_id))

    def _undo(self, begun: RenameBegun) -> None:
        """Delete the copies of objects that are still there. Failures are tried again later."""
        old, new = begun.old_key, begun.new_key
        originals = {info.key[len(old) :] for info in self._below(old)}
        copies = [info.key for info in self._below(new) if info.key[len(new) :] in originals]
        self._delete(new, copies)
        self._end(begun.inode)

    def _below(self, prefix: str) -> Iterable[ObjectInfo]:
        """The listed objects, and those that this mount made and that are not listed yet."""
        made = self._namespace.directory_cache.changes.below(prefix)
        token = None
        while True:
            page = self._store.list_page(prefix, token, delimiter="")
            for info in page.objects:
                made.pop(info.key, None)
                yield info
            token = page.next_token
            if token is None:
                break
        yield from filter(None, made.values())

    def _copy_all(self, begun: RenameBegun) -> Copied:
        """Copy every object that is not copied yet."""
        old, new = begun.old_key, begun.new_key
        changed = self._namespace.directory_cache.changes.below(new)
        there = {
            info.key[len(new) :]: info
            for info in self._below(new)
            if changed.get(info.key, info) is not None  # if not, it was removed, and is listed yet
        }
        copied: Copied = {}
        wanted: list[ObjectInfo] = []
        for info in self._below(old):
            copy = there.get(info.key[len(old) :])
            # The new name was free when this began, so an object there is our copy.
            if copy and copy.size_bytes == info.size_bytes and copy.mtime_s >= info.mtime_s:
                copied[info.key] = info, copy
            else:
                wanted.append(info)
        total = len(copied) + len(wanted)
        shown_s = time.monotonic()
        threads = ThreadPoolExecutor(COPIES_AT_ONCE, thread_name_prefix="rename")
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
        """(the object that was copied, the copy); None if somebody else deleted it meanwhile."""
        self._store.check_key(new_key)
        while True:
            try:
                if info.key.endswith("/") and not info.size_bytes:
                    # Some servers (JuiceFS's gateway) make these directories, and cannot copy them.
                    found = self._store.head(info.key)
                    return info, self._store.put(new_key, b"", found.metadata, like=found)
                return info, self._store.copy(info.key, new_key, known=info)
            except NotFound:
                return None
            except Stale:  # somebody else changed the object
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
        with ThreadPoolExecutor(COPIES_AT_ONCE, thread_name_prefix="rename") as threads:
            for _ in threads.map(self._store.delete_many, batches):
                pass
        # Servers that make directories of keys (JuiceFS's gateway) list directories that a bulk
        # deletion left empty, and delete them only one by one.
        left = {
            info.key
            for info in self._below(prefix)
            if info.key.endswith("/") and (info.key in wanted or not info.size_bytes)
        }
        for key in sorted(left | {prefix}, reverse=True):
            self._store.delete(key)
