"""Open files: reading a pinned version, writing to the spool, and the truth at close."""

from __future__ import annotations

import contextlib
import logging
import os
import stat
import threading
import time
from collections.abc import Callable, Collection, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor, wait
from typing import NamedTuple

from sidecar import logs
from sidecar.errors import (
    AlreadyExists,
    BadHandle,
    NotFound,
    SidecarError,
    SpoolFull,
    Stale,
    StateUnusable,
    StoreError,
    TooLarge,
    Unavailable,
    WouldBlock,
)
from sidecar.metrics import VolumeMetrics
from sidecar.mounter.filesystem.attributes import beside_metadata, from_metadata
from sidecar.mounter.filesystem.inodes import Directory, File
from sidecar.mounter.filesystem.journal import HANDLE, Journal, Record, UnsavedFile
from sidecar.mounter.filesystem.namespace import Namespace
from sidecar.mounter.reading.fetcher import Fetcher
from sidecar.mounter.reading.object_reader import ObjectReader, ReadResult
from sidecar.mounter.store.interface import Condition, ObjectInfo
from sidecar.mounter.writing.active_upload import Description
from sidecar.mounter.writing.spool import Spool, SpoolFile
from sidecar.mounter.writing.spool_log import Attempt
from sidecar.mounter.writing.uploader import Uploader

log = logging.getLogger(__name__)

WHOLE_BYTES = 64 * 1024 * 1024
"""Objects up to this size are fetched whole when they are opened and written to."""
BULK_PARTS = 16
"""Who sends so many parts between two intervals is copying, and not keeping a log."""
_COPY_BYTES = 8 * 1024 * 1024
_SAVERS = 4
_ROOM_POLL_S = 0.05
_PROGRESS_S = 1.0


def _nothing() -> None:
    """Nothing to release, and nobody to tell."""


class Left(NamedTuple):
    """What is not in the store yet: how many files, and their lengths together."""

    files: int
    size_bytes: int


class FileHandle:
    """One open file.

    Attributes:
        writable: opened with O_WRONLY or O_RDWR.
        backing_id: what serves it instead, where a transport needs no file system for it.
        reader: reads the pinned version; made at the first read.
    """

    __slots__ = ("backing_id", "inode", "reader", "writable")

    def __init__(self, inode: File, writable: bool, backing_id: int) -> None:
        self.inode = inode
        self.writable = writable
        self.backing_id = backing_id
        self.reader: ObjectReader | None = None


class OpenFiles:
    """Contents of the files of one mount. Safe to use from any thread."""

    def __init__(
        self,
        namespace: Namespace,
        fetcher: Fetcher,
        spool: Spool,
        uploader: Uploader,
        metrics: VolumeMetrics,
        journal: Journal,
    ) -> None:
        self._namespace = namespace
        self._journal = journal
        self._fetcher = fetcher
        self._store = fetcher.store
        self._spool = spool
        self._uploader = uploader
        self._metrics = metrics
        self._lock = threading.RLock()
        self._leaving: set[int] = set()  # inodes that are losing their name just now
        self._leaving_changed = threading.Condition(self._lock)
        self._handles: dict[int, FileHandle] = {}
        self._next = 1
        self._spooled: dict[int, File] = {}  # by inode, oldest first
        self._bulk: dict[int, int] = {}  # parts sent, by inode, at the last interval
        self._is_settling = False
        self._savers = ThreadPoolExecutor(_SAVERS, thread_name_prefix="save")
        self._ended = False

    # --- handles -----------------------------------------------------------------------

    def open(
        self,
        inode: File,
        writable: bool,
        *,
        truncate: bool = False,
        backing_id: int = 0,
        wait: bool = True,
    ) -> int:
        """A new handle. With ``truncate`` the file is empty for everyone from now on.

        Raises Stale for a file that lost its name and that nobody has open: at ESTALE open(2)
        looks for the name again (fs/namei.c, do_filp_open). WouldBlock while it is losing it,
        unless the caller may ``wait``.
        """
        if truncate:
            with inode.lock:  # which losing a name needs, too
                self._check_has_content(inode)
                self._empty(inode)
                self._namespace.inodes.note(inode)
                return self._give_handle(inode, writable, backing_id)
        with self._leaving_changed:
            if inode.id in self._leaving:
                if not wait:
                    raise WouldBlock(inode.name)
                self._leaving_changed.wait_for(lambda: inode.id not in self._leaving)
            self._check_has_content(inode)
            return self._give_handle(inode, writable, backing_id)

    def _check_has_content(self, inode: File) -> None:
        if inode.detached and inode.spool is None:
            raise Stale(f"`{inode.name}` was deleted or replaced")

    def _give_handle(self, inode: File, writable: bool, backing_id: int) -> int:
        with self._lock:
            number = self._next
            self._next += 1
            self._handles[number] = FileHandle(inode, writable, backing_id)
            inode.handles += 1
            inode.writers += writable
        record = ("open", number, inode.id, writable, backing_id)
        self._journal.give(HANDLE, [number], [record])
        return number

    def opened(self) -> list[FileHandle]:
        """Every open file."""
        return list(self._handles.values())

    def records(self) -> list[Record]:
        """The open handles, for a successor. Takes no lock."""
        return [
            ("open", number, opened.inode.id, opened.writable, opened.backing_id)
            for number, opened in list(self._handles.items())
        ]

    @property
    def last_number(self) -> int:
        """The highest handle that was ever given out."""
        return self._next - 1

    def restore(self, handles: dict[int, tuple[File, bool, int]], last_number: int) -> None:
        """Take over a predecessor's handles: number to (inode, writable, backing id)."""
        with self._lock:
            for number, (inode, writable, backing_id) in handles.items():
                self._handles[number] = FileHandle(inode, writable, backing_id)
                inode.handles += 1
                inode.writers += writable
            self._next = last_number + 1
            for inode_ in self._namespace.inodes:
                if isinstance(inode_, File) and inode_.spool is not None:
                    self._spooled[inode_.id] = inode_
                    self._uploader.adopt(inode_.spool)
            kept = [inode.spool.path for inode in self._spooled.values() if inode.spool is not None]
            self._uploader.abandon(self._spool.leftovers(kept))

    def get(self, handle: int) -> FileHandle:
        """The handle of a number. Raises BadHandle."""
        try:
            return self._handles[handle]
        except KeyError:
            raise BadHandle(f"no open file has the handle {handle}") from None

    def release(self, handle: int, *, wait: bool = True) -> None:
        """The last reference to an open file is gone; nothing can be reported any more.

        Raises WouldBlock while it is being saved, unless the caller may ``wait`` for that.
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
            self._journal.write(("closed", handle))
            if opened.reader is not None:
                opened.reader.close()
            with self._lock:
                inode.handles -= 1
                inode.writers -= opened.writable
            self._drop_spool_if_done(inode)
            spool = inode.spool
            # Written through a map after its last close: nobody waits for it, but it is saved
            # soon. What could not be saved waits for the next interval.
            late = spool is not None and spool.dirty and not (inode.writers or spool.failed)
        finally:
            inode.lock.release()
        self._namespace.inodes.drop_unused(inode)
        if late:
            self._savers.submit(self._save_late, inode)

    # --- reading -----------------------------------------------------------------------

    def pinned(self, handle: int) -> ObjectInfo | None:
        """The version that a handle reads; None where it reads what is here, not the store's."""
        inode = self.get(handle).inode
        return inode.remote if inode.spool is None else None

    def read(self, handle: int, offset: int, size: int, *, wait: bool = True) -> ReadResult:
        """Bytes of one file: the spool's if there is one, else the pinned version's.

        Raises Stale when the pinned version is gone, what the store raises, and WouldBlock
        where the bytes are not here and the caller does not ``wait``.
        """
        while True:
            used = self.get(handle).inode.remote
            try:
                return self._read(handle, offset, size, wait)
            except Stale:
                inode = self.get(handle).inode
                # Meanwhile it got another name, or lost it and was kept in the spool.
                if inode.spool is None and inode.remote in (None, used):
                    raise

    def _read(self, handle: int, offset: int, size: int, wait: bool) -> ReadResult:
        opened = self.get(handle)
        inode = opened.inode
        if inode.spool is not None:
            if wait and inode.spool.missing:
                # What only an upload has is made an object, and others are read by their key.
                with self._namespace.subtree_locks.shared(inode):
                    self._make_readable_by_now(inode)
            if not inode.lock.acquire(blocking=wait):
                raise WouldBlock(inode.name)
            try:
                data = self._read_spool(inode, offset, size, wait)
                if data is not None:
                    self._metrics.read_bytes.inc(len(data))
                    return ReadResult([memoryview(data)], _nothing)
            finally:
                inode.lock.release()
        reader = opened.reader
        remote = inode.remote
        if reader is None or (remote is not None and reader.info is not remote):
            reader = self._pin(opened)
        result = reader.read(offset, size, wait=wait)
        self._metrics.read_bytes.inc(sum(map(len, result.views)))
        return result

    def _read_spool(
        self, inode: File, offset: int, size: int, wait: bool
    ) -> bytes | memoryview | None:
        """Bytes of the spool, and of the store what is missing there; None without a spool."""
        spool = inode.spool
        if spool is None or not spool.missing:
            return spool.read(offset, size) if spool is not None else None
        size = max(0, min(size, spool.size_bytes - offset))
        if spool.missing.isdisjoint(spool.layout.covering(offset, size)):
            return spool.read(offset, size)
        if not wait:
            raise WouldBlock(inode.name)
        base = self._base(inode, spool)

        def fetch(first: int, here: memoryview) -> None:
            if base is None:
                raise Stale(f"`{inode.key}`: what was given up of it is gone")
            self._fetcher.get(base, first, here)

        return spool.read_through(offset, size, fetch)

    def _pin(self, opened: FileHandle) -> ObjectReader:
        """A reader of the inode's version: the first one, or after this mount wrote a new one."""
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
            exclusive: where somebody else makes an object of this name before it is saved,
                saving it fails.
        """
        self._check_open()
        inode = self._namespace.inodes.add_file(parent, name, None)
        inode.attributes.update(attributes)
        inode.attributes.setdefault("mtime_ns", time.time_ns())
        self._give_spool(inode, self._spool.create())
        assert inode.spool is not None
        inode.spool.dirty = True
        inode.spool.set_exclusive(exclusive)
        return inode

    def takes(self, handle: int, offset: int, size: int) -> bool:
        """Whether the spool takes a write of so many bytes without asking the store."""
        spool = self.get(handle).inode.spool
        if spool is None or spool.missing:
            return False
        return self._spool.budget.free_bytes >= size + max(0, offset - spool.size_bytes)

    def write(self, handle: int, offset: int, data: bytes | memoryview) -> int:
        """Write all of ``data``. Raises BadHandle, SpoolFull, and what a download raises."""
        opened = self.get(handle)
        if not opened.writable:
            raise BadHandle("the file was opened for reading only")
        inode = opened.inode
        self._check_length(inode, offset + len(data))
        with inode.lock:
            self._check_open()
            spool = self._prepare(inode, offset, len(data))
            self._make_room(inode, spool, len(data) + max(0, offset - spool.size_bytes))
            self._begin_change(inode, spool)  # making room may have saved it
            was_dirty = spool.dirty
            spool.write(offset, data)
            inode.attributes["mtime_ns"] = time.time_ns()
            if not was_dirty:
                self._namespace.inodes.note(inode)
            if self._uploader.has_full_parts(spool) and not inode.detached:
                self._send_ahead(inode, spool)
        self._metrics.written_bytes.inc(len(data))
        return len(data)

    def _send_ahead(self, inode: File, spool: SpoolFile) -> None:
        with contextlib.suppress(StoreError):  # else it is sent when it is saved, or said then
            self._uploader.send_full_parts(inode.key, spool, self._description(inode))

    def _check_length(self, inode: File, size_bytes: int) -> None:
        """Refuse at once what no object can be. Raises TooLarge."""
        most = self._store.limits.max_object_bytes
        if size_bytes > most:
            raise TooLarge(
                f"`{inode.key}`: {size_bytes} bytes; an object of this store holds {most}"
            )

    def truncate(self, inode: File, size: int) -> None:
        """Set a file's length; sent to the store at once unless somebody has it open to write."""
        self._check_length(inode, size)
        with inode.lock:
            self._check_open()
            if size == 0:
                self._empty(inode)
            elif size < inode.size_bytes:
                self._prepare_to_shorten(inode, size).truncate(size)
            else:
                longer_bytes = size - inode.size_bytes
                spool = self._prepare(inode, inode.size_bytes, longer_bytes)
                self._make_room(inode, spool, longer_bytes)
                self._begin_change(inode, spool)
                spool.truncate(size)
            inode.attributes["mtime_ns"] = time.time_ns()
            self._namespace.inodes.note(inode)
            if not inode.writers:
                self.save(inode)

    def set_attributes(self, inode: File, changes: Mapping[str, int]) -> None:
        """Keep mode, uid, gid or mtime_ns with the object."""
        with inode.lock:
            inode.attributes.update(changes)
            if inode.spool is not None:
                self._begin_change(inode, inode.spool)
                inode.spool.dirty = True
                if self._uploader.is_in_flight(inode.spool):
                    inode.spool.log.note_attributes_set()
            elif inode.remote is not None and not inode.detached and inode.parent is not None:
                key = inode.key
                metadata = self._description(inode).metadata
                inode.remote = self._store.copy(key, key, metadata=metadata)
                self._namespace.apply_change(inode.parent, inode.name, inode.remote)
            self._namespace.inodes.note(inode)

    def flush(self, handle: int) -> None:
        """close(2) or fsync(2): return when the store has the bytes, or raise why not.

        Of a handle for reading only where nobody writes: it may have made the file.
        """
        opened = self.get(handle)
        if opened.writable or not opened.inode.writers:
            with opened.inode.lock:
                self.save(opened.inode)

    def save(self, inode: File) -> None:
        """Upload the spool if the store lacks it. Raises what the store raises."""
        with inode.lock:
            spool, parent = inode.spool, inode.parent
            if spool is None or not spool.dirty or inode.detached or parent is None:
                return
            try:
                inode.remote = self._upload(inode, spool)
            except AlreadyExists:
                self._give_way(inode)
                raise
            except SidecarError:
                spool.failed = True
                raise
            spool.dirty = spool.failed = spool.exclusive = False
            spool.attempts.clear()
            spool.rebase(inode.remote)
            spool.log.note_saved()
            inode.fresh_until_s = time.monotonic() + self._namespace.ttl_s
            self._namespace.apply_change(parent, inode.name, inode.remote)
            self._namespace.inodes.note(inode)
            self._drop_spool_if_done(inode)

    def _upload(self, inode: File, spool: SpoolFile) -> ObjectInfo:
        """Send a file, on condition that nobody else has changed the object; or over it.

        Of two writers the last one wins, whole; that there was another one is told.
        """
        description = self._description(inode)
        metadata = description.metadata
        self._base(inode, spool)
        condition = None
        if spool.exclusive:
            condition = Condition(absent=True)
            spool.log.note_exclusive(False)
        elif inode.remote is not None and inode.remote.key == inode.key:
            # After a rename its version is still the one of the old name.
            condition = Condition(version=inode.remote.version)
        before = list(spool.attempts)
        attempt = Attempt(spool.size_bytes, [metadata, *self._uploader.metadata_in_flight(spool)])
        spool.attempts.append(attempt)
        if condition is not None:
            spool.log.note_attempt(attempt)
        try:
            made = self._uploader.save(inode.key, spool, description, condition)
        except (AlreadyExists, Stale) as error:
            found = self._head_or_none(inode.key)
            # Of an attempt before, or of this one, if their answers were lost. In this order: what
            # an upload was begun with is in both, and the file may have changed in between.
            if found is not None and any(earlier.made(found) for earlier in before):
                ours = Condition(version=found.version)
                spool.update_base(found)  # it has what is missing here
                made = self._uploader.save(inode.key, spool, description, ours)
            elif found is not None and attempt.made(found):
                made = found
            elif isinstance(error, AlreadyExists) or spool.missing or inode.remote is None:
                raise  # what is to be overwritten is another version of what this one began as
            else:
                self._metrics.overwritten_versions.inc()
                logs.event(
                    log, "another writer's version is overwritten", logging.WARNING, key=inode.key
                )
                if found is not None:
                    description = self._described(inode.attributes, found)
                    metadata = description.metadata
                    spool.attempts.append(Attempt(spool.size_bytes, [metadata]))
                made = self._uploader.save(inode.key, spool, description)
        if made.metadata is None or dict(made.metadata) == metadata:
            return made
        if spool.log.attributes_set:
            return self._store.copy(inode.key, inode.key, version=made.version, metadata=metadata)
        # The object has the time at which its upload began, and so has the file from now on.
        inode.attributes.update(from_metadata(made.metadata))
        return made

    def _description(self, inode: File) -> Description:
        """What the next version of a file is made with: other tools' metadata and the rest stay.

        Raises what the store raises: a worker's successor asks again what its predecessor knew,
        as :meth:`InodeAttributes.load` does for who opens a file.
        """
        remote = inode.remote
        if remote is not None and (remote.metadata is None or remote.properties is None):
            inode.remote = remote = self._known(remote)
        return self._described(inode.attributes, remote)

    def _described(self, attributes: Mapping[str, int], like: ObjectInfo | None) -> Description:
        """A file with these attributes, in place of ``like``."""
        most = self._store.limits.max_metadata_bytes
        kept = like.metadata if like is not None else None
        return Description(beside_metadata(kept, attributes, stat.S_IFREG, most), like)

    def _known(self, remote: ObjectInfo) -> ObjectInfo:
        """With metadata and properties: of whatever has the name now, and is replaced."""
        try:
            found = self._store.head(remote.key)
        except NotFound:
            return remote._replace(metadata={}, properties={})
        return remote._replace(metadata=found.metadata, properties=found.properties)

    def _head_or_none(self, key: str) -> ObjectInfo | None:
        try:
            return self._store.head(key)
        except SidecarError:
            return None

    def _give_way(self, inode: File) -> None:
        """Somebody else made the object that was to be made here: the name is theirs."""
        parent = inode.parent
        assert parent is not None
        logs.event(log, "another writer made it first", logging.WARNING, key=inode.key)
        theirs = self._store.head(inode.key)
        self._namespace.apply_change(parent, inode.name, theirs)
        self._namespace.inodes.detach(inode)
        self.settle(inode)

    @contextlib.contextmanager
    def losing_name(self, inode: File | None) -> Iterator[None]:
        """A block in which a file is deleted or replaced through this mount; None: nothing is.

        Who has it open goes on (W6, R5). Who opens it meanwhile waits, and finds it gone, or
        still there if the block fails.
        """
        if inode is None:
            yield
            return
        with self._leaving_changed:
            self._leaving.add(inode.id)
        try:
            self._rescue(inode)
            yield
        finally:
            with self._leaving_changed:
                self._leaving.discard(inode.id)
                self._leaving_changed.notify_all()
        self.settle(inode)

    def _rescue(self, inode: File) -> None:
        """Keep the content of an open file whose object is about to be deleted.

        What does not fit into the spool is not kept: its readers get ESTALE.
        """
        with inode.lock:
            if inode.handles and inode.remote is not None:
                try:
                    spool = self._ensure_spool(inode)
                    self._recall(inode, spool, sorted(spool.missing))
                except (SpoolFull, StoreError):
                    return

    def dirty(self) -> list[File]:
        """Files that the store does not have as they are, the oldest first."""
        with self._lock:
            spooled = list(self._spooled.values())
        return [
            inode
            for inode in spooled
            if inode.spool is not None and inode.spool.dirty and not inode.detached
        ]

    def account(self) -> None:
        """Bring the gauges up to date; called every second, not at every write."""
        self._metrics.open_handles.set(len(self._handles))
        self._metrics.spool_used_bytes.set(self._spool.budget.used_bytes)
        self._metrics.dirty_bytes.set(
            sum(inode.spool.size_bytes for inode in self.dirty() if inode.spool is not None)
        )

    def left(self) -> Left:
        """What the store does not have yet."""
        inodes = self.dirty()
        return Left(len(inodes), sum(inode.size_bytes for inode in inodes))

    def settle_versions(self) -> None:
        """Drop the spool of files that are done with but for what the store calls them.

        To be called every second or so; asks in another thread. It is not asked when a file is
        saved: a server may have to read all of an object to know, and nobody needs it while
        the bytes are here.
        """
        with self._lock:
            done = [inode for inode in self._spooled.values() if self._is_done(inode)]
            if done and not self._is_settling:
                self._is_settling = True
                self._savers.submit(self._settle_versions, done)

    def _settle_versions(self, inodes: list[File]) -> None:
        try:
            for inode in inodes:
                with self._namespace.subtree_locks.shared(inode):
                    self._settle_version(inode)
        except SidecarError:
            pass  # the store's observer says what fails; it is asked again
        finally:
            self._is_settling = False

    def _settle_version(self, inode: File) -> None:
        """Takes no lock while it asks: reads and writes of the file go on."""
        remote, asked_s = inode.remote, time.monotonic()
        if remote is None or not self._is_done(inode):
            return
        found = self._store.resolve_version(remote)
        with inode.lock:
            if inode.remote is remote and self._is_done(inode):
                if not remote.has_final_version:
                    self._namespace.set_resolved_version(inode, found, asked_s)
                self._drop_spool_if_done(inode)

    def _is_done(self, inode: File) -> bool:
        """Whether a file with a name is saved, and nobody writes to it."""
        spool = inode.spool
        return spool is not None and not (spool.dirty or inode.writers or inode.detached)

    def sync(self, deadline_s: float) -> dict[str, SidecarError | None]:
        """:meth:`drain`, but for large new files whose parts are sent while they are written.

        They are made objects when they are closed, or when their writer pauses.
        """
        inodes = [inode for inode in self.dirty() if not self._is_bulk(inode)]
        return self._save_all(inodes, deadline_s)

    def drain(
        self, deadline_s: float, progress: Callable[[], None] = _nothing
    ) -> dict[str, SidecarError | None]:
        """Upload everything dirty before ``deadline_s`` (monotonic).

        The oldest first, and several at once. Returns what could not be saved: key to error,
        None where time ran out.

        Args:
            progress: called about once a second while that goes on.
        """
        return self._save_all(self.dirty(), deadline_s, progress)

    def end(self) -> None:
        """Take no more writes: what comes now would be lost."""
        self._ended = True

    def _save_all(
        self, inodes: list[File], deadline_s: float, progress: Callable[[], None] = _nothing
    ) -> dict[str, SidecarError | None]:
        failed: dict[int, SidecarError] = {}

        def save(inode: File) -> None:
            if time.monotonic() >= deadline_s:
                return
            try:
                with self._namespace.subtree_locks.shared(inode):
                    self.save(inode)
            except SidecarError as error:
                failed[inode.id] = error

        futures = [self._savers.submit(save, inode) for inode in inodes]
        while (left_s := deadline_s - time.monotonic()) > 0:
            if not wait(futures, min(_PROGRESS_S, left_s)).not_done:
                break
            progress()
        for future in futures:
            future.cancel()
        return {
            inode.key: failed.get(inode.id)
            for inode in inodes
            if (spool := inode.spool) is not None and spool.dirty and not inode.detached
        }

    def _is_bulk(self, inode: File) -> bool:
        spool = inode.spool
        if spool is None or not inode.writers:
            return False
        before, now = self._bulk.get(inode.id, 0), self._uploader.sent_parts(spool)
        self._bulk[inode.id] = now
        return now - before >= BULK_PARTS

    def _save_late(self, inode: File) -> None:
        try:
            with self._namespace.subtree_locks.shared(inode):
                self.save(inode)
        except SidecarError as error:
            logs.event(log, "not saved yet", logging.WARNING, key=inode.key, error=error)

    def settle(self, inode: File) -> None:
        """Drop what is no longer needed of a file that lost its name."""
        with inode.lock:
            if inode.detached and inode.spool is not None:
                self._uploader.drop(inode.spool)  # it will never be an object
            self._drop_spool_if_done(inode)

    def prepare_rename(self, inode: File) -> None:
        """Before a file gets another key: what only an upload to the old one has is kept."""
        with inode.lock:
            if inode.spool is not None:
                self._make_readable(inode, inode.spool)

    def salvage(self, unsaved: UnsavedFile) -> bool:
        """Upload what a run that ended left in the spool. Raises what the store raises.

        False for a file whose log cannot be used: nobody knows which of its bytes are there.
        """
        try:
            spool = self._spool.adopt(unsaved.spool_path)
        except FileNotFoundError:  # saved; the run ended before it could write that down
            return True
        except StateUnusable as error:
            kept = self._spool.set_aside(unsaved.spool_path)
            logs.event(
                log,
                "not saved: its spool file is kept",
                logging.ERROR,
                key=unsaved.key,
                path=str(kept),
                error=error,
            )
            return False
        self._uploader.adopt(spool)
        try:
            replaced = self._store.head(unsaved.key)
        except NotFound:
            replaced = None
        description = self._described(unsaved.attributes, replaced)
        metadata = description.metadata
        made = self._uploader.save(unsaved.key, spool, description)
        if spool.log.attributes_set and dict(made.metadata or {}) != metadata:
            self._store.copy(unsaved.key, unsaved.key, version=made.version, metadata=metadata)
        spool.discard()
        return True

    def abandon_leftovers(self) -> None:
        """Remove from the store what runs before this one began there and did not end."""
        self._uploader.abandon(self._spool.leftovers())

    # --- the lock of the inode is held -----------------------------------------------------

    def _ensure_spool(self, inode: File, needed_bytes: int | None = None) -> SpoolFile:
        """The inode's spool file, which has the object's content, or knows where that is.

        Args:
            needed_bytes: where it will be cut; what is behind that is not fetched.
        """
        if inode.spool is not None:
            return inode.spool
        spool = self._spool.create()
        try:
            if inode.remote is not None and inode.remote.size_bytes > WHOLE_BYTES:
                spool.begin_as(inode.remote)
            elif inode.remote is not None:
                self._download(inode.remote, spool, needed_bytes)
        except BaseException:
            spool.discard()
            raise
        spool.rebase(inode.remote)
        # One that lacks its end is what the file is from now on, whoever goes on with it.
        spool.dirty = inode.remote is not None and spool.size_bytes < inode.remote.size_bytes
        self._give_spool(inode, spool)
        return spool

    def _give_spool(self, inode: File, spool: SpoolFile) -> None:
        inode.spool = spool
        with self._lock:
            self._spooled[inode.id] = inode
        self._namespace.inodes.note(inode)

    def _download(self, remote: ObjectInfo, spool: SpoolFile, needed_bytes: int | None) -> None:
        end = remote.size_bytes if needed_bytes is None else min(needed_bytes, remote.size_bytes)
        buffer = bytearray(min(_COPY_BYTES, end))
        for offset in range(0, end, _COPY_BYTES):
            size = min(_COPY_BYTES, end - offset)
            with memoryview(buffer)[:size] as view:
                self._fetcher.get(remote, offset, view)
                spool.write(offset, view)

    def _check_open(self) -> None:
        if self._ended:
            raise Unavailable("the sidecar is ending, and saves no more", "start it again")

    def _begin_change(self, inode: File, spool: SpoolFile) -> None:
        """From here on the store's version and the spool go different ways."""
        if not spool.dirty:
            spool.rebase(inode.remote)

    def _prepare(self, inode: File, offset: int, size: int) -> SpoolFile:
        """The spool file, all parts of which that a change touches are there to be changed."""
        while True:
            spool = self._ensure_spool(inode)
            self._begin_change(inode, spool)
            if not spool.missing and not self._uploader.is_in_flight(spool):
                return spool
            touched = spool.parts_written_by(offset, size)
            lacking = spool.missing.intersection(touched)
            if (lacking and self._make_readable(inode, spool)) or self._must_look_again(
                inode, spool, touched
            ):
                continue
            self._recall(inode, spool, sorted(lacking))
            return spool

    def _prepare_to_shorten(self, inode: File, size: int) -> SpoolFile:
        """The spool file, of which the first ``size`` bytes are here or in its base."""
        while True:
            spool = self._ensure_spool(inode, size)
            self._begin_change(inode, spool)
            cut = set(spool.layout.covering(size, spool.size_bytes - size))
            kept = spool.layout.covering(0, size)
            if (
                not spool.missing.isdisjoint(cut.intersection(kept))
                and self._make_readable(inode, spool)
            ) or self._must_look_again(inode, spool, cut):
                continue
            return spool

    def _must_look_again(self, inode: File, spool: SpoolFile, numbers: Collection[int]) -> bool:
        """Tell an upload under way which parts are about to change.

        Whether an object had to be made of it for that, so that all is different now.
        """
        if self._uploader.must_restart(spool, numbers):
            if self._make_readable(inode, spool):
                return True
            self._uploader.drop(spool)
        self._uploader.invalidate(spool, numbers)
        return False

    def _make_readable(self, inode: File, spool: SpoolFile) -> bool:
        """Make an object of what only an upload under way has. Whether that was necessary."""
        if not spool.missing or not self._uploader.is_in_flight(spool) or inode.detached:
            return False
        self.save(inode)
        return True

    def _make_readable_by_now(self, inode: File) -> None:
        with inode.lock:
            if inode.spool is not None:
                self._make_readable(inode, inode.spool)

    def _base(self, inode: File, spool: SpoolFile) -> ObjectInfo | None:
        """What has the parts that are missing: it has moved with the inode, perhaps."""
        if spool.base is not None and inode.remote is not None:
            spool.update_base(inode.remote)
        return spool.base if spool.dirty else inode.remote

    def _recall(self, inode: File, spool: SpoolFile, numbers: list[int]) -> None:
        """Get back parts that only the store has. Raises SpoolFull, Stale, what a GET raises."""
        base = self._base(inode, spool)
        for number in numbers:
            if base is None:
                raise Stale(f"`{inode.key}`: what was given up of it is gone")
            start, size = spool.span(number)
            self._make_room(inode, spool, size)
            with memoryview(bytearray(size)) as view:
                self._fetcher.get(base, start, view)
                spool.recall(number, view)

    def _make_room(self, inode: File, spool: SpoolFile, size: int) -> None:
        """Wait until the spool takes ``size`` bytes, as long as sending makes room there.

        Raises SpoolFull where it does not.
        """
        budget = self._spool.budget
        if size > budget.total_bytes:
            budget.check(size)
        saved = False
        while budget.free_bytes < size:
            if self._evict(size):
                continue
            if self._uploader.is_busy(spool):
                time.sleep(_ROOM_POLL_S)
            elif not saved and inode.writers and spool.dirty and not inode.detached:
                saved = True
                with contextlib.suppress(StoreError):  # which its observer says, not each write
                    self.save(inode)  # somebody writes to it: the spool file stays
            else:
                budget.check(size)
                return

    def _evict(self, size: int) -> bool:
        """Give up parts that the store has, of files that nobody is changing now."""
        budget = self._spool.budget
        with self._lock:
            inodes = list(self._spooled.values())
        made_room = False
        for inode in inodes:
            if not inode.lock.acquire(blocking=False):
                continue
            try:
                spool = inode.spool
                for number in self._uploader.evictable(spool) if spool is not None else ():
                    assert spool is not None
                    if budget.free_bytes >= size:
                        return True
                    made_room = spool.evict([number]) or made_room
            finally:
                inode.lock.release()
        return made_room

    def _empty(self, inode: File) -> None:
        if inode.spool is None:
            self._give_spool(inode, self._spool.create())
        spool = inode.spool
        assert spool is not None
        self._begin_change(inode, spool)
        self._uploader.drop(spool)
        spool.truncate(0)
        spool.rebase(None)
        inode.attributes["mtime_ns"] = time.time_ns()

    def _drop_spool_if_done(self, inode: File) -> None:
        spool = inode.spool
        if spool is None:
            return
        unneeded = inode.detached and not inode.handles
        # A version that may get another name pins nothing: until then the bytes are needed.
        is_settled = inode.remote is None or inode.remote.has_final_version
        if unneeded or (self._is_done(inode) and is_settled):
            inode.spool = None
            with self._lock:
                self._spooled.pop(inode.id, None)
                self._bulk.pop(inode.id, None)
            # First: a successor must not look for the file, also of an inode that nothing but
            # the file held.
            self._namespace.inodes.note(inode)
            self._namespace.inodes.drop_unused(inode)
            self._uploader.drop(spool)
            spool.discard()


def is_writable(flags: int) -> bool:
    """Whether open(2) flags ask for writing."""
    return flags & os.O_ACCMODE != os.O_RDONLY
