"""Write-back: when files are saved. Before some changes, for room, in intervals, and at the end.

:mod:`.saving` saves them.
"""

from __future__ import annotations

import contextlib
import logging
import time
from collections.abc import Callable, Collection
from concurrent.futures import Future, ThreadPoolExecutor, wait

from sidecar import logs
from sidecar.errors import SidecarError, StoreError
from sidecar.mounter.filesystem.content.contents import Contents, is_saved_and_closed
from sidecar.mounter.filesystem.content.saving import Saver
from sidecar.mounter.filesystem.inodes.inode import File
from sidecar.mounter.filesystem.inodes.namespace import Namespace
from sidecar.mounter.store.interface import Store
from sidecar.mounter.writing.spool import SpoolFile
from sidecar.mounter.writing.uploader import Uploader

log = logging.getLogger(__name__)

BULK_PARTS = 16
"""A writer that sends this many parts between two intervals is copying, not keeping a log."""
_SAVERS = 4
_ATTRIBUTES_REST_S = 1.0
"""A program that sets one attribute of a file sets the next one at once, and may rename it."""
_ROOM_POLL_S = 0.05
_MEMORY_POLL_S = 0.005
"""A fast store takes twice as long for a part of 8 MiB."""
_PROGRESS_S = 1.0

SaveErrors = dict[str, SidecarError | None]
"""By key: why a file could not be saved; None: time ran out."""


def _tell_nobody() -> None:
    """Report no progress."""


class WriteBack:
    """Saves the files of one mount, beside close(2). Safe to use from any thread.

    The caller holds the lock of the file that it passes, unless a method says otherwise.
    """

    def __init__(
        self,
        store: Store,
        namespace: Namespace,
        contents: Contents,
        saver: Saver,
        uploader: Uploader,
    ) -> None:
        self._store = store
        self._namespace = namespace
        self._contents = contents
        self._saver = saver
        self._uploader = uploader
        self._budget = contents.budget
        self._threads = ThreadPoolExecutor(_SAVERS, thread_name_prefix="save")
        self._is_resolving = False
        self._saving_attributes: list[Future[SidecarError | None]] = []
        self._parts_at_last_sync: dict[int, int] = {}  # sent parts, by inode

    # --- before a change ---------------------------------------------------------------------

    def prepare(self, inode: File, offset: int, size: int) -> SpoolFile:
        """The file's spool file, without missing parts in the range of a write.

        Raises SpoolFull, Stale, and the store's errors.
        """
        while True:
            spool = inode.spool
            if spool is None:
                spool = self._contents.ensure(inode)
            spool.begin_change(inode.remote)
            if not spool.missing and not self._uploader.is_in_flight(spool):
                return spool
            written = spool.parts_written_by(offset, size)
            lacking = spool.missing.intersection(written)
            if (lacking and self._saver.complete_upload(inode)) or self._invalidate(
                inode, spool, written
            ):
                continue
            self.recall(inode, spool, lacking)
            return spool

    def prepare_to_shorten(self, inode: File, size: int) -> SpoolFile:
        """The file's spool file. Parts that are missing below ``size`` are in its base."""
        while True:
            spool = self._contents.ensure(inode, size)
            spool.begin_change(inode.remote)
            cut = set(spool.layout.covering(size, spool.size_bytes - size))
            kept = spool.layout.covering(0, size)
            if (
                not spool.missing.isdisjoint(cut.intersection(kept))
                and self._saver.complete_upload(inode)
            ) or self._invalidate(inode, spool, cut):
                continue
            return spool

    def _invalidate(self, inode: File, spool: SpoolFile, numbers: Collection[int]) -> bool:
        """Tell an upload in flight which parts are about to change.

        Returns whether the upload had to be completed first, which changes everything else.
        """
        if self._uploader.must_restart(spool, numbers):
            if self._saver.complete_upload(inode):
                return True
            self._uploader.drop(spool)
        self._uploader.invalidate(spool, numbers)
        return False

    def recall(self, inode: File, spool: SpoolFile, numbers: Collection[int]) -> None:
        """Get missing parts back. Raises SpoolFull, Stale, a GET's errors."""
        for number in sorted(numbers):
            self.make_room(inode, spool, spool.span(number)[1])
            self._contents.recall(inode, spool, number)

    def settle(self, inode: File, spool: SpoolFile, offset: int, size: int) -> None:
        """Choose memory or disk for the parts that a write begins.

        Waits for memory while sending frees it faster than a disk would take the bytes, and as
        long as that does not slow down sending for lack of parts.
        """
        if inode.detached:  # it will never be sent
            return
        memory = self._contents.memory
        for number in spool.unsettled(offset, size):
            while not spool.in_memory.add(number):
                if self._contents.evict_from_memory(spool.layout.size(number)):
                    continue
                if not (memory.beats_a_disk and self._uploader.is_full()):
                    return
                time.sleep(_MEMORY_POLL_S)

    def make_room(self, inode: File, spool: SpoolFile, size: int) -> None:
        """Wait until the spool takes ``size`` bytes, as long as sending makes room there.

        Raises SpoolFull if sending makes no room.
        """
        budget = self._budget
        if size > budget.total_bytes:
            budget.check(size)
        saved = False
        while budget.free_bytes < size:
            if self._contents.evict(size):
                continue
            if self._uploader.is_busy(spool):
                time.sleep(_ROOM_POLL_S)
            elif not saved and inode.writers and spool.dirty and not inode.detached:
                saved = True
                with contextlib.suppress(StoreError):  # its observer reports it once
                    self._saver.save(inode)  # somebody writes to it, so the spool file stays
            else:
                budget.check(size)
                return

    # --- by and by -----------------------------------------------------------------------------

    def backlog(self) -> dict[str, int]:
        """What the store does not have yet: keys and lengths in bytes."""
        return {inode.key: inode.unsaved_bytes for inode in self._contents.dirty()}

    def save_soon(self, inode: File) -> None:
        """Save a file in another thread. A failure is logged; the next interval tries again."""
        self._threads.submit(self._save_late, inode)

    def _save_late(self, inode: File) -> None:
        error = self._saver.attempt(inode)
        if error is not None:
            logs.event(log, "not saved yet", logging.WARNING, key=inode.key, error=error)

    def save_attributes(self) -> None:
        """Save attributes of closed files that were not set again for a while.

        Call it about every second; other threads ask the store. A failed request is tried again
        with everything else (:meth:`sync`), which reports it.
        """
        if any(not saving.done() for saving in self._saving_attributes):
            return
        self._contents.forget_saved()
        until_s = time.monotonic() - _ATTRIBUTES_REST_S
        due = [
            inode
            for inode in self._contents.dirty()
            if inode.attributes_set_s is not None and inode.attributes_set_s <= until_s
        ]
        self._saving_attributes = [self._threads.submit(self._saver.attempt, i) for i in due]

    def resolve_versions(self) -> None:
        """Drop spool files that are kept only until the store names their versions.

        Call it about every second; another thread asks the store. The store is not asked when a
        file is saved: some servers must read all of an object to answer, and nobody needs the
        answer while the bytes are here.
        """
        saved = [inode for inode in self._contents.local() if is_saved_and_closed(inode)]
        if saved and not self._is_resolving:
            self._is_resolving = True
            self._threads.submit(self._resolve_all, saved)

    def _resolve_all(self, inodes: list[File]) -> None:
        try:
            for inode in inodes:
                with self._namespace.subtree_locks.shared(inode):
                    self._resolve(inode)
        except SidecarError:
            pass  # the store's observer reports it; the next call asks again
        finally:
            self._is_resolving = False

    def _resolve(self, inode: File) -> None:
        """Ask without a lock, so that reads and writes of the file go on."""
        remote, asked_s = inode.remote, time.monotonic()
        if remote is None or not is_saved_and_closed(inode):
            return
        found = self._store.resolve_version(remote)
        with inode.lock:
            if inode.remote is remote and is_saved_and_closed(inode):
                if not remote.has_final_version:
                    self._namespace.set_resolved_version(inode, found, asked_s)
                self._contents.drop_if_unneeded(inode)

    def sync(self, deadline_s: float) -> SaveErrors:
        """As :meth:`drain`, except for large new files whose parts are sent while they are written.

        Those become objects when they are closed, or when their writer pauses.
        """
        dirty = self._contents.dirty()
        before, now = self._parts_at_last_sync, self._sent_parts(dirty)
        self._parts_at_last_sync = now
        bulk = {
            number for number, sent in now.items() if sent - before.get(number, 0) >= BULK_PARTS
        }
        return self._save_all([inode for inode in dirty if inode.id not in bulk], deadline_s)

    def _sent_parts(self, inodes: list[File]) -> dict[int, int]:
        """By inode: how many parts the store has of files that are being written."""
        return {
            inode.id: self._uploader.sent_parts(spool)
            for inode in inodes
            if (spool := inode.spool) is not None and inode.writers
        }

    def drain(self, deadline_s: float, progress: Callable[[], None] = _tell_nobody) -> SaveErrors:
        """Upload everything dirty before ``deadline_s`` (monotonic); what could not be saved.

        Several at once, the smallest first; files of one size, the oldest first.

        Args:
            progress: called about once a second meanwhile.
        """
        dirty = sorted(self._contents.dirty(), key=lambda inode: inode.unsaved_bytes)
        return self._save_all(dirty, deadline_s, progress)

    def _save_all(
        self, inodes: list[File], deadline_s: float, progress: Callable[[], None] = _tell_nobody
    ) -> SaveErrors:
        failed: dict[int, SidecarError | None] = {}

        def save(inode: File) -> None:
            if time.monotonic() < deadline_s:
                failed[inode.id] = self._saver.attempt(inode)

        futures = [self._threads.submit(save, inode) for inode in inodes]
        while (left_s := deadline_s - time.monotonic()) > 0:
            if not wait(futures, min(_PROGRESS_S, left_s)).not_done:
                break
            progress()
        for future in futures:
            future.cancel()
        return {inode.key: failed.get(inode.id) for inode in inodes if inode.is_dirty}
