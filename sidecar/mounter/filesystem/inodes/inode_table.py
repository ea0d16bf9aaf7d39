"""The table of the inodes that the kernel or a handle holds, and their records for a successor."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Sequence

from sidecar.errors import NodeForgotten
from sidecar.mounter.filesystem.inodes.inode import ROOT, Directory, File, Inode, Link
from sidecar.mounter.filesystem.journal.journal import Journal
from sidecar.mounter.filesystem.journal.records import (
    LOOKUP,
    DirectoryInode,
    FileInode,
    InodeDropped,
    InodeRecord,
    LinkInode,
    Lookups,
    Record,
)
from sidecar.mounter.store.interface import ObjectInfo
from sidecar.mounter.writing.spool import SpoolFile

MOST_INODES = 110_000
"""Above this number the kernel is asked to forget some."""
Adopt = Callable[[str], SpoolFile | None]
"""Opens the spool file of a name."""


class InodeTable:
    """The inodes of one mount. Safe to use from any thread.

    An inode leaves the table when the kernel has forgotten it and nothing of it or below it is
    open or only here.

    Attributes:
        lock: held while names are bound to inodes and inodes come or go.
        most: the number above which there is an excess.
        on_excess: called, with the lock held, when one is added to ``most`` or more.
    """

    def __init__(self, root_mtime_ns: int, journal: Journal) -> None:
        self.lock = threading.RLock()
        self._journal = journal
        self.root = Directory(ROOT, None, "", root_mtime_ns)
        self.root.lookups = 1
        self._inodes: dict[int, Inode] = {ROOT: self.root}
        self._next = ROOT + 1
        self.most = MOST_INODES
        self.on_excess: Callable[[], None] = _ignore

    def __len__(self) -> int:
        return len(self._inodes)

    def __iter__(self) -> Iterator[Inode]:
        with self.lock:
            return iter(list(self._inodes.values()))

    def get(self, inode_id: int) -> Inode:
        """The inode of a number. Raises NodeForgotten."""
        try:
            return self._inodes[inode_id]
        except KeyError:
            raise NodeForgotten(f"inode {inode_id} was never given out or was forgotten") from None

    def find(self, inode_id: int) -> Inode | None:
        """The inode of a number; None if it was never given out or was forgotten."""
        return self._inodes.get(inode_id)

    def hold(self, inodes: Sequence[Inode]) -> None:
        """Count one lookup of each. An inode that another thread has just dropped comes back."""
        with self.lock:
            records: list[Record] = []
            for inode in inodes:
                inode.lookups += 1
                if inode.id not in self._inodes:
                    self._inodes[inode.id] = inode
                    if inode.parent is not None and not inode.detached:
                        inode.parent.children.setdefault(inode.name, inode)
                known = inode.lookups > 1
                records.append(Lookups(inode.id, inode.lookups) if known else _record(inode))
            self._journal.grant(LOOKUP, [inode.id for inode in inodes], records)

    def note(self, inode: Inode) -> None:
        """Write the state of an inode to the journal, after a change."""
        with self.lock:  # so that no older state is written after a newer one
            if _is_held(inode):
                self._journal.write(_record(inode))

    @property
    def last_number(self) -> int:
        """The highest number that was ever given out."""
        return self._next - 1

    def records(self) -> list[Record]:
        """The state of every inode, for the journal. Takes no lock."""
        return [_record(inode) for inode in list(self._inodes.values()) if _is_held(inode)]

    def add_file(self, parent: Directory, name: str, remote: ObjectInfo | None) -> File:
        """A new file inode under a name, in place of the one that had it."""
        with self.lock:
            inode = File(self._take_number(), parent, name, remote)
            self._bind(inode, parent, name)
            return inode

    def add_link(self, parent: Directory, name: str, remote: ObjectInfo) -> Link:
        """A new link inode under a name, in place of the one that had it."""
        with self.lock:
            inode = Link(self._take_number(), parent, name, remote)
            self._bind(inode, parent, name)
            return inode

    def add_directory(self, parent: Directory, name: str, mtime_ns: int) -> Directory:
        """A new directory inode under a name, in place of the one that had it."""
        with self.lock:
            inode = Directory(self._take_number(), parent, name, mtime_ns)
            self._bind(inode, parent, name)
            return inode

    def detach(self, inode: Inode) -> None:
        """Take an inode's name away. Handles and the kernel may still hold it."""
        with self.lock:
            parent = inode.parent
            if not inode.detached and parent is not None:
                inode.detached = True
                if parent.children.get(inode.name) is inode:
                    del parent.children[inode.name]
                self.note(inode)
            self.drop_unused(inode)

    def move(self, inode: Inode, parent: Directory, name: str) -> None:
        """Give an inode another name, in place of the one that had it."""
        with self.lock:
            old = inode.parent
            if old is not None and old.children.get(inode.name) is inode:
                del old.children[inode.name]
            inode.parent, inode.name = parent, name
            self._replace(parent, name)
            parent.children[name] = inode
            self.note(inode)

    def forget(self, inode_id: int, count: int) -> None:
        """Drop ``count`` of the kernel's lookups (FUSE_FORGET)."""
        with self.lock:
            inode = self._inodes.get(inode_id)
            if inode is None or inode is self.root:
                return
            inode.lookups = max(0, inode.lookups - count)
            self._journal.write(Lookups(inode.id, inode.lookups))
            self.drop_unused(inode)

    def drop_unused(self, inode: Inode) -> None:
        """Remove the inode, and then its parents, if nothing holds them."""
        with self.lock:
            while inode is not self.root and not _is_held(inode):
                if self._inodes.pop(inode.id, None) is None:
                    return
                self._journal.write(InodeDropped(inode.id))
                parent = inode.parent
                if parent is None:
                    return
                if parent.children.get(inode.name) is inode:
                    del parent.children[inode.name]
                inode = parent

    def restore(self, kept: dict[int, InodeRecord], last_number: int, adopt: Adopt) -> None:
        """Take over the inodes of a predecessor, by number, from their last records.

        Args:
            last_number: the highest number that it gave out.
            adopt: opens the spool file that a record names; None if it cannot. Such a file is left
                out: programs get ESTALE, and not its content from before it was written to.
        """
        with self.lock:
            for record in kept.values():
                if record.inode != ROOT and (restored := _restored(record, adopt)) is not None:
                    self._inodes[record.inode] = restored
            for number, record in kept.items():
                inode = self._inodes.get(number)
                if inode is None or inode is self.root:
                    continue
                parent = self._inodes.get(record.parent) if record.parent is not None else None
                if isinstance(parent, Directory):
                    inode.parent = parent
                    if not inode.detached:
                        parent.children[inode.name] = inode
                else:
                    inode.detached = True  # its directory was forgotten, so no path leads here
            self._next = max(last_number, ROOT) + 1

    def _take_number(self) -> int:
        number = self._next
        self._next += 1
        return number

    def _bind(self, inode: Inode, parent: Directory, name: str) -> None:
        self._replace(parent, name)
        parent.children[name] = inode
        self._inodes[inode.id] = inode
        if len(self._inodes) > self.most:
            self.on_excess()

    def _replace(self, parent: Directory, name: str) -> None:
        old = parent.children.pop(name, None)
        if old is not None:
            old.detached = True
            self.note(old)
            self.drop_unused(old)


def _ignore() -> None:
    """Do nothing: the kernel may hold as many as it wants."""


def _record(inode: Inode) -> InodeRecord:
    parent = inode.parent.id if inode.parent is not None else None
    if isinstance(inode, File):
        remote, spool = inode.remote, inode.spool
        return FileInode(
            inode.id,
            parent,
            inode.name,
            inode.lookups,
            inode.detached,
            remote.bare if remote is not None else None,
            inode.attributes,
            spool.name if spool is not None else None,
            inode.attributes_set_s is not None or (spool is not None and spool.dirty),
            inode.key if inode.is_local else None,
        )
    if isinstance(inode, Link):
        return LinkInode(
            inode.id,
            parent,
            inode.name,
            inode.lookups,
            inode.detached,
            inode.remote.bare,
            inode.attributes,
            inode.target,
        )
    assert isinstance(inode, Directory)
    return DirectoryInode(
        inode.id,
        parent,
        inode.name,
        inode.lookups,
        inode.detached,
        inode.kept,
        inode.mtime_ns,
    )


def _restored(record: InodeRecord, adopt: Adopt) -> Inode | None:
    inode: File | Link | Directory
    match record:
        case FileInode():
            remote = ObjectInfo(*record.remote) if record.remote is not None else None
            inode = File(record.inode, None, record.name, remote)
            inode.attributes = record.attributes
            if record.spool_name is not None:
                inode.spool = adopt(record.spool_name)
                if inode.spool is None:
                    return None
                inode.spool.dirty = record.is_dirty
            elif record.is_dirty and remote is not None:
                inode.attributes_set_s = time.monotonic()
        case LinkInode():
            inode = Link(record.inode, None, record.name, ObjectInfo(*record.remote))
            inode.attributes = record.attributes
            inode.target = record.target
        case DirectoryInode():
            inode = Directory(record.inode, None, record.name, record.mtime_ns)
            inode.kept = record.kept
    inode.lookups = record.lookups
    inode.detached = record.detached
    return inode


def _is_held(inode: Inode) -> bool:
    """Whether the kernel may ask for the inode, or it or something below it is only here."""
    if inode.lookups:
        return True
    if isinstance(inode, File):
        return bool(inode.handles) or (inode.is_local and not inode.detached)
    return isinstance(inode, Directory) and (
        bool(inode.children) or (inode.kept and not inode.detached)
    )
