"""The attributes of inodes, as far as their objects keep them in their metadata.

Says what stat(2) shows and loads what is missing.
"""

from __future__ import annotations

import stat
import time
from concurrent.futures import Executor

from sidecar.mounter.filesystem.inodes.attributes import Attributes, Ownership, from_metadata
from sidecar.mounter.filesystem.inodes.inode import Directory, File, Inode, Link
from sidecar.mounter.filesystem.inodes.inode_table import InodeTable
from sidecar.mounter.filesystem.names.metadata_prefetch import MetadataPrefetch, MetadataVersion
from sidecar.mounter.filesystem.names.remotes import REMOTE_DIRECTORY
from sidecar.mounter.store.interface import ObjectInfo, Store

_DIRECTORY_TTL_S = 60.0
"""How long loaded attributes of a directory are valid. No listing shows that they changed."""
_DIRECTORY_BYTES = 4096


class InodeAttributes:
    """The attributes of the inodes of one mount. Safe to use from any thread.

    Args:
        owner: of objects that keep no attributes.
        threads: load attributes before they are needed.
        reads_attributes: whether the attributes that objects keep are shown at all.
    """

    def __init__(
        self,
        store: Store,
        inodes: InodeTable,
        owner: Ownership,
        threads: Executor,
        *,
        reads_attributes: bool,
    ) -> None:
        self._inodes = inodes
        self._owner = owner
        self._reads_attributes = reads_attributes
        self._prefetch = MetadataPrefetch(store, threads)

    def of(self, inode: Inode) -> Attributes:
        """The attributes as they are known now."""
        owner = self._owner
        if isinstance(inode, File):
            remote, kept = inode.remote, inode.attributes
            mtime_ns = int(remote.mtime_s * 1e9) if remote is not None else 0
            if not kept:
                return Attributes(
                    inode.id,
                    owner.file_type_mode(),
                    inode.size_bytes,
                    mtime_ns,
                    0 if inode.detached else 1,
                    owner.uid,
                    owner.gid,
                )
            return Attributes(
                inode.id,
                stat.S_IFREG | kept.get("mode", owner.file_mode),
                inode.size_bytes,
                kept.get("mtime_ns", mtime_ns),
                0 if inode.detached else 1,
                kept.get("uid", owner.uid),
                kept.get("gid", owner.gid),
            )
        if isinstance(inode, Link):
            return Attributes(
                inode.id,
                owner.link_type_mode(),
                inode.remote.size_bytes,
                inode.attributes.get("mtime_ns", int(inode.remote.mtime_s * 1e9)),
                0 if inode.detached else 1,
                inode.attributes.get("uid", owner.uid),
                inode.attributes.get("gid", owner.gid),
            )
        assert isinstance(inode, Directory)
        kept = inode.attributes
        return Attributes(
            inode.id,
            stat.S_IFDIR | kept.get("mode", owner.dir_mode),
            _DIRECTORY_BYTES,
            inode.mtime_ns,
            2,
            kept.get("uid", owner.uid),
            kept.get("gid", owner.gid),
        )

    def are_loaded(self, inode: Inode) -> bool:
        """Whether :meth:`of` has everything that the inode's object keeps."""
        if not self._reads_attributes or inode.parent is None or inode.detached:
            return True
        if isinstance(inode, Directory):
            return inode.attributes_until_s > time.monotonic()
        assert isinstance(inode, File | Link)
        return inode.remote is None or inode.is_local or inode.remote.metadata is not None

    def load(self, inode: Inode, *, wait: bool = True) -> None:
        """Ask the store for attributes that are not loaded.

        Raises the store's errors, and WouldBlock if the store must be asked and ``wait`` is False.
        """
        if self.are_loaded(inode):
            return
        parent, key = inode.parent, inode.object_key
        assert parent is not None
        if parent.listing is not None:
            self._prefetch.prefetch_after(parent.key, parent.listing, inode.name)
        if isinstance(inode, Directory):
            marker = self._prefetch.get(key, REMOTE_DIRECTORY, wait=wait)
            attributes = from_metadata((marker and marker.metadata) or {})
            with self._inodes.lock:
                self.set_of_directory(inode, attributes)
            return
        assert isinstance(inode, File | Link)
        remote = inode.remote
        assert remote is not None
        found = self._prefetch.get(key, remote, wait=wait)
        loaded = remote._replace(
            metadata=(found and found.metadata) or {}, properties=(found and found.properties) or {}
        )
        with self._inodes.lock:
            if inode.remote is remote and not inode.is_local:
                self.take_from(loaded, inode)

    def set_of_directory(
        self, inode: Directory, attributes: dict[str, int], made: ObjectInfo | None = None
    ) -> None:
        """Set the attributes that a directory's object keeps. The caller holds the inodes' lock.

        Args:
            made: the object, if this mount has just made it.
        """
        inode.marker = made
        # A directory's time moves with its names, and that is not saved each time. So the object's
        # time is used when it is first seen, and when somebody has set it since.
        mtime_ns = attributes.get("mtime_ns")
        if mtime_ns is not None and mtime_ns != inode.attributes.get("mtime_ns"):
            inode.mtime_ns = mtime_ns
        inode.attributes = attributes
        inode.attributes_until_s = time.monotonic() + _DIRECTORY_TTL_S

    def take_from(self, remote: ObjectInfo, inode: File | Link) -> None:
        """Take the attributes of ``remote``, which the inode is.

        The caller holds the inodes' lock.
        """
        inode.remote = remote
        if self._reads_attributes and remote.metadata is not None:
            inode.attributes = from_metadata(remote.metadata)
        self._inodes.note(inode)

    def renew(self, inode: File | Link, remote: ObjectInfo) -> None:
        """Take the store's answer about the inode's version: its metadata may have changed.

        The caller holds the inodes' lock.
        """
        known = inode.remote
        if not self._reads_attributes or known is None:
            return
        if remote.metadata is not None:
            if (remote.metadata, remote.properties) != (known.metadata, known.properties):
                self.take_from(remote, inode)
        elif MetadataVersion.of(remote) != MetadataVersion.of(known):
            self.take_from(remote, inode)
