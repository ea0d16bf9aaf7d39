"""chmod, chown, utimensat and truncate(2): where each kind of inode keeps its new attributes.

``attributes`` turns them into an object's metadata.
"""

from __future__ import annotations

import stat
from collections.abc import Mapping

from sidecar.errors import IsADirectory, Unsupported
from sidecar.mounter.filesystem.content.open_files import OpenFiles
from sidecar.mounter.filesystem.inodes.attributes import merge_metadata
from sidecar.mounter.filesystem.inodes.directory_markers import DirectoryMarkers
from sidecar.mounter.filesystem.inodes.inode import Directory, File, Inode, Link
from sidecar.mounter.filesystem.inodes.namespace import Namespace
from sidecar.mounter.store.interface import Store


class AttributeChanges:
    """Sets attributes of one mount's inodes. Safe to use from any thread."""

    def __init__(
        self, store: Store, namespace: Namespace, files: OpenFiles, markers: DirectoryMarkers
    ) -> None:
        self._store = store
        self._namespace = namespace
        self._files = files
        self._markers = markers

    def set(self, inode: Inode, changes: Mapping[str, int], size_bytes: int | None) -> None:
        """Set mode, uid, gid and mtime_ns, as far as given, and the length.

        The caller holds the inode's subtree lock. Raises IsADirectory, Unsupported, and what the
        store raises.
        """
        if isinstance(inode, Directory):
            if size_bytes is not None:
                raise IsADirectory(f"`{inode.key}`")
            self._set_directory(inode, changes)
        elif isinstance(inode, File):
            if size_bytes is not None:
                self._files.truncate(inode, size_bytes)
            if changes and not self._is_current(inode, changes):
                self._files.set_attributes(inode, changes)
        elif isinstance(inode, Link):
            if size_bytes is not None or "mode" in changes:
                raise Unsupported(
                    f"`{inode.key}`: a symbolic link has neither length nor mode to set"
                )
            self._set_link(inode, changes)

    def _set_link(self, inode: Link, changes: Mapping[str, int]) -> None:
        inode.attributes = {**inode.attributes, **changes}
        if inode.parent is not None and not inode.detached:
            key = inode.object_key
            most = self._store.limits.max_metadata_bytes
            kept = inode.remote.metadata  # known by now: InodeAttributes.load
            metadata = merge_metadata(kept, inode.attributes, stat.S_IFREG, most)
            inode.remote = self._store.copy(key, key, known=inode.remote, metadata=metadata)
            self._namespace.apply_version(inode)
        self._namespace.inodes.note(inode)

    def _set_directory(self, inode: Directory, changes: Mapping[str, int]) -> None:
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
            made = self._markers.write(inode, attributes)
            with self._namespace.inodes.lock:
                inode.kept = True
                self._namespace.attributes.set_of_directory(inode, attributes, made)
                # Set even if the object keeps this time already: names may have moved it since.
                inode.mtime_ns = changes.get("mtime_ns", inode.mtime_ns)
                self._namespace.inodes.note(inode)

    def _is_current(self, inode: Inode, changes: Mapping[str, int]) -> bool:
        """Whether the changes change nothing, such as chown to the owner."""
        now = self._namespace.attributes.of(inode)
        current = {
            "mode": stat.S_IMODE(now.mode),
            "uid": now.uid,
            "gid": now.gid,
            "mtime_ns": now.mtime_ns,
        }
        return all(current[name] == value for name, value in changes.items())
