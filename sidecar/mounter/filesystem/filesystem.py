"""The file system: every operation of a mount, on inodes and handles.

This is the interface that transports (:mod:`sidecar.mounter.fuse`) call, from any of their threads.
Operations of more than a few lines are in other modules.

Each method does what its system call says, or raises one error of :mod:`sidecar.errors`, whose
errno the transport answers. SEMANTICS.md states the rules for users.

Methods with a parameter ``wait`` raise WouldBlock, and have changed nothing, when ``wait`` is
false and the answer needs the store. So a transport can answer what is known in the thread that
reads requests, and hand only the rest to other threads.
"""

from __future__ import annotations

import os
import stat
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import NoReturn

from sidecar.errors import (
    InvalidArgument,
    IsADirectory,
    NameTooLong,
    NodeForgotten,
    NotADirectory,
    NotFound,
    NotPermitted,
    ReadOnly,
    SidecarError,
    Stale,
    WouldBlock,
)
from sidecar.metrics import VolumeMetrics
from sidecar.mounter.cache.disk_cache import LocalCopy
from sidecar.mounter.filesystem.attribute_changes import AttributeChanges
from sidecar.mounter.filesystem.content.open_files import OpenFiles, is_writable
from sidecar.mounter.filesystem.directory_rename import DirectoryRename
from sidecar.mounter.filesystem.inodes.attributes import (
    BLOCK_BYTES,
    Attributes,
    Caller,
    Entry,
    Ownership,
    Statistics,
)
from sidecar.mounter.filesystem.inodes.directory_markers import DirectoryMarkers
from sidecar.mounter.filesystem.inodes.inode import Directory, File, Inode, Link
from sidecar.mounter.filesystem.inodes.namespace import Namespace
from sidecar.mounter.filesystem.journal.journal import Journal
from sidecar.mounter.filesystem.name_changes import NameChanges
from sidecar.mounter.filesystem.names.name_memory import BUDGET_BYTES
from sidecar.mounter.filesystem.names.names import NAME_MAX_BYTES, TARGET_MAX_BYTES
from sidecar.mounter.filesystem.open_directories import OpenDirectories
from sidecar.mounter.filesystem.readdir import DirectoryEntry
from sidecar.mounter.filesystem.recovery import Recovery
from sidecar.mounter.filesystem.rename import Rename
from sidecar.mounter.reading.fetcher import Fetcher
from sidecar.mounter.reading.read_result import ReadResult
from sidecar.mounter.store.interface import ObjectInfo, Store
from sidecar.mounter.writing.spool import Spool
from sidecar.mounter.writing.uploader import Uploader

_FREE_FILES = 1 << 32


class FileSystem:
    """One bucket as a file system. Safe to use from any thread.

    Args:
        read_only: every change raises ReadOnly.
        ttl_s: lifetime of names and attributes.
        threads: runs uploads and copies.
        journal: keeps what is handed out, once :meth:`Recovery.begin` was called.
        names_bytes: the memory that listings may take.

    Attributes:
        recovery: takes over a mount, and handles requests that are sent again.
        fetcher: reads a pinned version of an object (:meth:`pinned`, :meth:`version`).
    """

    def __init__(
        self,
        fetcher: Fetcher,
        spool: Spool,
        owner: Ownership,
        metrics: VolumeMetrics,
        threads: ThreadPoolExecutor,
        journal: Journal,
        *,
        read_only: bool,
        ttl_s: float,
        names_bytes: int = BUDGET_BYTES,
    ) -> None:
        self.read_only = read_only
        self._store: Store = fetcher.store
        self.fetcher = fetcher
        self._spool = spool
        self._cache = fetcher.cache
        self.namespace = Namespace(
            self._store,
            owner,
            ttl_s,
            metrics.hidden,
            journal,
            fetcher.threads,
            # A read-only volume needs only its listings.
            reads_attributes=not read_only,
            names_bytes=names_bytes,
        )
        uploader = Uploader(self._store, threads, fetcher.get, metrics)
        self.files = OpenFiles(self.namespace, fetcher, spool, uploader, metrics, journal)
        self._directories = OpenDirectories(self.namespace, journal)
        markers = DirectoryMarkers(self._store, self.namespace)
        self._attributes = AttributeChanges(self._store, self.namespace, self.files, markers)
        self._names = NameChanges(self._store, self.namespace, self.files, journal, markers)
        self._directory_renames = DirectoryRename(self._store, self.namespace, journal)
        self._rename = Rename(
            self._store, self.namespace, self.files, journal, markers, self._directory_renames
        )
        self.recovery = Recovery(
            self.namespace,
            self.files,
            self._directories,
            self._directory_renames,
            spool,
            journal,
            metrics,
            threads,
            read_only=read_only,
        )

    # --- names and attributes -----------------------------------------------------------

    def lookup(self, parent: int, name: str, *, wait: bool = True) -> Entry:
        """The inode of a name, counted as held until :meth:`forget`. Raises NotFound."""
        directory = self.namespace.directory(parent)
        inode = self.namespace.find(directory, name, wait=wait)
        self.namespace.attributes.load(inode, wait=wait)
        return self.namespace.enter(inode)

    def find(self, parent: int, name: str) -> Inode:
        """The inode of a name, not counted as held. Raises NotFound."""
        return self.namespace.find(self.namespace.directory(parent), name)

    def hold(self, inode: Inode) -> None:
        """Count the inode as held until :meth:`forget`, as :meth:`lookup` does."""
        self.namespace.inodes.hold([inode])

    def absence_ttl_s(self, parent: int, name: str) -> float:
        """For how much longer a name that was not found is known not to exist."""
        try:
            return self.namespace.directory(parent).negative.remaining_s(name)
        except (NodeForgotten, NotADirectory):
            return 0.0

    def forget(self, inode_id: int, count: int) -> None:
        """Take back ``count`` of the caller's lookups of the inode."""
        self.namespace.inodes.forget(inode_id, count)

    def get_attributes(self, inode_id: int, *, wait: bool = True) -> Entry:
        """stat(2). Raises NotFound if the name is gone and nobody has the file open."""
        inode = self.namespace.inodes.get(inode_id)
        self.namespace.refresh(inode, wait=wait)
        self.namespace.attributes.load(inode, wait=wait)
        return self.namespace.entry(inode)

    def attributes(self, inode: Inode) -> Attributes:
        """The attributes of an inode that was just found, also those that only the store knows."""
        self.namespace.attributes.load(inode)
        return self.namespace.attributes.of(inode)

    def set_attributes(
        self, inode_id: int, changes: Mapping[str, int], size_bytes: int | None = None
    ) -> Entry:
        """chmod, chown, utimensat and truncate(2): ``changes`` has mode, uid, gid, mtime_ns."""
        self._check_writable()
        inode = self.namespace.inodes.get(inode_id)
        with self.namespace.subtree_locks.shared(inode):
            self.namespace.attributes.load(inode)
            self._attributes.set(inode, changes, size_bytes)
        return self.namespace.entry(inode)

    def statistics(self) -> Statistics:
        """statfs(2) of the spool, since a bucket has no limit."""
        budget = self._spool.budget
        free = 0 if self.read_only else budget.free_bytes // BLOCK_BYTES
        return Statistics(
            budget.total_bytes // BLOCK_BYTES,
            free,
            len(self.namespace.inodes),
            _FREE_FILES,
            NAME_MAX_BYTES,
        )

    @property
    def root(self) -> Directory:
        """The inode of the mount itself."""
        return self.namespace.inodes.root

    @property
    def ttl_s(self) -> float:
        """Lifetime of names and attributes."""
        return self.namespace.ttl_s

    def tell_kernel(
        self, changed: Callable[[Inode], None], forget: Callable[[Sequence[Inode]], None]
    ) -> None:
        """Set the callbacks that tell the kernel about names.

        Args:
            changed: called with each inode that loses its name because the bucket changed.
            forget: called with inodes that nobody uses, if there are too many.
        """
        self.namespace.on_remote_change = changed
        self.namespace.excess_inodes.forget = forget

    # --- directories ----------------------------------------------------------------------

    def open_directory(self, inode_id: int) -> int:
        """opendir(3): a handle. It reads one state of the directory, until rewinddir(3)."""
        return self._directories.open(self.namespace.directory(inode_id))

    def read_directory(
        self, handle: int, offset: int, *, wait: bool = True
    ) -> Iterator[DirectoryEntry]:
        """readdir(3): the entries after ``offset``. Raises InvalidArgument for a wrong handle."""
        return self._directories.get(handle).read(offset, wait=wait)

    def enter(self, handle: int, names: Sequence[str]) -> dict[str, Entry | None]:
        """:meth:`lookup` of names that were just read, without asking the store.

        A name that is gone again is missing. None if not enough is known here, or if there are too
        many inodes.
        """
        return self._directories.get(handle).enter(names)

    def release_directory(self, handle: int) -> None:
        """closedir(3)."""
        self._directories.release(handle)

    def entries_read(self, handle: int, end: int) -> None:
        """Note that the kernel is about to get the entries up to offset ``end``.

        A successor of this process goes on after them.
        """
        self._directories.read_until(handle, end)

    def make_directory(
        self, parent: int, name: str, mode: int | None = None, caller: Caller | None = None
    ) -> Entry:
        """mkdir(2): a marker object keeps the directory when the mount is gone.

        Args:
            mode: permission bits without the umask's; by default the volume's.
            caller: the owner; by default the volume's.
        """
        self._check_writable()
        directory = self.namespace.directory(parent)
        with self.namespace.subtree_locks.shared(directory):
            return self._names.make_directory(directory, name, mode, caller)

    def remove_directory(self, parent: int, name: str) -> None:
        """rmdir(2). Raises NotADirectory, NotEmpty."""
        self._check_writable()
        directory = self.namespace.directory(parent)
        with self.namespace.subtree_locks.shared(directory):
            self._names.remove_directory(directory, name)

    # --- files -------------------------------------------------------------------------------

    def create(
        self, parent: int, name: str, mode: int, flags: int, caller: Caller | None = None
    ) -> tuple[Entry, int]:
        """open(2) with O_CREAT: the new file's entry and a handle.

        Args:
            mode: permission bits without the umask's.
            caller: the owner; by default the volume's.
        """
        self._check_writable()
        directory = self.namespace.directory(parent)
        exclusive = bool(flags & os.O_EXCL)
        found = self._names.find_created(directory, name, exclusive=exclusive)
        if found is not None:
            self.namespace.attributes.load(found)
            return self.namespace.enter(found), self.open(found.id, flags)
        entry, file = self._names.create(directory, name, mode, caller, exclusive=exclusive)
        return entry, self.files.open(file, is_writable(flags))

    def make_node(self, parent: int, name: str, mode: int, caller: Caller | None = None) -> Entry:
        """mknod(2): an empty file as by :meth:`create`, in the store when this returns.

        Raises NotPermitted for a device, a FIFO or a socket.
        """
        if not stat.S_ISREG(mode):
            raise NotPermitted("an object store has no devices, FIFOs or sockets")
        entry, handle = self.create(parent, name, mode, os.O_EXCL | os.O_WRONLY, caller)
        try:
            self.flush(handle)
        finally:
            self.release(handle)
        return entry

    def open_copy(self, inode_id: int) -> LocalCopy | None:
        """A local copy of the whole file, if the cache has one. The caller closes it."""
        inode = self.namespace.inodes.get(inode_id)
        if (
            self._cache is not None
            and isinstance(inode, File)
            and inode.remote is not None
            and inode.spool is None
        ):
            return self._cache.open_whole(inode.remote)
        return None

    def inode(self, handle: int) -> Inode:
        """The inode of an open file. Raises BadHandle."""
        return self.files.get(handle).inode

    def opens(self) -> list[tuple[int, int | None]]:
        """The inode and the backing id of each handle."""
        return [(opened.inode.id, opened.backing_id) for opened in self.files.opened()]

    def open(
        self, inode_id: int, flags: int, backing_id: int | None = None, *, wait: bool = True
    ) -> int:
        """open(2) of an existing file: a handle. Raises Stale if the file lost its name.

        Args:
            backing_id: kept with the handle, for a transport whose kernel reads the file by
                itself; None if it does not.
        """
        writable = is_writable(flags)
        truncate = bool(flags & os.O_TRUNC)
        if writable or truncate:
            self._check_writable()
        inode = self.namespace.inodes.get(inode_id)
        if not isinstance(inode, File):
            _refuse_to_open(inode)
        inode.was_read = True
        if writable or truncate:
            self.namespace.attributes.load(inode, wait=wait)  # a write must keep them
        return self.files.open(inode, writable, truncate=truncate, backing_id=backing_id, wait=wait)

    def read(self, handle: int, offset: int, size: int, *, wait: bool = True) -> ReadResult:
        """pread(2). The caller calls ``release`` of the result once it was sent."""
        try:
            return self.files.read(handle, offset, size, wait=wait)
        except Stale:
            self.namespace.invalidate(self.files.get(handle).inode)
            raise

    def pinned(self, handle: int) -> ObjectInfo | None:
        """Pinned version of a handle, or None if the bytes are local.

        A transport may read that version itself. If it is gone, call :meth:`doubt`.
        """
        return self.files.pinned(handle)

    def version(self, inode_id: int) -> ObjectInfo:
        """The version that an inode of a read-only mount stands for. Raises IsADirectory."""
        inode = self.namespace.inodes.get(inode_id)
        if not isinstance(inode, File) or inode.remote is None:
            raise IsADirectory(f"`{inode.key}`")
        inode.was_read = True
        return inode.remote

    def doubt(self, inode_id: int) -> Inode | None:
        """End the lifetime of an inode's name, because a call on it was Stale.

        Returns the inode if the kernel may still believe the name, else None.
        """
        inode = self.namespace.inodes.find(inode_id)
        return inode if inode is not None and self.namespace.invalidate(inode) else None

    @property
    def has_cache(self) -> bool:
        """Whether there may be local copies (:meth:`open_copy`)."""
        return self._cache is not None

    def write(self, handle: int, offset: int, data: bytes | memoryview) -> int:
        """pwrite(2)."""
        inode = self.files.get(handle).inode
        if self.files.fits_in_spool(handle, offset, len(data)):
            return self.files.write(handle, offset, data)
        # An object may be read or made first, by its key.
        with self.namespace.subtree_locks.shared(inode):
            return self.files.write(handle, offset, data)

    def flush(self, handle: int) -> None:
        """close(2), fsync(2), fdatasync(2): the store has the bytes once this returns.

        Raises what the store raises.
        """
        with self.namespace.subtree_locks.shared(self.files.get(handle).inode):
            self.files.flush(handle)

    def release(self, handle: int, *, wait: bool = True) -> None:
        """The last descriptor of an open file was closed."""
        self.files.release(handle, wait=wait)

    def unlink(self, parent: int, name: str) -> None:
        """unlink(2). Handles that are open still read the file."""
        self._check_writable()
        directory = self.namespace.directory(parent)
        with self.namespace.subtree_locks.shared(directory):
            self._names.unlink(directory, name)

    def symlink(self, parent: int, name: str, target: bytes, caller: Caller | None = None) -> Entry:
        """symlink(2): an object whose content is ``target``, which need not exist.

        Args:
            caller: the owner; by default the volume's.
        """
        self._check_writable()
        directory = self.namespace.directory(parent)
        with self.namespace.subtree_locks.shared(directory):
            return self._names.symlink(directory, name, target, caller)

    def read_link(self, inode_id: int, *, wait: bool = True) -> bytes:
        """readlink(2): the target as it was given. Raises InvalidArgument if it is no link."""
        inode = self.namespace.inodes.get(inode_id)
        if not isinstance(inode, Link):
            raise InvalidArgument(f"`{inode.key}` is no symbolic link")
        if inode.target is None:
            if not wait:
                raise WouldBlock(inode.name)
            inode.target = _read_target(self._store, inode)
        return inode.target

    def rename(self, parent: int, name: str, new_parent: int, new_name: str, flags: int) -> None:
        """renameat2(2). An inode that has the new name is replaced."""
        self._check_writable()
        source, target = self.namespace.directory(parent), self.namespace.directory(new_parent)
        self._rename.rename(source, name, target, new_name, flags)

    # --- refused, each with the errno that its manual page names -------------------------------

    def link(self) -> NoReturn:
        """link(2): an object has one name."""
        raise NotPermitted("an object store has no hard links")

    # --- the end -------------------------------------------------------------------------------

    def sync(self, deadline_s: float) -> dict[str, SidecarError | None]:
        """Upload what is dirty (:meth:`WriteBack.sync`) before ``deadline_s`` (monotonic).

        Returns what could not be saved: key to error, None if time ran out.
        """
        self._directory_renames.finish_all()
        return self.files.write_back.sync(deadline_s)

    def hurry(self, deadline_s: float, leaving: threading.Event, tell: Callable[[], None]) -> None:
        """Save everything as soon as it is written, until ``deadline_s`` (:class:`FinalSaving`)."""
        self._directory_renames.finish_all()
        self.files.final_saving.run(deadline_s, leaving, tell)

    def drain(
        self, deadline_s: float, progress: Callable[[], None] = lambda: None
    ) -> dict[str, SidecarError | None]:
        """Upload everything dirty before ``deadline_s`` (monotonic), and refuse later writes.

        Returns what could not be saved: key to error, None if time ran out.

        Args:
            progress: called about once a second.
        """
        self._directory_renames.finish_all()
        return self.files.drain(deadline_s, progress)

    def _check_writable(self) -> None:
        if self.read_only:
            raise ReadOnly("the volume is read-only")


def _refuse_to_open(inode: Inode) -> NoReturn:
    if isinstance(inode, Directory):
        raise IsADirectory(f"`{inode.key}`")
    raise InvalidArgument(f"`{inode.key}` is a symbolic link")


def _read_target(store: Store, inode: Link) -> bytes:
    remote = inode.remote
    if remote.size_bytes > TARGET_MAX_BYTES:
        raise NameTooLong(f"`{remote.key}` is a link's object of {remote.size_bytes} bytes")
    target = bytearray(remote.size_bytes)
    try:
        store.get_range(remote.key, remote.version, 0, memoryview(target))
    except NotFound:
        # The object was deleted since it was listed. ESTALE makes the kernel look again.
        raise Stale(f"`{remote.key}` is gone") from None
    return bytes(target)
