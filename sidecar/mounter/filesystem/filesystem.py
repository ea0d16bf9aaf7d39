"""The file system: every operation of a mount, on inodes and handles.

Knows neither FUSE nor an SDK. A transport (:mod:`sidecar.mounter.transport`) calls these
methods from any of its threads; each either does what its system call says or raises one
error of :mod:`sidecar.errors`, whose errno the transport answers. SEMANTICS.md states the
rules for users.

Methods with a parameter ``wait`` raise WouldBlock, and have changed nothing, when ``wait``
is false and the answer needs the store: a transport can serve what is known in the thread
that reads requests, and hand only the rest to others.
"""

from __future__ import annotations

import contextlib
import errno
import logging
import os
import stat
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import NoReturn

from sidecar import logs
from sidecar.errors import (
    FileExists,
    InvalidArgument,
    IsADirectory,
    NameTooLong,
    NodeForgotten,
    NotADirectory,
    NotEmpty,
    NotFound,
    NotPermitted,
    ReadOnly,
    SidecarError,
    Stale,
    StateUnusable,
    Unsupported,
    WouldBlock,
)
from sidecar.metrics import VolumeMetrics
from sidecar.mounter.cache.disk_cache import LocalCopy
from sidecar.mounter.filesystem.attributes import (
    BLOCK_BYTES,
    Caller,
    Entry,
    Ownership,
    Statistics,
    beside_metadata,
    of_new,
    to_metadata,
)
from sidecar.mounter.filesystem.directory_rename import DirectoryRename
from sidecar.mounter.filesystem.inodes import Directory, File, Inode, Link
from sidecar.mounter.filesystem.journal import (
    HANDLE,
    LOOKUP,
    READING,
    Journal,
    Record,
    RecoveredState,
    ReplayedRequest,
    UnsavedFile,
)
from sidecar.mounter.filesystem.listing import REMOTE_DIRECTORY
from sidecar.mounter.filesystem.names import (
    LINK_SUFFIX,
    NAME_MAX_BYTES,
    TARGET_MAX_BYTES,
    is_link_key,
    is_probe_key,
)
from sidecar.mounter.filesystem.namespace import Namespace
from sidecar.mounter.filesystem.open_files import OpenFiles, is_writable
from sidecar.mounter.filesystem.readdir import (
    DirectoryEntry,
    OpenDirectory,
    from_journal,
    to_journal,
)
from sidecar.mounter.filesystem.subtree_locks import is_at_or_below
from sidecar.mounter.reading.fetcher import Fetcher
from sidecar.mounter.reading.object_reader import ReadResult
from sidecar.mounter.store.interface import Fetch, ObjectInfo, Store
from sidecar.mounter.writing.spool import Spool
from sidecar.mounter.writing.uploader import Uploader

log = logging.getLogger(__name__)

RENAME_NOREPLACE = 1
"""renameat2(2): fail if the new name exists."""
_FREE_FILES = 1 << 32
_REMAINS = 16
"""More objects than a directory has that shows none: its own, and probes."""


class FileSystem:
    """One bucket as a file system. Safe to use from any thread.

    Args:
        read_only: every change raises ReadOnly.
        ttl_s: lifetime of names and attributes.
        threads: runs uploads and copies.
        journal: where what is given out is written down, once :meth:`begin` was called.
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
    ) -> None:
        self.read_only = read_only
        self._store: Store = fetcher.store
        self.fetch: Fetch = fetcher.get
        self._spool = spool
        self._threads = threads
        self._journal = journal
        self._metrics = metrics
        self._predecessor_crashed = False
        self._cache = fetcher.cache
        self.namespace = Namespace(
            self._store,
            owner,
            ttl_s,
            metrics.hidden,
            journal,
            fetcher.threads,
            # A read-only volume is asked for nothing but its listings.
            reads_attributes=not read_only,
        )
        uploader = Uploader(self._store, threads, fetcher.get, metrics)
        self.files = OpenFiles(self.namespace, fetcher, spool, uploader, metrics, journal)
        self._moves = DirectoryRename(self._store, self.namespace, journal)
        self._directories: dict[int, OpenDirectory] = {}
        self._next_directory = 1

    # --- names and attributes -----------------------------------------------------------

    def lookup(self, parent: int, name: str, *, wait: bool = True) -> Entry:
        """The inode of a name, counted as held until :meth:`forget`. Raises NotFound."""
        directory = self.namespace.directory(parent)
        inode = self.namespace.find(directory, name, wait=wait)
        self.namespace.attributes.load(inode, wait=wait)
        return self.namespace.enter(inode)

    def absence_ttl_s(self, parent: int, name: str) -> float:
        """For how much longer a name that was not found is known not to exist."""
        try:
            return self.namespace.directory(parent).negative.remaining_s(name)
        except (NodeForgotten, NotADirectory):
            return 0.0

    def forget(self, inode_id: int, count: int) -> None:
        """The caller no longer holds ``count`` of its lookups of the inode."""
        self.namespace.inodes.forget(inode_id, count)

    def get_attributes(self, inode_id: int, *, wait: bool = True) -> Entry:
        """stat(2) of an inode."""
        inode = self.namespace.inodes.get(inode_id)
        self.namespace.refresh(inode, wait=wait)
        self.namespace.attributes.load(inode, wait=wait)
        return self.namespace.entry(inode)

    def set_attributes(
        self, inode_id: int, changes: Mapping[str, int], size_bytes: int | None = None
    ) -> Entry:
        """chmod, chown, utimensat and truncate(2): ``changes`` has mode, uid, gid, mtime_ns."""
        self._check_writable()
        inode = self.namespace.inodes.get(inode_id)
        with self.namespace.subtree_locks.shared(inode):
            self.namespace.attributes.load(inode)
            if isinstance(inode, Directory):
                if size_bytes is not None:
                    raise IsADirectory(f"`{inode.key}`")
                self._set_directory_attributes(inode, changes)
            elif isinstance(inode, File):
                if size_bytes is not None:
                    self.files.truncate(inode, size_bytes)
                if changes and not self._is_current(inode, changes):
                    self.files.set_attributes(inode, changes)
            elif isinstance(inode, Link):
                self._set_link_attributes(inode, changes, size_bytes)
        return self.namespace.entry(inode)

    def statistics(self) -> Statistics:
        """statfs(2): a bucket has no end; what fills up is the spool."""
        budget = self._spool.budget
        free = 0 if self.read_only else budget.free_bytes // BLOCK_BYTES
        return Statistics(
            budget.total_bytes // BLOCK_BYTES,
            free,
            len(self.namespace.inodes),
            _FREE_FILES,
            NAME_MAX_BYTES,
        )

    # --- directories ----------------------------------------------------------------------

    def open_directory(self, inode_id: int) -> int:
        """opendir(3): a handle that reads one state of the directory."""
        opened = OpenDirectory.open(self.namespace, self.namespace.directory(inode_id))
        with self.namespace.inodes.lock:
            handle = self._next_directory
            self._next_directory += 1
            self._directories[handle] = opened
        self._journal.give(READING, [handle], [("opendir", handle, inode_id, [])])
        return handle

    def read_directory(
        self, handle: int, offset: int, *, wait: bool = True
    ) -> Iterator[DirectoryEntry]:
        """The lines behind ``offset``. Raises InvalidArgument for an unknown handle."""
        return self._opened_directory(handle).read(offset, wait=wait)

    def enter(self, handle: int, names: Sequence[str]) -> list[Entry | None]:
        """:meth:`lookup` of lines that were just read; None for a name that is gone again."""
        return self._opened_directory(handle).enter(names)

    def release_directory(self, handle: int) -> None:
        """closedir(3)."""
        self._directories.pop(handle, None)
        self._journal.write(("closeddir", handle))

    def give_lines(self, handle: int, end: int) -> None:
        """The lines up to offset ``end`` are about to be given to the kernel."""
        opened = self._opened_directory(handle)
        names = opened.note_returned(end)
        start = len(opened.returned) - len(names)
        if names or not start:  # at the beginning, perhaps again: what was given is forgotten
            self._journal.write(("lines", handle, start, to_journal(names)))

    def make_directory(
        self, parent: int, name: str, mode: int | None = None, caller: Caller | None = None
    ) -> Entry:
        """mkdir(2): a marker object keeps the directory when the mount is gone.

        Args:
            mode: permission bits, the umask already taken off; the volume's where not given.
            caller: whose it is; the volume's owner's where not given.
        """
        self._check_writable()
        directory = self.namespace.directory(parent)
        with self.namespace.subtree_locks.shared(directory):
            return self._make_directory(directory, name, mode, caller)

    def _make_directory(
        self, directory: Directory, name: str, mode: int | None, caller: Caller | None
    ) -> Entry:
        found = self._find_or_none(directory, name)
        if found is not None:
            if self._journal.intent() is not None and isinstance(found, Directory):
                return self.namespace.enter(found)  # a dead worker made it for this request
            raise FileExists(f"`{directory.key}{name}`")
        self._store.check_key(f"{directory.key}{name}/")
        mode = self.namespace.owner.dir_mode if mode is None else mode
        attributes = self._attributes_of_new(directory, stat.S_IFDIR | mode, caller)
        self._journal.intend(("mkdir",))
        self._store.put(f"{directory.key}{name}/", b"", to_metadata(attributes, stat.S_IFDIR))
        with self.namespace.inodes.lock:
            inode = self.namespace.inodes.add_directory(directory, name, time.time_ns())
            inode.kept = True
            self.namespace.attributes.set_of_directory(inode, attributes)
            self.namespace.apply_change(directory, name, REMOTE_DIRECTORY)
            return self.namespace.enter(inode)

    def remove_directory(self, parent: int, name: str) -> None:
        """rmdir(2). Raises NotADirectory, NotEmpty."""
        self._check_writable()
        directory = self.namespace.directory(parent)
        with self.namespace.subtree_locks.shared(directory):
            self._remove_directory(directory, name)

    def _remove_directory(self, directory: Directory, name: str) -> None:
        inode = self._find_to_remove(directory, name)
        if inode is not None:
            if not isinstance(inode, Directory):
                raise NotADirectory(f"`{inode.key}`")
            remains = self._remains(inode)
            if remains is None:
                raise NotEmpty(f"`{inode.key}`")
            self._journal.intend(("rmdir",))
            for key in {*remains, inode.key}:
                self._store.delete(key)
            inode.kept = False
            self.namespace.apply_removal(directory, name)
            self.namespace.inodes.detach(inode)
        self._keep(directory)

    # --- files -------------------------------------------------------------------------------

    def create(
        self, parent: int, name: str, mode: int, flags: int, caller: Caller | None = None
    ) -> tuple[Entry, int]:
        """open(2) with O_CREAT: the new file's entry and a handle.

        Args:
            mode: permission bits, the umask already taken off.
            caller: whose it is; the volume's owner's where not given.
        """
        self._check_writable()
        directory = self.namespace.directory(parent)
        try:
            inode = self.namespace.find(directory, name)
        except NotFound:
            pass
        else:
            # With an intent a dead worker made it, for this very request.
            if flags & os.O_EXCL and self._journal.intent() is None:
                raise FileExists(f"`{inode.key}`")
            self.namespace.attributes.load(inode)
            return self.namespace.enter(inode), self.open(inode.id, flags)
        self._check_file_name(directory, name)
        attributes = self._attributes_of_new(directory, stat.S_IFREG | stat.S_IMODE(mode), caller)
        self._journal.intend(("create",))
        with self.namespace.inodes.lock:
            file = self.files.create(directory, name, attributes, exclusive=bool(flags & os.O_EXCL))
            directory.negative.discard(name)
            directory.mtime_ns = time.time_ns()
            entry = self.namespace.enter(file)
        return entry, self.files.open(file, is_writable(flags))

    def make_node(self, parent: int, name: str, mode: int, caller: Caller | None = None) -> Entry:
        """mknod(2): an empty file as of :meth:`create`, in the store when this returns.

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
        """The whole inode as a local file, where the cache has it; closed by the caller."""
        inode = self.namespace.inodes.get(inode_id)
        if (
            self._cache is not None
            and isinstance(inode, File)
            and inode.remote is not None
            and inode.spool is None
        ):
            return self._cache.open_whole(inode.remote)
        return None

    def open(self, inode_id: int, flags: int, backing_id: int = 0, *, wait: bool = True) -> int:
        """open(2) of an existing file: a handle. Raises Stale for one that lost its name.

        Args:
            backing_id: remembered with the handle, for a transport that serves it without
                asking the file system.
        """
        writable = is_writable(flags)
        truncate = bool(flags & os.O_TRUNC)
        if writable or truncate:
            self._check_writable()
        inode = self.namespace.inodes.get(inode_id)
        if not isinstance(inode, File):
            self._refuse_to_open(inode)
        if writable or truncate:
            self.namespace.attributes.load(inode)  # what it keeps is kept when it is written
        return self.files.open(inode, writable, truncate=truncate, backing_id=backing_id, wait=wait)

    def read(self, handle: int, offset: int, size: int, *, wait: bool = True) -> ReadResult:
        """pread(2). The caller calls ``release`` of the result once it was sent."""
        try:
            return self.files.read(handle, offset, size, wait=wait)
        except Stale:
            self.namespace.invalidate(self.files.get(handle).inode)
            raise

    def pinned(self, handle: int) -> ObjectInfo | None:
        """The version of an object that a handle reads; None where the bytes are local.

        A transport may read that version itself, and says where it is gone (:meth:`doubt`).
        """
        return self.files.pinned(handle)

    def version(self, inode_id: int) -> ObjectInfo:
        """The version of an object that an inode of a read-only mount is. Raises IsADirectory."""
        inode = self.namespace.inodes.get(inode_id)
        if not isinstance(inode, File) or inode.remote is None:
            raise IsADirectory(f"`{inode.key}`")
        return inode.remote

    def doubt(self, inode_id: int) -> Inode | None:
        """A call on an inode was Stale: its name is not believed any more, whatever its lifetime.

        The inode where the kernel may believe in the name still, else None.
        """
        inode = self.namespace.inodes.find(inode_id)
        return inode if inode is not None and self.namespace.invalidate(inode) else None

    @property
    def has_cache(self) -> bool:
        """Whether an open file may be a local copy (:meth:`open_copy`)."""
        return self._cache is not None

    def write(self, handle: int, offset: int, data: bytes | memoryview) -> int:
        """pwrite(2)."""
        inode = self.files.get(handle).inode
        if self.files.fits_in_spool(handle, offset, len(data)):
            return self.files.write(handle, offset, data)
        # An object is read or made first, by its key.
        with self.namespace.subtree_locks.shared(inode):
            return self.files.write(handle, offset, data)

    def flush(self, handle: int) -> None:
        """close(2), fsync(2), fdatasync(2): the store has the bytes, or an error says why not."""
        with self.namespace.subtree_locks.shared(self.files.get(handle).inode):
            self.files.flush(handle)

    def release(self, handle: int, *, wait: bool = True) -> None:
        """The last descriptor of an open file was closed."""
        self.files.release(handle, wait=wait)

    def unlink(self, parent: int, name: str) -> None:
        """unlink(2). Who has the file open goes on reading it."""
        self._check_writable()
        directory = self.namespace.directory(parent)
        with self.namespace.subtree_locks.shared(directory):
            self._unlink(directory, name)

    def _unlink(self, directory: Directory, name: str) -> None:
        inode = self._find_to_remove(directory, name)
        if inode is not None:
            if isinstance(inode, Directory):
                raise IsADirectory(f"`{inode.key}`")
            self._journal.intend(("unlink",))
            if isinstance(inode, File):
                self._unlink_file(inode, directory, name)
            else:
                self._store.delete(inode.object_key)
                self.namespace.apply_removal(directory, name)
                self.namespace.inodes.detach(inode)
        self._keep(directory)

    def symlink(self, parent: int, name: str, target: bytes, caller: Caller | None = None) -> Entry:
        """symlink(2): an object whose content is the target, which need not exist.

        Args:
            caller: whose it is; the volume's owner's where not given.
        """
        self._check_writable()
        directory = self.namespace.directory(parent)
        with self.namespace.subtree_locks.shared(directory):
            return self._symlink(directory, name, target, caller)

    def _symlink(
        self, directory: Directory, name: str, target: bytes, caller: Caller | None
    ) -> Entry:
        found = self._find_or_none(directory, name)
        if found is not None:
            if self._journal.intent() is not None and isinstance(found, Link):
                return self.namespace.enter(found)  # a dead worker made it for this request
            raise FileExists(f"`{found.key}`")
        if len(target) > TARGET_MAX_BYTES:
            raise NameTooLong(f"a link's target of {len(target)} bytes")
        key = f"{directory.key}{name}{LINK_SUFFIX}"
        self._store.check_key(key)
        attributes = self._attributes_of_new(
            directory, self.namespace.owner.link_type_mode(), caller
        )
        self._journal.intend(("symlink",))
        remote = self._store.put(key, target, to_metadata(attributes, stat.S_IFREG))
        with self.namespace.inodes.lock:
            inode = self.namespace.inodes.add_link(directory, name, remote)
            inode.target = target
            inode.attributes.update(attributes)
            inode.fresh_until_s = time.monotonic() + self.namespace.ttl_s
            self.namespace.apply_change(directory, name, remote)
            return self.namespace.enter(inode)

    def read_link(self, inode_id: int, *, wait: bool = True) -> bytes:
        """readlink(2): the target, as it was given. Raises InvalidArgument for what is no link."""
        inode = self.namespace.inodes.get(inode_id)
        if not isinstance(inode, Link):
            raise InvalidArgument(f"`{inode.key}` is no symbolic link")
        if inode.target is None:
            if not wait:
                raise WouldBlock(inode.name)
            inode.target = self._read_target(inode)
        return inode.target

    def _read_target(self, inode: Link) -> bytes:
        remote = inode.remote
        if remote.size_bytes > TARGET_MAX_BYTES:
            raise NameTooLong(f"`{remote.key}` is a link's object of {remote.size_bytes} bytes")
        target = bytearray(remote.size_bytes)
        try:
            self._store.get_range(remote.key, remote.version, 0, memoryview(target))
        except NotFound:
            # Deleted since it was listed. ESTALE makes the kernel look again.
            raise Stale(f"`{remote.key}` is gone") from None
        return bytes(target)

    def rename(self, parent: int, name: str, new_parent: int, new_name: str, flags: int) -> None:
        """renameat2(2); the target is replaced."""
        self._check_writable()
        if flags & ~RENAME_NOREPLACE:
            raise InvalidArgument(f"rename flags {flags:#x}")
        source, target = self.namespace.directory(parent), self.namespace.directory(new_parent)
        with self.namespace.subtree_locks.shared(source, target):
            if self._rename_object(source, name, target, new_name, flags):
                return
        self._rename_directory(source, name, target, new_name, flags)

    def _rename_object(
        self, source: Directory, name: str, target: Directory, new_name: str, flags: int
    ) -> bool:
        """Rename a file or a link; False if it is a directory."""
        intent = self._journal.intent()
        if intent is not None and intent[0] == "move":
            return False
        if intent is not None and self._was_moved(intent, target, new_name):
            moved = self.namespace.inodes.get(intent[1])
            assert isinstance(moved, File | Link)
            self._leave_old_name(moved, source, name, intent[2])
            self._keep(source)
            return True
        inode = self.namespace.find(source, name)
        replaced = self._find_or_none(target, new_name)
        if replaced is not None and flags & RENAME_NOREPLACE and intent is None:
            raise FileExists(f"`{replaced.key}`")
        if replaced is inode:
            return True
        if isinstance(inode, Directory):
            return False
        if isinstance(replaced, Directory):
            raise IsADirectory(f"`{replaced.key}`")
        assert isinstance(inode, File | Link)
        new_key = f"{target.key}{new_name}{LINK_SUFFIX if isinstance(inode, Link) else ''}"
        if isinstance(inode, File):
            self._check_file_name(target, new_name)
        else:
            self._store.check_key(new_key)
        # A file that replaces a link, or the reverse, has another key than what it replaces.
        other_key = replaced.object_key if replaced and replaced.object_key != new_key else ""
        self._journal.intend(("rename", inode.id, other_key))
        with self.files.losing_name(replaced if isinstance(replaced, File) else None):
            if isinstance(inode, File):
                self.files.saver.complete_upload(inode)
                with inode.lock:
                    if inode.spool is not None:
                        inode.spool.set_exclusive(False)  # O_EXCL was about the old name
                    has_copy = inode.remote is not None and not (inode.spool and inode.spool.dirty)
                    self._give_name(inode, target, new_name, new_key if has_copy else "")
                    self._leave_old_name(inode, source, name, other_key)
            else:
                self._give_name(inode, target, new_name, new_key)
                self._leave_old_name(inode, source, name, other_key)
        self._keep(source)
        return True

    def _give_name(
        self, inode: File | Link, target: Directory, new_name: str, copy_key: str
    ) -> None:
        """The first half of a rename.

        Args:
            copy_key: where the inode's object is copied to; empty where that is not what it has.
        """
        if copy_key:
            assert inode.remote is not None
            try:
                inode.remote = self._copy(inode.remote, copy_key)
            except Stale:
                self.namespace.invalidate(inode)
                raise
            self.namespace.apply_change(target, new_name, inode.remote)
        self.namespace.inodes.move(inode, target, new_name)

    def _rename_directory(
        self, source: Directory, name: str, target: Directory, new_name: str, flags: int
    ) -> None:
        intent = self._journal.intent()
        if intent is not None and self._was_moved(intent, target, new_name):
            with self.namespace.subtree_locks.shared(source, target):
                if intent[1] in self._moves.unfinished:
                    self._moves.complete(intent[1])
                self._keep(source)
            return
        inode = self.namespace.find(source, name)
        assert isinstance(inode, Directory)
        if is_at_or_below(target, inode):
            raise InvalidArgument(f"`{inode.key}` cannot go into itself")
        with self.namespace.subtree_locks.exclusive(inode, source, target):
            replaced = self._find_or_none(target, new_name)
            if replaced is not None and intent is None:
                self._check_replaceable(replaced, flags)
            for file in self.files.contents.dirty():
                if file.parent is not None and is_at_or_below(file.parent, inode):
                    self.files.saver.complete_upload(file)
            self._journal.intend(("move", inode.id))
            self._moves.move(inode, target, new_name, {})
            self._keep(source)

    def _check_replaceable(self, replaced: Inode, flags: int) -> None:
        """rename(2): only an empty directory gives way to another one."""
        if flags & RENAME_NOREPLACE:
            raise FileExists(f"`{replaced.key}`")
        if not isinstance(replaced, Directory):
            raise NotADirectory(f"`{replaced.key}`")
        if self._remains(replaced) is None:
            raise NotEmpty(f"`{replaced.key}`")

    # --- refused, each with the errno that its manual page names -------------------------------

    def link(self) -> NoReturn:
        """link(2): an object has one name."""
        raise NotPermitted("an object store has no hard links")

    # --- a worker that dies and the next one -----------------------------------------------------

    def begin(self) -> None:
        """Write down from now on what is given out."""
        self._journal.begin(self._records)

    def finish_predecessor(self) -> list[str]:
        """Upload what a run that ended before this one left in the spool; the keys.

        Before anything is given out: what this run writes is newer. Raises what the store
        raises; what is not saved then stays in the spool for the next attempt.
        """
        try:
            held = RecoveredState.read(self._journal)
        except StateUnusable as error:
            # The machine crashed, perhaps. What is in the spool stays there: nobody knows what
            # it was, and the run must start all the same.
            log.warning("what an earlier run left in the spool cannot be saved: %s", error)
            saved = []
        else:
            for number, move in held.moves.items():
                self._moves.finish_predecessor(number, move)
            unsaved = [_after_moves(left, held.moves.values()) for left in held.unsaved()]
            saved = [left.key for left in unsaved if self.files.saver.salvage(left)]
            self.files.contents.abandon_leftovers()
            self._spool.clear()
        self.begin()
        return saved

    def restore(self, *, crashed: bool = False) -> None:
        """Take over the inodes and handles that a predecessor gave out; then :meth:`begin`.

        Args:
            crashed: the predecessor ended by itself, and was not killed.
        """
        self._predecessor_crashed = crashed
        held = RecoveredState.read(self._journal)
        if not held.last_inode:
            # The kernel holds numbers that would be given to other files.
            raise StateUnusable("there is no journal of the worker that died")
        self.namespace.inodes.restore(held.inodes, held.last_inode, self._spool.adopt)
        inodes = self.namespace.inodes
        handles: dict[int, tuple[File, bool, int]] = {}
        for number, (inode_id, writable, backing_id) in held.handles.items():
            inode = inodes.get(inode_id)
            if isinstance(inode, File):
                handles[number] = (inode, writable, backing_id)
        self.files.restore(handles, held.last_handle)
        for number, (inode_id, given) in held.directories.items():
            self._directories[number] = OpenDirectory.resume(
                self.namespace, self.namespace.directory(inode_id), from_journal(given)
            )
        self._next_directory = held.last_directory + 1
        self._moves.unfinished = dict(held.moves)
        self._journal.adopt(held.asked)
        self.begin()

    def asked_again(self, unique: int) -> ReplayedRequest:
        """The kernel asks a request again whose worker died; ``unique`` without its mark."""
        asked = self._journal.asked_again(unique, crashed=self._predecessor_crashed)
        if asked.answer is None and asked.is_hopeless:
            self._metrics.refused_requests.inc()
            log.error(
                "request %d has ended %d workers (%d by themselves) and is refused",
                unique,
                asked.deaths,
                asked.crashes,
            )
            asked.answer = errno.EIO, b""
        return asked

    def take_back(self, unique: int, asked: ReplayedRequest) -> None:
        """What a dead worker gave out for a request never arrived; it is about to be served."""
        for kind, number in list(asked.given):
            self._journal.take_back(unique, kind, number)
            if kind == LOOKUP:
                self.forget(number, 1)
            elif kind == HANDLE:
                self.release(number)
            else:
                self.release_directory(number)

    def take_back_all(self, unique: int) -> None:
        """What was given out for a request did not arrive: the kernel no longer waits for it."""
        self.take_back(unique, self._journal.given(unique))

    def all_asked_again(self) -> None:
        """From now on the kernel asks only what it never asked before."""
        self._journal.forget_answered()
        if self._moves.unfinished:
            self._threads.submit(self._finish_moves)

    def _finish_moves(self) -> None:
        """What is left of moves whose system call ended, or whose program did."""
        for number in list(self._moves.unfinished):
            inode = self.namespace.inodes.find(number)
            with self.namespace.subtree_locks.shared(inode or self.namespace.inodes.root):
                if number in self._moves.unfinished:
                    try:
                        self._moves.finish(number)
                    except SidecarError as error:
                        log.warning("a renamed directory has leftovers: %s", error)

    def begin_request(self, unique: int) -> None:
        """This thread serves a request; what it gives out is noted under its number."""
        self._journal.begin_request(unique)

    def done(self, unique: int, reply: bytes) -> None:
        """The request changed something: this is its answer, also from a successor."""
        self._journal.done(unique, 0, reply)

    def end_request(self, unique: int) -> None:
        """The request was answered."""
        self._journal.end_request(unique)

    def _records(self) -> list[Record]:
        last_directory = self._next_directory - 1
        return [
            ("last", self.namespace.inodes.last_number, self.files.last_number, last_directory),
            *self.namespace.inodes.records(),
            *self.files.records(),
            *self._moves.records(),
            *(
                ("opendir", handle, opened.directory.id, to_journal(list(opened.returned)))
                for handle, opened in list(self._directories.items())
            ),
        ]

    # --- the end -------------------------------------------------------------------------------

    def sync(self, deadline_s: float) -> dict[str, SidecarError | None]:
        """Upload what is dirty, as :meth:`WriteBack.sync`; what is left, and why."""
        self._finish_moves()
        return self.files.write_back.sync(deadline_s)

    def drain(
        self, deadline_s: float, progress: Callable[[], None] = lambda: None
    ) -> dict[str, SidecarError | None]:
        """Upload everything dirty before ``deadline_s`` (monotonic); what is left, and why.

        What is written meanwhile is saved too, or refused once this returns.

        Args:
            progress: called about once a second.
        """
        self._finish_moves()
        self.files.write_back.drain(deadline_s, progress)
        self.files.end()
        return self.files.write_back.drain(deadline_s, progress)

    # --- helpers -------------------------------------------------------------------------------

    def _check_writable(self) -> None:
        if self.read_only:
            raise ReadOnly("the volume is read-only")

    def _opened_directory(self, handle: int) -> OpenDirectory:
        try:
            return self._directories[handle]
        except KeyError:
            raise InvalidArgument(f"no open directory has the handle {handle}") from None

    def _attributes_of_new(
        self, directory: Directory, type_mode: int, caller: Caller | None
    ) -> dict[str, int]:
        """What something new in a directory keeps; asks for the directory's where unknown."""
        owner = self.namespace.owner
        self.namespace.attributes.load(directory)
        parent = self.namespace.attributes.of(directory)
        return of_new(owner, parent, type_mode, caller or Caller(owner.uid, owner.gid))

    def _find_or_none(self, directory: Directory, name: str) -> Inode | None:
        try:
            return self.namespace.find(directory, name)
        except NotFound:
            return None

    def _unlink_file(self, inode: File, directory: Directory, name: str) -> None:
        with inode.lock, self.files.losing_name(inode):
            if inode.remote is not None:
                self._store.delete(inode.key)
            self.namespace.apply_removal(directory, name)
            self.namespace.inodes.detach(inode)

    def _copy(self, remote: ObjectInfo, new_key: str) -> ObjectInfo:
        return self._store.copy(remote.key, new_key, version=remote.version)

    def _leave_old_name(
        self, inode: File | Link, source: Directory, name: str, other_key: str
    ) -> None:
        """The second half of a rename: the inode has its new name, the store the old one too.

        Args:
            other_key: of a replaced object whose key the new one does not have; else empty.
        """
        old_key = f"{source.key}{name}"
        if isinstance(inode, Link):
            self._delete_all(other_key, old_key + LINK_SUFFIX)
        else:
            with inode.lock:
                had_object = inode.remote is not None
                must_save = had_object or other_key or not inode.writers
                if inode.spool is not None and inode.spool.dirty and must_save:
                    self.files.saver.save(inode)  # before what it replaces is deleted
                self._delete_all(other_key, old_key if had_object else "")
        self.namespace.apply_removal(source, name)

    def _delete_all(self, *keys: str) -> None:
        for key in keys:
            if key:
                self._store.delete(key)

    def _was_moved(self, intent: Record, target: Directory, new_name: str) -> bool:
        """Whether the worker that meant to rename an inode died after it had moved it."""
        child = target.children.get(new_name)
        return child is not None and child.id == intent[1]

    def _find_to_remove(self, directory: Directory, name: str) -> Inode | None:
        """The inode of a name; None where a dead worker removed it for this request."""
        try:
            return self.namespace.find(directory, name)
        except NotFound:
            if self._journal.intent() is None:
                raise
            self.namespace.apply_removal(directory, name)
            return None

    def _check_file_name(self, directory: Directory, name: str) -> None:
        self._store.check_key(directory.key + name)
        if is_link_key(name):
            raise NotPermitted(
                f"`{name}`: objects whose names end so are symbolic links", "choose another name"
            )
        if is_probe_key(name):
            raise NotPermitted(
                f"`{name}`: objects whose names begin so are the sidecar's", "choose another name"
            )

    def _refuse_to_open(self, inode: Inode) -> NoReturn:
        if isinstance(inode, Directory):
            raise IsADirectory(f"`{inode.key}`")
        raise InvalidArgument(f"`{inode.key}` is a symbolic link")

    def _is_current(self, inode: Inode, changes: Mapping[str, int]) -> bool:
        """Whether the changes say what is so already: chown to the owner, say."""
        now = self.namespace.attributes.of(inode)
        current = {
            "mode": stat.S_IMODE(now.mode),
            "uid": now.uid,
            "gid": now.gid,
            "mtime_ns": now.mtime_ns,
        }
        return all(current[name] == value for name, value in changes.items())

    def _set_link_attributes(
        self, inode: Link, changes: Mapping[str, int], size_bytes: int | None
    ) -> None:
        if size_bytes is not None or "mode" in changes:
            raise Unsupported(f"`{inode.key}`: a symbolic link has neither length nor mode to set")
        inode.attributes.update(changes)
        if inode.parent is not None and not inode.detached:
            key = inode.object_key
            most = self._store.limits.max_metadata_bytes
            kept = inode.remote.metadata  # known by now: InodeAttributes.load
            metadata = beside_metadata(kept, inode.attributes, stat.S_IFREG, most)
            inode.remote = self._store.copy(key, key, metadata=metadata)
            self.namespace.apply_change(inode.parent, inode.name, inode.remote)
        self.namespace.inodes.note(inode)

    def _set_directory_attributes(self, inode: Directory, changes: Mapping[str, int]) -> None:
        if inode.parent is None:
            wanted = {name: value for name, value in changes.items() if name != "mtime_ns"}
            if wanted and not self._is_current(inode, wanted):
                raise Unsupported(
                    "the mode and owner of the mount itself are the volume's",
                    "set `access` in the spec",
                )
            inode.mtime_ns = changes.get("mtime_ns", inode.mtime_ns)
        elif changes and not self._is_current(inode, changes):
            attributes = {**inode.attributes, **changes}
            self._write_marker(inode, attributes)
            with self.namespace.inodes.lock:
                inode.kept = True
                self.namespace.attributes.set_of_directory(inode, attributes)
                # Also where the object keeps this time already, and names have moved it since.
                inode.mtime_ns = changes.get("mtime_ns", inode.mtime_ns)
                self.namespace.inodes.note(inode)

    def _remains(self, inode: Directory) -> list[str] | None:
        """Objects that an empty directory has, and nobody sees; None where it is not empty."""
        with self.namespace.inodes.lock:
            if any(self._is_local(child) for child in inode.children.values()):
                return None
        page = self._store.list_page(inode.key, limit=_REMAINS)
        keys = [info.key for info in page.objects]
        if page.prefixes or page.next_token is not None:
            return None
        if not all(key == inode.key or is_probe_key(key) for key in keys):
            return None
        if any(info.key == inode.key and info.size_bytes for info in page.objects):
            # Nobody can see what it holds through the mount, so nobody meant to delete it.
            logs.event(log, "kept: a directory's object has content", key=inode.key)
            return None
        return keys

    def _write_marker(self, inode: Directory, attributes: Mapping[str, int]) -> None:
        """Keep attributes with a directory's object. What another tool put into it stays."""
        with contextlib.suppress(NotFound):
            found = self._store.head(inode.key)
            most = self._store.limits.max_metadata_bytes
            metadata = beside_metadata(found.metadata, attributes, stat.S_IFDIR, most)
            if found.size_bytes:
                self._store.copy(inode.key, inode.key, version=found.version, metadata=metadata)
            else:
                self._store.put(inode.key, b"", metadata, like=found)
            return
        self._store.put(inode.key, b"", to_metadata(attributes, stat.S_IFDIR))

    def _is_local(self, child: Inode) -> bool:
        return isinstance(child, Directory) or (isinstance(child, File) and child.spool is not None)

    def _keep(self, directory: Directory) -> None:
        """A directory that lost its last object stays, as on every other file system."""
        if directory.parent is None or directory.kept:
            return
        listing = directory.listing
        if listing is not None and listing.fully_loaded and (listing.entries or listing.has_marker):
            return
        page = self._store.list_page(directory.key, limit=1)
        if not page.objects and not page.prefixes:
            self._store.put(directory.key, b"")
            directory.kept = True
            self.namespace.inodes.note(directory)


def _after_moves(left: UnsavedFile, moves: Iterable[tuple[str, str]]) -> UnsavedFile:
    """What a file is called now that the moves of its directories are finished."""
    for old, new in moves:
        if left.key.startswith(old):
            left = left._replace(key=new + left.key[len(old) :])
    return left
