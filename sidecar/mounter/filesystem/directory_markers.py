"""Directory markers: objects whose keys end in ``/``, which keep directories that are empty.

Making and removing names does not belong here.
"""

from __future__ import annotations

import contextlib
import logging
import stat
from collections.abc import Mapping

from sidecar import logs
from sidecar.errors import NotFound
from sidecar.mounter.filesystem.attributes import merge_metadata, to_metadata
from sidecar.mounter.filesystem.inodes import Directory, File, Inode
from sidecar.mounter.filesystem.names import is_probe_key
from sidecar.mounter.filesystem.namespace import Namespace
from sidecar.mounter.store.interface import Store

log = logging.getLogger(__name__)

_REMAINS = 16
"""More objects than a directory has that shows none: its marker, and probes."""


class DirectoryMarkers:
    """The markers of one mount's directories. Safe to use from any thread."""

    def __init__(self, store: Store, namespace: Namespace) -> None:
        self._store = store
        self._namespace = namespace

    def write(self, directory: Directory, attributes: Mapping[str, int]) -> None:
        """Keep attributes with a marker, made if there is none. Other tools' content stays."""
        key = directory.key
        with contextlib.suppress(NotFound):
            found = self._store.head(key)
            most = self._store.limits.max_metadata_bytes
            metadata = merge_metadata(found.metadata, attributes, stat.S_IFDIR, most)
            if found.size_bytes:
                self._store.copy(key, key, version=found.version, metadata=metadata)
            else:
                self._store.put(key, b"", metadata, like=found)
            return
        self._store.put(key, b"", to_metadata(attributes, stat.S_IFDIR))

    def keep(self, directory: Directory) -> None:
        """Keep a directory that lost its last object, as every other file system does."""
        if directory.parent is None or directory.kept:
            return
        listing = directory.listing
        if (
            listing is not None
            and listing.fully_loaded
            and (listing.shows_any or listing.has_marker)
        ):
            return
        page = self._store.list_page(directory.key, limit=1)
        if not page.objects and not page.prefixes:
            self._store.put(directory.key, b"")
            directory.kept = True
            self._namespace.inodes.note(directory)

    def unseen_keys(self, directory: Directory) -> list[str] | None:
        """The objects of an empty directory, which nobody sees; None where it is not empty."""
        with self._namespace.inodes.lock:
            if any(_is_here(child) for child in directory.children.values()):
                return None
        page = self._store.list_page(directory.key, limit=_REMAINS)
        keys = [info.key for info in page.objects]
        if page.prefixes or page.next_token is not None:
            return None
        if not all(key == directory.key or is_probe_key(key) for key in keys):
            return None
        if any(info.key == directory.key and info.size_bytes for info in page.objects):
            # Nobody can see what it holds through the mount, so nobody meant to delete it.
            logs.event(log, "kept: a directory's object has content", key=directory.key)
            return None
        return keys


def _is_here(child: Inode) -> bool:
    return isinstance(child, Directory) or (isinstance(child, File) and child.spool is not None)
