"""Open files: reading a pinned version, writing to the spool, and the truth at close."""

from __future__ import annotations

import os
import stat
import threading
import time
from collections.abc import Mapping

from sidecar.errors import (
    BadHandle,
    SidecarError,
    SpoolFull,
    Stale,
    StoreError,
    WouldBlock,
)
from sidecar.metrics import VolumeMetrics
from sidecar.mounter.filesystem.attributes import to_metadata
from sidecar.mounter.filesystem.journal import HANDLE, Journal, Record, Unsaved
from sidecar.mounter.filesystem.nodes import Directory, File
from sidecar.mounter.filesystem.spool import Spool, SpoolFile
from sidecar.mounter.filesystem.tree import Tree
from sidecar.mounter.filesystem.uploads import Uploader
from sidecar.mounter.prefetch import Fetcher, ObjectReader, ReadResult
from sidecar.mounter.store.base import ObjectInfo

_COPY_BYTES = 8 * 1024 * 1024


class FileHandle:
    """One open file.

    Attributes:
        writable: opened with O_WRONLY or O_RDWR.
        backing_id: what serves it instead, where a transport needs no file system for it.
        reader: reads the pinned version; made at the first read.
    """

    __slots__ = ("backing_id", "node", "reader", "writable")

    def __init__(self, node: File, writable: bool, backing_id: int) -> None:
        self.node = node
        self.writable = writable
        self.backing_id = backing_id
        self.reader: ObjectReader | None = None


class Files:
    """Contents of the files of one mount. Safe to use from any thread."""

    def __init__(
        self,
        tree: Tree,
        fetcher: Fetcher,
        spool: Spool,
        uploader: Uploader,
        metrics: VolumeMetrics,
        journal: Journal,
    ) -> None:
        self._tree = tree
        self._journal = journal
        self._fetcher = fetcher
        self._store = fetcher.store
        self._spool = spool
        self._uploader = uploader
        self._metrics = metrics
        self._lock = threading.Lock()
        self._handles: dict[int, FileHandle] = {}
        self._next = 1
        self._spooled: dict[int, File] = {}  # by node, oldest first

    # --- handles -----------------------------------------------------------------------

    def open(
        self, node: File, writable: bool, *, truncate: bool = False, backing_id: int = 0
    ) -> int:
        """A new handle. With ``truncate`` the file is empty for everyone from now on."""
        if truncate:
            with node.lock:
                self._empty(node)
                self._tree.nodes.note(node)
        with self._lock:
            number = self._next
            self._next += 1
            self._handles[number] = FileHandle(node, writable, backing_id)
            node.handles += 1
            node.writers += writable
        record = ("open", number, node.id, writable, backing_id)
        self._journal.write(record, (HANDLE, number))
        return number

    def opened(self) -> list[FileHandle]:
        """Every open file."""
        return list(self._handles.values())

    def records(self) -> list[Record]:
        """The open handles, for a successor. Takes no lock."""
        return [
            ("open", number, opened.node.id, opened.writable, opened.backing_id)
            for number, opened in list(self._handles.items())
        ]

    @property
    def last_number(self) -> int:
        """The highest handle that was ever given out."""
        return self._next - 1

    def restore(self, handles: dict[int, tuple[File, bool, int]], last_number: int) -> None:
        """Take over a predecessor's handles: number to (node, writable, backing id)."""
        with self._lock:
            for number, (node, writable, backing_id) in handles.items():
                self._handles[number] = FileHandle(node, writable, backing_id)
                node.handles += 1
                node.writers += writable
            self._next = last_number + 1
            for node_ in self._tree.nodes:
                if isinstance(node_, File) and node_.spool is not None:
                    self._spooled[node_.id] = node_

    def get(self, handle: int) -> FileHandle:
        """The handle of a number. Raises BadHandle."""
        try:
            return self._handles[handle]
        except KeyError:
            raise BadHandle(f"no open file has the handle {handle}") from None

    def release(self, handle: int) -> None:
        """The last reference to an open file is gone; nothing can be reported any more."""
        with self._lock:
            opened = self._handles.pop(handle, None)
        if opened is None:
            return
        self._journal.write(("closed", handle))
        if opened.reader is not None:
            opened.reader.close()
        node = opened.node
        with node.lock:
            with self._lock:
                node.handles -= 1
                node.writers -= opened.writable
            self._drop_spool_if_done(node)
        self._tree.nodes.drop_unused(node)

    # --- reading -----------------------------------------------------------------------

    def pinned(self, handle: int) -> ObjectInfo | None:
        """The version that a handle reads; None where it reads what is here, not the store's."""
        node = self.get(handle).node
        return node.remote if node.spool is None else None

    def read(self, handle: int, offset: int, size: int, *, wait: bool = True) -> ReadResult:
        """Bytes of one file: the spool's if there is one, else the pinned version's.

        Raises Stale when the pinned version is gone, what the store raises, and WouldBlock
        where the bytes are not here and the caller does not ``wait``.
        """
        opened = self.get(handle)
        node = opened.node
        if node.spool is not None:
            if not node.lock.acquire(blocking=wait):
                raise WouldBlock(node.name)
            try:
                if node.spool is not None:
                    data = node.spool.read(offset, size)
                    self._metrics.read_bytes.inc(len(data))
                    return ReadResult([memoryview(data)], _nothing)
            finally:
                node.lock.release()
        reader = opened.reader
        remote = node.remote
        if reader is None or (remote is not None and reader.info is not remote):
            reader = self._pin(opened)
        result = reader.read(offset, size, wait=wait)
        self._metrics.read_bytes.inc(sum(map(len, result.views)))
        return result

    def _pin(self, opened: FileHandle) -> ObjectReader:
        """A reader of the node's version: the first one, or after this mount wrote a new one."""
        with self._lock:
            remote = opened.node.remote
            if remote is None:
                raise Stale(f"`{opened.node.key}` has no content in the store any more")
            old = opened.reader
            if old is None or old.info is not remote:
                opened.reader = ObjectReader(self._fetcher, remote)
                if old is not None:
                    old.close()
            assert opened.reader is not None
            return opened.reader

    # --- writing -----------------------------------------------------------------------

    def create(self, parent: Directory, name: str, attributes: Mapping[str, int]) -> File:
        """A new, empty file that the store has not seen yet."""
        node = self._tree.nodes.add_file(parent, name, None)
        node.attributes.update(attributes)
        node.attributes.setdefault("mtime_ns", time.time_ns())
        self._give_spool(node, self._spool.create())
        assert node.spool is not None
        node.spool.dirty = True
        return node

    def write(self, handle: int, offset: int, data: bytes | memoryview) -> int:
        """Write all of ``data``. Raises BadHandle, SpoolFull, and what a download raises."""
        opened = self.get(handle)
        if not opened.writable:
            raise BadHandle("the file was opened for reading only")
        node = opened.node
        with node.lock:
            spool = self._ensure_spool(node)
            was_dirty = spool.dirty
            spool.write(offset, data)
            node.attributes["mtime_ns"] = time.time_ns()
            if not was_dirty:
                self._tree.nodes.note(node)
        self._metrics.written_bytes.inc(len(data))
        return len(data)

    def truncate(self, node: File, size: int) -> None:
        """Set a file's length; sent to the store at once unless somebody has it open to write."""
        with node.lock:
            if size == 0:
                self._empty(node)
            else:
                self._ensure_spool(node).truncate(size)
            node.attributes["mtime_ns"] = time.time_ns()
            self._tree.nodes.note(node)
            if not node.writers:
                self.save(node)

    def set_attributes(self, node: File, changes: Mapping[str, int]) -> None:
        """Keep mode, uid, gid or mtime_ns with the object."""
        with node.lock:
            node.attributes.update(changes)
            if node.spool is not None:
                node.spool.dirty = True
            elif node.remote is not None and not node.detached and node.parent is not None:
                key = node.key
                # Other tools' keys stay. What a listing without metadata knows is completed
                # before (Tree.complete).
                kept = dict(node.remote.metadata or {})
                metadata = {**kept, **to_metadata(node.attributes, stat.S_IFREG)}
                node.remote = self._store.copy(key, key, metadata=metadata)
                self._tree.changed(node.parent, node.name, True, node.remote)
            self._tree.nodes.note(node)

    def flush(self, handle: int) -> None:
        """close(2) or fsync(2): return when the store has the bytes, or raise why not.

        Of a handle for reading only where nobody writes: it may have made the file.
        """
        opened = self.get(handle)
        if opened.writable or not opened.node.writers:
            with opened.node.lock:
                self.save(opened.node)

    def save(self, node: File) -> None:
        """Upload the spool if the store lacks it. Raises what the store raises."""
        with node.lock:
            spool, parent = node.spool, node.parent
            if spool is None or not spool.dirty or node.detached or parent is None:
                return
            metadata = to_metadata(node.attributes, stat.S_IFREG)
            node.remote = self._uploader.upload(node.key, spool, metadata)
            spool.dirty = False
            self._metrics.uploaded_bytes.inc(spool.size_bytes)
            node.fresh_until_s = time.monotonic() + self._tree.ttl_s
            self._tree.changed(parent, node.name, True, node.remote)
            self._tree.nodes.note(node)
            self._drop_spool_if_done(node)

    def rescue(self, node: File) -> None:
        """Keep the content of an open file whose object is about to be deleted.

        What does not fit into the spool is not kept: its readers get ESTALE.
        """
        with node.lock:
            if node.handles and node.spool is None and node.remote is not None:
                try:
                    self._ensure_spool(node).dirty = False
                except (SpoolFull, StoreError):
                    return

    def dirty(self) -> list[File]:
        """Files that the store does not have as they are, the oldest first."""
        with self._lock:
            spooled = list(self._spooled.values())
        return [
            node
            for node in spooled
            if node.spool is not None and node.spool.dirty and not node.detached
        ]

    def account(self) -> None:
        """Bring the gauges up to date; called every second, not at every write."""
        self._metrics.open_handles.set(len(self._handles))
        self._metrics.spool_used_bytes.set(self._spool.budget.used_bytes)
        self._metrics.dirty_bytes.set(
            sum(node.spool.size_bytes for node in self.dirty() if node.spool is not None)
        )

    def drain(self, deadline_s: float) -> dict[str, SidecarError | None]:
        """Upload everything dirty before ``deadline_s`` (monotonic).

        Returns what could not be saved: key to error, None where time ran out.
        """
        unsaved: dict[str, SidecarError | None] = {}
        for node in self.dirty():
            if time.monotonic() >= deadline_s:
                unsaved[node.key] = None
                continue
            try:
                with self._tree.subtrees.settled(node):
                    self.save(node)
            except SidecarError as error:
                unsaved[node.key] = error
        return unsaved

    def settle(self, node: File) -> None:
        """Drop the spool of a file that lost its name, once nobody has it open."""
        with node.lock:
            self._drop_spool_if_done(node)

    def salvage(self, unsaved: Unsaved) -> None:
        """Upload what a run that ended left in the spool. Raises what the store raises."""
        try:
            spool = self._spool.adopt(unsaved.spool_path)
        except FileNotFoundError:
            return
        metadata = to_metadata(unsaved.attributes, stat.S_IFREG)
        self._uploader.upload(unsaved.key, spool, metadata)
        self._metrics.uploaded_bytes.inc(spool.size_bytes)
        spool.discard()

    # --- the lock of the node is held -----------------------------------------------------

    def _ensure_spool(self, node: File) -> SpoolFile:
        """The node's spool file, filled with the object's content at first."""
        if node.spool is not None:
            return node.spool
        spool = self._spool.create()
        try:
            if node.remote is not None:
                self._download(node, spool)
        except BaseException:
            spool.discard()
            raise
        spool.dirty = False
        self._give_spool(node, spool)
        return spool

    def _give_spool(self, node: File, spool: SpoolFile) -> None:
        node.spool = spool
        with self._lock:
            self._spooled[node.id] = node
        self._tree.nodes.note(node)

    def _download(self, node: File, spool: SpoolFile) -> None:
        remote = node.remote
        assert remote is not None
        buffer = bytearray(min(_COPY_BYTES, remote.size_bytes))
        for offset in range(0, remote.size_bytes, _COPY_BYTES):
            size = min(_COPY_BYTES, remote.size_bytes - offset)
            with memoryview(buffer)[:size] as view:
                self._fetcher.get(remote, offset, view)
                spool.write(offset, view)

    def _empty(self, node: File) -> None:
        if node.spool is None:
            self._give_spool(node, self._spool.create())
        assert node.spool is not None
        node.spool.truncate(0)
        node.attributes["mtime_ns"] = time.time_ns()

    def _drop_spool_if_done(self, node: File) -> None:
        spool = node.spool
        if spool is None:
            return
        unneeded = node.detached and not node.handles
        if unneeded or (not node.writers and not spool.dirty and not node.detached):
            node.spool = None
            with self._lock:
                self._spooled.pop(node.id, None)
            self._tree.nodes.note(node)  # first: a successor must not look for the file
            spool.discard()


def is_writable(flags: int) -> bool:
    """Whether open(2) flags ask for writing."""
    return flags & os.O_ACCMODE != os.O_RDONLY


def _nothing() -> None:
    """Nothing to release."""
