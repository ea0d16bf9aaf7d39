"""Inodes of files, directories and links.

One inode is one version of one object. When another writer changes an object in the bucket, its
name gets a new inode. The old one lives on without a name for programs that have it open. So no
reader sees two versions through one inode, and the kernel's cached pages of an inode are always
right. (With one inode for both, fs/fuse/inode.c would truncate the pages to the new size, and a
reader would find the end of the new version in the middle of the old one.)
A change through this mount keeps the inode, as POSIX demands.
"""

from __future__ import annotations

import threading
import time

from sidecar.mounter.filesystem.names.listing import Listing, ListingCost
from sidecar.mounter.filesystem.names.names import LINK_SUFFIX
from sidecar.mounter.filesystem.names.negative_cache import NegativeCache
from sidecar.mounter.store.interface import ObjectInfo
from sidecar.mounter.writing.spool import SpoolFile

_making_a_lock = threading.Lock()

ROOT = 1
"""FUSE_ROOT_ID of the kernel's include/uapi/linux/fuse.h."""


class Inode:
    """The common part of directories, files and links.

    Attributes:
        lookups: how many lookups of it the kernel got and has not forgotten.
        detached: no name leads here any more (deleted, replaced, or changed remotely).
        fresh_until_s: until when its name is valid without asking the store (monotonic).
    """

    __slots__ = ("detached", "fresh_until_s", "id", "lookups", "name", "parent")

    def __init__(self, inode_id: int, parent: Directory | None, name: str) -> None:
        self.id = inode_id
        self.parent = parent
        self.name = name
        self.lookups = 0
        self.detached = False
        self.fresh_until_s = 0.0

    @property
    def key(self) -> str:
        """The object's key below the mount's root; a directory's ends in ``/``."""
        parts = [self.name]
        parent = self.parent
        while parent is not None and parent.parent is not None:
            parts.append(parent.name)
            parent = parent.parent
        return "/".join(reversed(parts))

    @property
    def object_key(self) -> str:
        """The key of its object in the store."""
        return self.key

    @property
    def is_local(self) -> bool:
        """Whether this mount has something of it that the store lacks."""
        return False


class Directory(Inode):
    """A directory.

    Attributes:
        children: the inodes in it that somebody holds, by name.
        kept: made or emptied through this mount, so that it exists without any object.
        listing: the last one; None before the first, and when it has expired.
        expired_listing_cost: of the last listing that expired; None before.
        is_huge: when it was last read, it had more names than there may be inodes.
        negative: names that it does not have.
        misses: names asked for one by one since the last listing.
        misses_took_s: how long the store took to answer for them.
        last_opened_s: when a directory in it was last opened (monotonic).
        attributes: mode, uid, gid and mtime_ns that its object keeps, by name.
        attributes_until_s: until when (monotonic) they are valid; 0 before they were loaded.
        marker: its object, if this mount made it, as long as they are valid.
    """

    __slots__ = (
        "attributes",
        "attributes_until_s",
        "children",
        "expired_listing_cost",
        "is_huge",
        "kept",
        "last_opened_s",
        "listing",
        "lock",
        "marker",
        "misses",
        "misses_took_s",
        "mtime_ns",
        "negative",
    )

    def __init__(self, inode_id: int, parent: Directory | None, name: str, mtime_ns: int) -> None:
        super().__init__(inode_id, parent, name)
        self.children: dict[str, Inode] = {}
        self.listing: Listing | None = None
        self.expired_listing_cost: ListingCost | None = None
        self.is_huge = False
        self.kept = False
        self.misses = 0
        self.misses_took_s = 0.0
        self.last_opened_s = float("-inf")
        self.negative = NegativeCache()
        self.mtime_ns = mtime_ns
        self.attributes: dict[str, int] = {}
        self.attributes_until_s = 0.0
        self.marker: ObjectInfo | None = None
        self.lock = threading.RLock()

    @property
    def key(self) -> str:
        """Ends in ``/``; empty for the root."""
        return f"{super().key}/" if self.parent is not None else ""

    @property
    def is_local(self) -> bool:
        """Whether it may exist without any object."""
        return self.kept


class File(Inode):
    """A file: an object in the store, or one that is only in the spool so far.

    Attributes:
        remote: the object's version that the store has; None before the first upload.
        spool: what was written and is kept locally; reads use it while it exists.
        handles, writers: numbers of open handles, and of those that may write.
        saved_s: when this mount last made an object of it (monotonic).
        attributes_set_s: when attributes were last set that the object lacks (monotonic); None if
            it has them, or will get them with the content of the spool.
        was_read: the kernel may have pages of it, which go when it forgets the inode.
    """

    __slots__ = (
        "_attributes",
        "_lock",
        "attributes_set_s",
        "handles",
        "remote",
        "saved_s",
        "spool",
        "was_read",
        "writers",
    )

    def __init__(
        self, inode_id: int, parent: Directory | None, name: str, remote: ObjectInfo | None
    ) -> None:
        super().__init__(inode_id, parent, name)
        self.remote = remote
        self.spool: SpoolFile | None = None
        self.handles = 0
        self.writers = 0
        self.was_read = False
        self.saved_s = float("-inf")
        self.attributes_set_s: float | None = None
        # There are very many files, and most of them need neither of these.
        self._attributes: dict[str, int] | None = None
        self._lock: threading.RLock | None = None

    @property
    def attributes(self) -> dict[str, int]:
        """Mode, uid, gid and mtime_ns that were set, by name. Replace it, do not change it."""
        return self._attributes or {}

    @attributes.setter
    def attributes(self, attributes: dict[str, int]) -> None:
        self._attributes = attributes or None

    def touch(self) -> None:
        """Note that it was modified just now."""
        self._attributes = {**self.attributes, "mtime_ns": time.time_ns()}

    @property
    def lock(self) -> threading.RLock:
        """Held while the spool is changed or uploaded."""
        lock = self._lock
        if lock is None:
            with _making_a_lock:
                lock = self._lock = self._lock or threading.RLock()
        return lock

    @property
    def size_bytes(self) -> int:
        """The length that a reader sees."""
        if self.spool is not None:
            return self.spool.size_bytes
        return self.remote.size_bytes if self.remote is not None else 0

    @property
    def is_local(self) -> bool:
        """Whether its content is in the spool, or some attributes are only here."""
        return self.spool is not None or self.attributes_set_s is not None

    @property
    def is_dirty(self) -> bool:
        """Whether it has a name and the store lacks something of it."""
        is_saved = self.spool is None or not self.spool.dirty
        return not (self.detached or (is_saved and self.attributes_set_s is None))

    @property
    def unsaved_bytes(self) -> int:
        """Its length, if the store has another content; else 0."""
        return self.spool.size_bytes if self.spool is not None and self.spool.dirty else 0


class Link(Inode):
    """A symbolic link.

    Attributes:
        remote: the object's version; its content is the target.
        target: the content; None before it was read.
        attributes: uid, gid and mtime_ns that were set, by name.
    """

    __slots__ = ("attributes", "remote", "target")

    def __init__(self, inode_id: int, parent: Directory | None, name: str, remote: ObjectInfo):
        super().__init__(inode_id, parent, name)
        self.remote = remote
        self.target: bytes | None = None
        self.attributes: dict[str, int] = {}

    @property
    def object_key(self) -> str:
        """The key ends in a suffix that the name does not have."""
        return self.key + LINK_SUFFIX
