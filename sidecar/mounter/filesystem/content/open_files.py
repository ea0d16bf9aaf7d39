"""Open files: handles, and the system calls on them.

Reads come from the spool or from the pinned version, writes go to the spool. :mod:`.saving` makes
objects of it.
"""

from __future__ import annotations

import contextlib
import functools
import os
import threading
import time
from collections.abc import Callable, Iterator, Mapping

from sidecar.errors import (
    BadHandle,
    SidecarError,
    SpoolFull,
    Stale,
    StoreError,
    TooLarge,
    Unavailable,
    WouldBlock,
)
from sidecar.metrics import VolumeMetrics
from sidecar.mounter.filesystem.content.contents import Contents
from sidecar.mounter.filesystem.content.contested_names import ContestedNames
from sidecar.mounter.filesystem.content.final_saving import FinalSaving
from sidecar.mounter.filesystem.content.saving import Saver
from sidecar.mounter.filesystem.content.write_back import WriteBack
from sidecar.mounter.filesystem.inodes.inode import Directory, File
from sidecar.mounter.filesystem.inodes.namespace import Namespace
from sidecar.mounter.filesystem.journal.journal import Journal
from sidecar.mounter.filesystem.journal.records import FILE_HANDLE, FileClosed, FileOpened, Record
from sidecar.mounter.reading.fetcher import Fetcher
from sidecar.mounter.reading.object_reader import ObjectReader
from sidecar.mounter.reading.read_result import ReadResult
from sidecar.mounter.store.interface import ObjectInfo
from sidecar.mounter.writing.spool import Spool
from sidecar.mounter.writing.uploader import Uploader

_JUST_SAVED_S = 10.0
"""Attributes that are set this soon after a file was saved are saved a moment later."""
_COPIED_BYTES_PER_S = 100_000_000
"""The rate from memory to a node's usual root disk."""


def _nothing() -> None:
    """Do nothing: there is nothing to release."""


class FileHandle:
    """One open file.

    Attributes:
        writable: opened with O_WRONLY or O_RDWR.
        backing_id: of the file that the kernel reads instead, if a transport has given one.
        reader: reads the pinned version; made at the first read.
    """

    __slots__ = ("backing_id", "inode", "reader", "writable")

    def __init__(self, inode: File, writable: bool, backing_id: int | None) -> None:
        self.inode = inode
        self.writable = writable
        self.backing_id = backing_id
        self.reader: ObjectReader | None = None


class OpenFiles:
    """The open files of one mount. Safe to use from any thread.

    Attributes:
        contents: the files that are in the spool.
        saver: makes objects of them.
        write_back: saves them when no system call does.
        final_saving: saves them at once when the pod ends.
    """

    def __init__(
        self,
        namespace: Namespace,
        fetcher: Fetcher,
        spool: Spool,
        uploader: Uploader,
        metrics: VolumeMetrics,
        journal: Journal,
    ) -> None:
        store = fetcher.store
        self.contents = Contents(namespace.inodes, fetcher, spool, uploader)
        self.saver = Saver(store, namespace, self.contents, spool, uploader, metrics)
        self.write_back = WriteBack(store, namespace, self.contents, self.saver, uploader)
        self.final_saving = FinalSaving(self.contents, self.saver, uploader)
        self._namespace = namespace
        self._journal = journal
        self._fetcher = fetcher
        self._store = store
        self._uploader = uploader
        self._metrics = metrics
        self._lock = threading.RLock()
        self._losing_name: set[int] = set()  # inodes that are being deleted or replaced
        self._lost_name = threading.Condition(self._lock)
        self._contested = ContestedNames()
        self._handles: dict[int, FileHandle] = {}
        self._next = 1
        self._ended = False

    # --- handles -----------------------------------------------------------------------

    def open(
        self,
        inode: File,
        writable: bool,
        *,
        truncate: bool = False,
        backing_id: int | None = None,
        wait: bool = True,
    ) -> int:
        """A new handle. With ``truncate`` the file is empty for everyone from now on.

        Raises Stale for a file that lost its name and that nobody has open: after ESTALE open(2)
        looks the name up again (fs/namei.c, do_filp_open). WouldBlock while it is losing the name,
        unless the caller may ``wait``.
        """
        if truncate:
            with inode.lock:  # losing a name needs this lock, too
                self._check_has_content(inode)
                self._empty(inode)
                self._namespace.inodes.note(inode)
                return self._give_handle(inode, writable, backing_id)
        with self._lost_name:
            if inode.id in self._losing_name:
                if not wait:
                    raise WouldBlock(inode.name)
                self._lost_name.wait_for(lambda: inode.id not in self._losing_name)
            self._check_has_content(inode)
            return self._give_handle(inode, writable, backing_id)

    def _check_has_content(self, inode: File) -> None:
        if inode.detached and inode.spool is None:
            self._contested.add(inode)
            raise Stale(f"`{inode.name}` was deleted or replaced")

    def _give_handle(self, inode: File, writable: bool, backing_id: int | None) -> int:
        with self._lock:
            number = self._next
            self._next += 1
            self._handles[number] = FileHandle(inode, writable, backing_id)
            inode.handles += 1
            inode.writers += writable
        record = FileOpened(number, inode.id, writable, backing_id)
        self._journal.grant(FILE_HANDLE, [number], [record])
        return number

    def opened(self) -> list[FileHandle]:
        """Every open file."""
        return list(self._handles.values())

    def records(self) -> list[Record]:
        """The open handles, for a successor. Takes no lock."""
        return [
            FileOpened(number, opened.inode.id, opened.writable, opened.backing_id)
            for number, opened in list(self._handles.items())
        ]

    @property
    def last_number(self) -> int:
        """The highest handle that was ever given out."""
        return self._next - 1

    def restore(self, handles: dict[int, tuple[File, bool, int | None]], last_number: int) -> None:
        """Take over a predecessor's handles: number to (inode, writable, backing id)."""
        with self._lock:
            for number, (inode, writable, backing_id) in handles.items():
                self._handles[number] = FileHandle(inode, writable, backing_id)
                inode.handles += 1
                inode.writers += writable
            self._next = last_number + 1
        self.contents.take_over()

    def get(self, handle: int) -> FileHandle:
        """The open file of a number. Raises BadHandle."""
        try:
            return self._handles[handle]
        except KeyError:
            raise BadHandle(f"no open file has the handle {handle}") from None

    def release(self, handle: int, *, wait: bool = True) -> None:
        """Release the last reference to an open file; errors cannot be reported any more.

        Raises WouldBlock while the file is being saved, unless the caller may ``wait`` for that.
        """
        opened = self._handles.get(handle)
        if opened is None:
            return
        inode = opened.inode
        if not inode.lock.acquire(blocking=wait):
            raise WouldBlock(inode.name)
        try:
            with self._lock:
                if self._handles.pop(handle, None) is None:
                    return
            self._journal.write(FileClosed(handle))
            if opened.reader is not None:
                opened.reader.close()
            with self._lock:
                inode.handles -= 1
                inode.writers -= opened.writable
            self.contents.drop_if_unneeded(inode)
            spool = inode.spool
            # It was written through a map after its last close. Nobody waits for it, but it is
            # saved soon. If that fails, the next interval tries again.
            late = spool is not None and spool.dirty and not (inode.writers or spool.failed)
        finally:
            inode.lock.release()
        self._namespace.inodes.drop_unused(inode)
        if late:
            self.write_back.save_soon(inode)

    def update_gauges(self) -> None:
        """Bring the gauges up to date; called every second, not at every write."""
        self._metrics.open_handles.set(len(self._handles))
        self._metrics.spool_used_bytes.set(self.contents.budget.used_bytes)
        self._metrics.spool_memory_used_bytes.set(self.contents.memory.used_bytes)
        self._metrics.dirty_bytes.set(sum(inode.unsaved_bytes for inode in self.contents.dirty()))

    # --- reading -----------------------------------------------------------------------

    def pinned(self, handle: int) -> ObjectInfo | None:
        """The version that a handle reads, or None if the bytes are local."""
        inode = self.get(handle).inode
        return inode.remote if inode.spool is None else None

    def read(self, handle: int, offset: int, size: int, *, wait: bool = True) -> ReadResult:
        """Bytes of one file: the spool's if there is one, else the pinned version's.

        Raises Stale when the pinned version is gone, the store's errors, and WouldBlock if the
        bytes are not here and ``wait`` is False.
        """
        while True:
            inode = self.get(handle).inode
            used, spool = inode.remote, inode.spool
            try:
                return self._read(handle, offset, size, wait)
            except Stale:
                # Meanwhile the file got another name, or lost it and was kept in the spool, or
                # more of it was given up.
                may_come = spool is not None and self._uploader.is_in_flight(spool)
                if inode.spool is spool and inode.remote in (None, used) and not may_come:
                    raise

    def _read(self, handle: int, offset: int, size: int, wait: bool) -> ReadResult:
        opened = self.get(handle)
        inode = opened.inode
        spool = inode.spool
        if spool is not None:
            if wait and spool.lacks(offset, size):
                with self._namespace.subtree_locks.shared(inode):  # objects are read by their key
                    self.saver.complete_upload(inode)
            if not inode.lock.acquire(blocking=wait):
                raise WouldBlock(inode.name)
            try:
                data = self.contents.read(inode, offset, size, wait=wait)
                if data is not None:
                    self._metrics.read_bytes.inc(len(data))
                    return ReadResult([memoryview(data)], _nothing)
            finally:
                inode.lock.release()
        if not wait:
            raise WouldBlock(inode.name)
        reader = opened.reader
        remote = inode.remote
        if reader is None or (remote is not None and reader.info is not remote):
            reader = self._pin(opened)
        result = reader.read(offset, size)
        self._metrics.read_bytes.inc(sum(map(len, result.views)))
        return result

    def _pin(self, opened: FileHandle) -> ObjectReader:
        """A reader of the inode's version: the first one, or one after this mount's own write."""
        with self._lock:
            remote = opened.inode.remote
            if remote is None:
                raise Stale(f"`{opened.inode.key}` has no content in the store any more")
            old = opened.reader
            if old is None or old.info is not remote:
                opened.reader = ObjectReader(self._fetcher, remote)
                if old is not None:
                    old.close()
            assert opened.reader is not None
            return opened.reader

    # --- writing -----------------------------------------------------------------------

    def create(
        self, parent: Directory, name: str, attributes: Mapping[str, int], *, exclusive: bool
    ) -> File:
        """A new, empty file that the store has not seen yet.

        Args:
            exclusive: if somebody else makes an object of this name before the file is saved,
                saving it fails.
        """
        self._check_open()
        inode = self._namespace.inodes.add_file(parent, name, None)
        inode.attributes = {"mtime_ns": time.time_ns(), **attributes}
        spool = self.contents.create(inode)
        spool.dirty = True
        spool.set_exclusive(exclusive)
        return inode

    def fits_in_spool(self, handle: int, offset: int, size: int) -> bool:
        """Whether a write of so many bytes needs nothing from the store."""
        spool = self.get(handle).inode.spool
        if spool is None or spool.missing or spool.unsettled(offset, size):
            return False
        return self.contents.budget.free_bytes >= spool.needed_bytes(offset, size)

    def write(self, handle: int, offset: int, data: bytes | memoryview) -> int:
        """Write all of ``data``. Raises BadHandle, SpoolFull, and a download's errors."""
        opened = self.get(handle)
        if not opened.writable:
            raise BadHandle("the file was opened for reading only")
        inode, size = opened.inode, len(data)
        self._check_length(inode, offset + size)
        with inode.lock:
            self._check_open()
            spool = self.write_back.prepare(inode, offset, size)
            self.write_back.settle(inode, spool, offset, size)
            self.write_back.make_room(inode, spool, spool.needed_bytes(offset, size))
            spool.begin_change(inode.remote)  # again: making room may have saved the file
            was_dirty = spool.dirty
            spool.write(offset, data)
            inode.touch()
            if not was_dirty:
                self._namespace.inodes.note(inode)
            if self._uploader.has_full_parts(spool) and not inode.detached:
                self.saver.send_full_parts(inode, spool)
        self._metrics.written_bytes.inc(size)
        return size

    def _check_open(self) -> None:
        if self._ended:
            raise Unavailable("the sidecar is ending, and saves no more", "start it again")

    def _check_length(self, inode: File, size_bytes: int) -> None:
        """Refuse at once a length that no object can have. Raises TooLarge."""
        most = self._store.limits.max_object_bytes
        if size_bytes > most:
            raise TooLarge(
                f"`{inode.key}`: {size_bytes} bytes; an object of this store holds {most}"
            )

    def truncate(self, inode: File, size: int) -> None:
        """Set a file's length. It is sent at once unless somebody has the file open to write."""
        self._check_length(inode, size)
        with inode.lock:
            self._check_open()
            if size == 0:
                self._empty(inode)
            elif size < inode.size_bytes:
                self.write_back.prepare_to_shorten(inode, size).truncate(size)
            else:
                longer_bytes = size - inode.size_bytes
                spool = self.write_back.prepare(inode, inode.size_bytes, longer_bytes)
                self.write_back.make_room(inode, spool, longer_bytes)
                spool.begin_change(inode.remote)
                spool.truncate(size)
            inode.touch()
            self._namespace.inodes.note(inode)
            if not inode.writers:
                self.saver.save(inode)

    def _empty(self, inode: File) -> None:
        self.contents.empty(inode)
        inode.touch()

    def set_attributes(self, inode: File, changes: Mapping[str, int]) -> None:
        """Keep mode, uid, gid or mtime_ns with the object: with the next one, or soon.

        A program that has just closed a file sets its time, its mode and its owner, one by one,
        and may rename it. All that becomes one request (:meth:`WriteBack.save_attributes`). For a
        file that this mount has not just made, they are saved when this returns.

        Raises Stale if the object is another version by now, and the store's errors.
        """
        with inode.lock:
            before = inode.attributes
            inode.attributes = {**before, **changes}
            if inode.spool is not None:
                inode.spool.begin_change(inode.remote)
                inode.spool.dirty = True
                if self._uploader.is_in_flight(inode.spool):
                    inode.spool.log.note_attributes_set()
            elif inode.remote is not None and not inode.detached and inode.parent is not None:
                now_s = time.monotonic()
                if now_s - inode.saved_s < _JUST_SAVED_S and self.contents.keep(inode):
                    inode.attributes_set_s = now_s
                else:
                    try:
                        self.saver.copy(inode, inode.key)
                    except Stale:
                        inode.attributes = before
                        self._namespace.invalidate(inode)
                        raise
                    except SidecarError:
                        inode.attributes = before
                        raise
                    self._namespace.apply_version(inode)
            self._namespace.inodes.note(inode)

    def flush(self, handle: int) -> None:
        """close(2) or fsync(2): return when the store has the bytes, or raise why it has not.

        For a handle for reading only if nobody writes: it may have made the file.
        """
        opened = self.get(handle)
        if opened.writable or not opened.inode.writers:
            self.saver.save(opened.inode)

    def drain(
        self, deadline_s: float, progress: Callable[[], None]
    ) -> dict[str, SidecarError | None]:
        """As :meth:`FileSystem.drain`."""
        # Memory ends with this run, and the disk needs time for what is not saved.
        copying_s = self.contents.memory.used_bytes / _COPIED_BYTES_PER_S
        self.write_back.drain(deadline_s - copying_s, progress)
        self._ended = True
        keep = functools.partial(self.contents.keep_on_disk, is_last=False)
        keeping = threading.Thread(target=keep, name="keep on disk")
        keeping.start()
        unsaved = self.write_back.drain(deadline_s, progress)
        keeping.join()
        self.contents.keep_on_disk(is_last=True)
        return unsaved

    # --- losing a name -------------------------------------------------------------------

    @contextlib.contextmanager
    def losing_name(self, inode: File | None) -> Iterator[None]:
        """A block in which a file is deleted or replaced through this mount; None: nothing is.

        Programs that have it open go on (W6, R5). Those that open it meanwhile wait, and find it
        gone, or still there if the block fails.
        """
        if inode is None:
            yield
            return
        with self._lost_name:
            self._losing_name.add(inode.id)
            inode.handles += self._contested.hold(inode)
        try:
            self._keep_content(inode)
            yield
        finally:
            with self._lost_name:
                self._losing_name.discard(inode.id)
                self._lost_name.notify_all()
        self.contents.release_unlinked(inode)

    def let_go_of_contested(self) -> None:
        """Close files that :meth:`losing_name` kept open for programs that had looked them up."""
        for inode in self._contested.expired():
            with inode.lock:
                with self._lock:
                    inode.handles -= 1
                self.contents.drop_if_unneeded(inode)
            self._namespace.inodes.drop_unused(inode)

    def _keep_content(self, inode: File) -> None:
        """Keep the content of an open file whose object is about to be deleted.

        If it does not fit into the spool, it is not kept, and its readers get ESTALE.
        """
        with inode.lock:
            if not inode.handles:
                return
            try:
                self.saver.complete_upload(inode)
                if inode.remote is not None:
                    spool = self.contents.ensure(inode)
                    self.write_back.recall(inode, spool, spool.missing)
            except (SpoolFull, StoreError):
                return


def is_writable(flags: int) -> bool:
    """Whether flags of open(2) ask for writing."""
    return flags & os.O_ACCMODE != os.O_RDONLY
