"""Names to inodes: what the store has, what this mount changed, and how long each is valid."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from concurrent.futures import Executor
from typing import TypeGuard

from sidecar.errors import NotADirectory, NotFound
from sidecar.mounter.filesystem.inodes.attributes import Entry, Ownership
from sidecar.mounter.filesystem.inodes.directory_cache import DirectoryCache
from sidecar.mounter.filesystem.inodes.excess_inodes import INODE_BYTES, ExcessInodes
from sidecar.mounter.filesystem.inodes.inode import Directory, File, Inode, Link
from sidecar.mounter.filesystem.inodes.inode_attributes import InodeAttributes
from sidecar.mounter.filesystem.inodes.inode_table import InodeTable
from sidecar.mounter.filesystem.inodes.name_resolver import NameResolver
from sidecar.mounter.filesystem.inodes.subtree_locks import SubtreeLocks, is_at_or_below
from sidecar.mounter.filesystem.journal.journal import Journal
from sidecar.mounter.filesystem.names.names import check_name, is_link_key
from sidecar.mounter.filesystem.names.remotes import REMOTE_DIRECTORY, Remote
from sidecar.mounter.store.interface import ObjectInfo, Store


class Namespace:
    """The names of one mount. Safe to use from any thread.

    Attributes:
        ttl_s: how long names and attributes are valid without asking the store.
        owner: of objects that keep no owner of their own.
        inodes: those that the kernel or a handle holds.
        excess_inodes: those that the kernel is asked to forget.
        directory_cache: what is remembered of the store's directories.
        attributes: what stat(2) shows of an inode.
        subtree_locks: must be held while keys change in the store.
        on_remote_change: called with an inode that lost its name because the bucket changed.

    Args:
        hidden: counts keys that no path shows, by reason.
        threads: ask the store before the answer is needed.
        reads_attributes: whether the attributes that objects keep in metadata are shown.
        names_bytes: memory for listings.
    """

    def __init__(
        self,
        store: Store,
        owner: Ownership,
        ttl_s: float,
        hidden: Callable[[str], None],
        journal: Journal,
        threads: Executor,
        *,
        reads_attributes: bool,
        names_bytes: int,
    ) -> None:
        self.ttl_s = ttl_s
        self.owner = owner
        self.inodes = InodeTable(time.time_ns(), journal)
        self.excess_inodes = ExcessInodes(self.inodes)
        self.directory_cache = DirectoryCache(
            store, self.inodes, ttl_s, hidden, threads, names_bytes
        )
        self.attributes = InodeAttributes(
            store, self.inodes, owner, threads, reads_attributes=reads_attributes
        )
        self.subtree_locks = SubtreeLocks()
        self.on_remote_change: Callable[[Inode], None] = _ignore
        self._resolver = NameResolver(store, self.directory_cache, ttl_s)
        self._renamed_directories = 0  # so far

    # --- names ---------------------------------------------------------------------------

    def directory(self, inode_id: int) -> Directory:
        """The directory inode of a number. Raises NodeForgotten, NotADirectory."""
        inode = self.inodes.get(inode_id)
        if not isinstance(inode, Directory):
            raise NotADirectory(f"`{inode.key}` is no directory")
        return inode

    def find(self, parent: Directory, name: str, *, wait: bool = True) -> Inode:
        """The inode of a name. Asks the store if nothing fresh is known.

        Raises NotFound, NameTooLong, NameInvalid, the store's errors, and WouldBlock if the store
        must be asked and ``wait`` is False.
        """
        now_s = time.monotonic()
        child = parent.children.get(name)
        if child is not None and (child.is_local or child.fresh_until_s > now_s):
            return child
        if parent.negative.holds(name, now_s):
            raise NotFound(f"`{parent.key}{name}`")
        check_name(name)
        while True:
            renamed = self._renamed_directories
            remote, fresh_until_s = self._resolver.resolve(parent, name, wait=wait)
            with self.inodes.lock:
                if self._renamed_directories == renamed:
                    return self.bind(parent, name, remote, fresh_until_s)
            # The answer may be for the key that the directory had before a rename.

    def bind(
        self, parent: Directory, name: str, remote: Remote | None, fresh_until_s: float
    ) -> Inode:
        """Make the inode of a name agree with the store's answer. Raises NotFound.

        The caller holds the inodes' lock, and no directory was renamed since it asked.

        Args:
            remote: what the store has; None: nothing has this name.
            fresh_until_s: until when that is valid (monotonic).
        """
        child = parent.children.get(name)
        if child is not None and child.is_local:
            return child
        if remote is None:
            if child is not None:
                self.inodes.detach(child)
                self.on_remote_change(child)
            self.directory_cache.add_absent(parent, name, fresh_until_s)
            raise NotFound(f"`{parent.key}{name}`")
        old, found = child, self._inode_of(parent, name, child, remote)
        found.fresh_until_s = fresh_until_s
        if old is not None and found is not old:
            self.on_remote_change(old)
        return found

    def _inode_of(self, parent: Directory, name: str, child: Inode | None, remote: Remote) -> Inode:
        """The name's inode if it is what the store has, else a new one in its place."""
        if not isinstance(remote, ObjectInfo):
            if isinstance(child, Directory):
                return child
            return self.inodes.add_directory(parent, name, parent.mtime_ns)
        if _is_version(child, remote):
            self.attributes.renew(child, remote)
            return child
        add = self.inodes.add_link if is_link_key(remote.key) else self.inodes.add_file
        inode = add(parent, name, remote)
        if remote.metadata is not None:
            self.attributes.take_from(remote, inode)
        return inode

    def absence_ttl_s(self, parent: Directory, name: str) -> float:
        """For how many more seconds a name that was not found is known to be absent."""
        return parent.negative.remaining_s(name)

    def enter(self, inode: Inode) -> Entry:
        """Count one lookup of the inode by the kernel; what the kernel may keep of it."""
        self.inodes.hold([inode])
        return self.entry(inode)

    def entry(self, inode: Inode) -> Entry:
        """The attributes of an inode, and how long the kernel may keep them."""
        ttl_s = self.ttl_s
        if not (inode.parent is None or inode.detached or inode.is_local):
            ttl_s = max(0.0, inode.fresh_until_s - time.monotonic())
        attributes_ttl_s = ttl_s if self.attributes.are_loaded(inode) else 0.0
        return Entry(self.attributes.of(inode), ttl_s, attributes_ttl_s)

    def refresh(self, inode: Inode, *, wait: bool = True) -> None:
        """Ask the store for the name of an inode if its lifetime has ended.

        Raises as :meth:`find`, but NotFound only if nobody has the file open.
        """
        parent = inode.parent
        if parent is None or inode.detached or inode.is_local:
            return
        if inode.fresh_until_s > time.monotonic():
            return
        try:
            self.find(parent, inode.name, wait=wait)
        except NotFound:
            # Programs that have it open ask by the inode, maybe without a handle (read-only
            # mounts).
            if not (isinstance(inode, File) and inode.lookups):
                raise

    def shrink(self, target_bytes: int) -> int:
        """Let names (of listings, and inodes) take about ``target_bytes`` or less.

        Returns what they take then. Inodes go a moment later, when the kernel has forgotten them.
        """
        listed_bytes = self.directory_cache.shrink(target_bytes // 2)
        with self.inodes.lock:
            self.excess_inodes.reduce(max(0, target_bytes - listed_bytes) // INODE_BYTES)
        return listed_bytes + len(self.inodes) * INODE_BYTES

    # --- changes -------------------------------------------------------------------------

    def apply_change(self, parent: Directory, name: str, remote: Remote) -> None:
        """Note that this mount made ``remote`` in the store under a name."""
        parent.mtime_ns = time.time_ns()
        self.directory_cache.apply_change(parent, name, remote)

    def apply_version(self, inode: File | Link) -> None:
        """Note that this mount made another object of an inode, and changed no name."""
        remote = inode.remote
        if remote is not None and inode.parent is not None and not inode.detached:
            self.directory_cache.apply_change(inode.parent, inode.name, remote)

    def apply_removal(self, parent: Directory, name: str) -> None:
        """Note that this mount removed a name from the store."""
        parent.mtime_ns = time.time_ns()
        self.directory_cache.apply_change(parent, name, None)

    def invalidate(self, inode: Inode) -> bool:
        """Note that the store has another version of a file or a link, or none.

        The next lookup of its name asks the store. False if no name leads to it.
        """
        with self.inodes.lock:
            parent = inode.parent
            if parent is None or inode.detached or isinstance(inode, Directory) or inode.is_local:
                return False
            inode.fresh_until_s = 0.0
            self.directory_cache.invalidate(parent, inode.name)
            return True

    def set_resolved_version(self, inode: File, remote: ObjectInfo, asked_s: float) -> None:
        """Take the store's name, in ``remote``, for the version that this mount made.

        Args:
            asked_s: when the store was asked (monotonic).
        """
        inode.remote = remote
        inode.fresh_until_s = asked_s + self.ttl_s
        self.apply_version(inode)
        self.inodes.note(inode)

    def rename_directory(
        self,
        inode: Directory,
        target: Directory,
        name: str,
        copied: Mapping[str, tuple[ObjectInfo, ObjectInfo]],
    ) -> None:
        """Give a directory another name, and all below it other keys. The store has copied them.

        Args:
            copied: old key to (the version that was copied, the copy).
        """
        source, old_name = inode.parent, inode.name
        assert source is not None
        with self.inodes.lock:
            below = [other for other in self.inodes if is_at_or_below(other, inode)]
            old, old_keys = inode.key, {other.id: other.object_key for other in below}
            self.inodes.move(inode, target, name)
            self._renamed_directories += 1
            for other in below:
                if isinstance(other, File | Link):
                    self._rename_object(other, copied.get(old_keys[other.id]))
            self.directory_cache.rename(inode, old, below, copied)
        self.apply_removal(source, old_name)
        self.apply_change(target, name, REMOTE_DIRECTORY)

    def adopt_copies(self, inode_id: int, old: str, copies: Mapping[str, ObjectInfo]) -> None:
        """Make files below a directory their copies, as :meth:`rename_directory` does.

        For a successor: its predecessor may have died before it had noted all of them.

        Args:
            old: the directory's key before.
            copies: what the store has below its key now, by key.
        """
        directory = self.inodes.find(inode_id)
        if not isinstance(directory, Directory):
            return
        with self.inodes.lock:
            for other in self.inodes:
                if not isinstance(other, File | Link) or not is_at_or_below(other, directory):
                    continue
                copy, known = copies.get(other.object_key), other.remote
                if copy and known and known.key.startswith(old) and known.key != other.object_key:
                    other.remote = copy
                    self.inodes.note(other)

    def _rename_object(
        self, inode: File | Link, pair: tuple[ObjectInfo, ObjectInfo] | None
    ) -> None:
        """Make the inode the copy of its object."""
        known = inode.remote
        if isinstance(inode, File) and inode.spool is not None:
            # The spool's content is newer, whatever was copied.
            inode.remote = pair[1] if pair is not None else None
        elif pair is not None and known is not None and known.version == pair[0].version:
            inode.remote = pair[1]
        else:
            self.inodes.detach(inode)  # somebody else changed or deleted it; readers get ESTALE
            return
        self.inodes.note(inode)


def _ignore(_inode: Inode) -> None:
    """Do nothing: nobody needs to be told."""


def _is_version(inode: Inode | None, remote: ObjectInfo) -> TypeGuard[File | Link]:
    """Whether an inode is this version of this kind of object."""
    if not isinstance(inode, Link if is_link_key(remote.key) else File):
        return False
    known = inode.remote
    return known is not None and known.version == remote.version
