"""Contents of the files that have a spool file: their bytes, and the object they began as.

:mod:`.saving` makes objects of them, and :mod:`.write_back` says when.
"""

from __future__ import annotations

import logging
import threading

from sidecar import logs
from sidecar.errors import Stale, StateUnusable, WouldBlock
from sidecar.mounter.filesystem.inodes.inode import File
from sidecar.mounter.filesystem.inodes.inode_table import InodeTable
from sidecar.mounter.reading.fetcher import Fetcher
from sidecar.mounter.store.interface import ObjectInfo
from sidecar.mounter.writing.part_memory import PartMemory
from sidecar.mounter.writing.spool import Spool, SpoolFile
from sidecar.mounter.writing.spool_budget import SpoolBudget
from sidecar.mounter.writing.uploader import Uploader

log = logging.getLogger(__name__)

WHOLE_BYTES = 64 * 1024 * 1024
"""The largest objects that are fetched whole when they are opened and written to."""
MOST_LOCAL = 1000
"""The number of files above which attributes are not kept here for later."""
_COPY_BYTES = 8 * 1024 * 1024


class Contents:
    """The files of one mount that have a spool file. Safe to use from any thread.

    The caller holds the lock of the file that it passes.

    Attributes:
        budget: of the spool's disk.
        memory: of the spool.
    """

    def __init__(
        self, inodes: InodeTable, fetcher: Fetcher, spool: Spool, uploader: Uploader
    ) -> None:
        self.budget = spool.budget
        self.memory = spool.memory
        self._inodes = inodes
        self._fetcher = fetcher
        self._spool = spool
        self._uploader = uploader
        self._lock = threading.Lock()
        self._local: dict[int, File] = {}  # by inode, oldest first

    def local(self) -> list[File]:
        """The files that are, or were, only here in part or whole, the oldest first."""
        with self._lock:
            return list(self._local.values())

    def dirty(self) -> list[File]:
        """Files that the store does not have as they are here, the oldest first."""
        return [inode for inode in self.local() if inode.is_dirty]

    def keep(self, inode: File) -> bool:
        """Remember a file that is only here in part or whole. False if there are very many."""
        with self._lock:
            is_new = inode.id not in self._local and inode.spool is None
            if is_new and len(self._local) >= MOST_LOCAL:
                return False
            self._local[inode.id] = inode
            return True

    def forget_saved(self) -> None:
        """Forget the files that the store has completely."""
        with self._lock:
            for inode in list(self._local.values()):
                if inode.spool is None and not inode.is_dirty:
                    del self._local[inode.id]

    def take_over(self) -> None:
        """Go on with what only a predecessor had of its files; abandon its other uploads."""
        kept = []
        for inode in self._inodes:
            if isinstance(inode, File) and inode.is_local:
                with self._lock:
                    self._local[inode.id] = inode
            if isinstance(inode, File) and inode.spool is not None:
                self._uploader.adopt(inode.spool)
                kept.append(inode.spool.name)
        self._uploader.abandon(self._spool.leftovers(kept))

    def abandon_leftovers(self) -> None:
        """Remove from the store the uploads that earlier runs began and did not end."""
        self._uploader.abandon(self._spool.leftovers())

    def keep_on_disk(self, *, is_last: bool) -> None:
        """Copy parts of unsaved files that are only in this run's memory to disk.

        Takes no lock: nobody writes any more. Files may be saved meanwhile, unless it is the last
        call, which logs what is lost.
        """
        for inode in self.dirty():
            spool = inode.spool
            if spool is None or not inode.is_dirty:
                continue
            try:
                with spool.hold() as fd:
                    spool.in_memory.copy_to(fd, spool.size_bytes)
            except (OSError, StateUnusable) as error:
                if is_last:
                    logs.event(log, "lost with this run", logging.ERROR, key=inode.key, why=error)

    # --- the spool file ----------------------------------------------------------------------

    def create(self, inode: File) -> SpoolFile:
        """An empty spool file for a file that has none."""
        spool = self._spool.create()
        self._give(inode, spool)
        return spool

    def ensure(self, inode: File, needed_bytes: int | None = None) -> SpoolFile:
        """The file's spool file. It has the object's content, or lacks parts that its base has.

        Args:
            needed_bytes: where the file is about to be cut; bytes after that are not fetched.
        """
        if inode.spool is not None:
            return inode.spool
        spool, remote = self._spool.create(), inode.remote
        try:
            if remote is not None and remote.size_bytes > WHOLE_BYTES:
                spool.begin_as(remote)
            elif remote is not None:
                self._download(remote, spool, needed_bytes)
        except BaseException:
            spool.discard()
            raise
        spool.rebase(remote)
        # A spool file without the object's end is the file from now on, for a successor, too.
        is_cut = remote is not None and spool.size_bytes < remote.size_bytes
        spool.dirty = is_cut or inode.attributes_set_s is not None
        self._give(inode, spool)
        return spool

    def _give(self, inode: File, spool: SpoolFile) -> None:
        inode.spool = spool
        inode.attributes_set_s = None  # they will be saved with the content
        self.keep(inode)
        self._inodes.note(inode)

    def _download(self, remote: ObjectInfo, spool: SpoolFile, needed_bytes: int | None) -> None:
        end = remote.size_bytes if needed_bytes is None else min(needed_bytes, remote.size_bytes)
        buffer = bytearray(min(_COPY_BYTES, end))
        for offset in range(0, end, _COPY_BYTES):
            size = min(_COPY_BYTES, end - offset)
            with memoryview(buffer)[:size] as view:
                self._fetcher.get(remote, offset, view)
                spool.write(offset, view)

    def empty(self, inode: File) -> None:
        """Set the length to 0, without a fetch."""
        spool = inode.spool if inode.spool is not None else self.create(inode)
        spool.begin_change(inode.remote)
        self._uploader.drop(spool)
        spool.truncate(0)
        spool.rebase(None)

    def drop_if_unneeded(self, inode: File) -> None:
        """Discard the spool file if the store has the content, or nobody can read it."""
        spool = inode.spool
        if spool is None:
            return
        unreachable = inode.detached and not inode.handles
        # A version that may be renamed pins nothing, so the bytes are needed until then.
        is_final = inode.remote is None or inode.remote.has_final_version
        if unreachable or (is_saved_and_closed(inode) and is_final):
            inode.spool = None
            with self._lock:
                self._local.pop(inode.id, None)
            # This comes first: a successor must not look for the file, even if nothing but the
            # file held its inode.
            self._inodes.note(inode)
            self._inodes.drop_unused(inode)
            self._uploader.drop(spool)
            spool.discard()

    def release_unlinked(self, inode: File) -> None:
        """Drop what a file that lost its name no longer needs. Takes its lock."""
        with inode.lock:
            if inode.detached and inode.spool is not None:
                self._uploader.drop(inode.spool)  # it will never be an object
            self.drop_if_unneeded(inode)

    # --- bytes -------------------------------------------------------------------------------

    def read(self, inode: File, offset: int, size: int, *, wait: bool) -> bytes | memoryview | None:
        """Bytes of the spool file, missing ones from its base; None without a spool file.

        Raises Stale and a GET's errors; WouldBlock if a GET is needed and ``wait`` is False.
        """
        spool = inode.spool
        if spool is None or not spool.missing:
            return spool.read(offset, size) if spool is not None else None
        size = max(0, min(size, spool.size_bytes - offset))
        if not spool.lacks(offset, size):
            return spool.read(offset, size)
        if not wait:
            raise WouldBlock(inode.name)
        base = self.base(inode, spool)

        def fetch(first: int, here: memoryview) -> None:
            self._fetch(inode, base, first, here)

        return spool.read_through(offset, size, fetch)

    def recall(self, inode: File, spool: SpoolFile, number: int) -> None:
        """Get a missing part back. Raises SpoolFull, Stale, a GET's errors."""
        start, size = spool.span(number)
        with memoryview(bytearray(size)) as view:
            self._fetch(inode, self.base(inode, spool), start, view)
            spool.recall(number, view)

    def _fetch(self, inode: File, base: ObjectInfo | None, offset: int, view: memoryview) -> None:
        if base is None:
            raise Stale(f"`{inode.key}`: what was given up of it is gone")
        self._fetcher.get(base, offset, view)

    def base(self, inode: File, spool: SpoolFile) -> ObjectInfo | None:
        """The object with the missing parts, under the inode's present key."""
        if spool.base is not None and inode.remote is not None:
            spool.update_base(inode.remote)
        return spool.base if spool.dirty else inode.remote

    def evict(self, size: int) -> bool:
        """Give up parts that the store has, of files that nobody changes now, to free ``size``.

        Returns whether that freed any disk space. Takes the locks of files that are free.
        """
        return self._evict(size, self.budget, in_memory=False)

    def evict_from_memory(self, size: int) -> bool:
        """As :meth:`evict`, for memory instead of disk."""
        return self._evict(size, self.memory, in_memory=True)

    def shrink_memory(self, part: float) -> None:
        """Use only this part of the memory (1: all); give up parts beyond it that the store has.

        Call it again while the part is less than 1: the store has more by then.
        """
        self.memory.shrink(part)
        if self.memory.used_bytes > self.memory.total_bytes:
            self.evict_from_memory(1)

    def _evict(self, size: int, room: SpoolBudget | PartMemory, *, in_memory: bool) -> bool:
        made_room = False
        for inode in self.local():
            if not inode.lock.acquire(blocking=False):
                continue
            try:
                spool = inode.spool
                for number in self._uploader.evictable(spool) if spool is not None else ():
                    assert spool is not None
                    if room.free_bytes >= size:
                        return True
                    if (number in spool.in_memory) is not in_memory:
                        continue
                    made_room = spool.evict([number]) or made_room
            finally:
                inode.lock.release()
        return made_room


def is_saved_and_closed(inode: File) -> bool:
    """Whether a spooled file has a name and no writer, and the store has it as it is."""
    spool = inode.spool
    return spool is not None and not (spool.dirty or inode.writers or inode.detached)
