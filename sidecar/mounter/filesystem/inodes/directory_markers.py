"""Directory markers: objects whose keys end in ``/``, which keep empty directories."""

from __future__ import annotations

import contextlib
import logging
import stat
import time
from collections.abc import Mapping

from sidecar import logs
from sidecar.errors import NotFound, Stale
from sidecar.mounter.filesystem.inodes.attributes import merge_metadata, to_metadata
from sidecar.mounter.filesystem.inodes.inode import Directory, File, Inode
from sidecar.mounter.filesystem.inodes.namespace import Namespace
from sidecar.mounter.filesystem.names.names import is_probe_key
from sidecar.mounter.filesystem.names.remotes import REMOTE_DIRECTORY, Remote, from_relative_key
from sidecar.mounter.store.interface import Condition, ObjectInfo, Store

log = logging.getLogger(__name__)

_REMAINS = 16
"""An empty directory has fewer objects than this: its marker, and probes."""
_PAGE = 1000
"""The page size if names that may still be listed were changed."""


class DirectoryMarkers:
    """The markers of one mount's directories. Safe to use from any thread."""

    def __init__(self, store: Store, namespace: Namespace) -> None:
        self._store = store
        self._namespace = namespace

    def write(self, directory: Directory, attributes: Mapping[str, int]) -> ObjectInfo:
        """Keep attributes with a marker, made if there is none. Other tools' content stays."""
        key, made = directory.key, directory.marker
        if made is not None and made.key == key and made.is_complete:
            unchanged = Condition(version=made.version)
            with contextlib.suppress(NotFound, Stale):
                metadata = self._merged(made, attributes)
                return self._store.put(key, b"", metadata, unchanged, like=made)
        with contextlib.suppress(NotFound):
            found = self._store.head(key)
            metadata = self._merged(found, attributes)
            if found.size_bytes:
                return self._store.copy(key, key, known=found, metadata=metadata)
            return self._store.put(key, b"", metadata, like=found)
        return self._store.put(key, b"", to_metadata(attributes, stat.S_IFDIR))

    def _merged(self, found: ObjectInfo, attributes: Mapping[str, int]) -> dict[str, str]:
        most = self._store.limits.max_metadata_bytes
        return merge_metadata(found.metadata, attributes, stat.S_IFDIR, most)

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
        entries = [*page.prefixes, *(info.key for info in page.objects)]
        changes = self._namespace.directory_cache.changes
        is_late = any(changes.is_removed(directory.key, _name(directory, key)) for key in entries)
        if not entries or (is_late and self.unseen_keys(directory) is not None):
            self._store.put(directory.key, b"")
            directory.kept = True
            self._namespace.inodes.note(directory)

    def unseen_keys(self, directory: Directory) -> list[str] | None:
        """The objects of an empty directory, which nobody sees; None if it is not empty."""
        with self._namespace.inodes.lock:
            if any(_is_here(child) for child in directory.children.values()):
                return None
        changes, requested_s = self._namespace.directory_cache.changes, time.monotonic()
        changed: dict[str, Remote | None] = dict.fromkeys(changes.names(directory.key))
        unseen: list[ObjectInfo] = []
        token = None
        while True:
            limit = _REMAINS if not changed else _PAGE
            page = self._store.list_page(directory.key, token, limit=limit)
            entries: list[tuple[str, Remote]] = [(info.key, info) for info in page.objects]
            for key, remote in entries + [(key, REMOTE_DIRECTORY) for key in page.prefixes]:
                name = _name(directory, key)
                if isinstance(remote, ObjectInfo) and (key == directory.key or is_probe_key(key)):
                    unseen.append(remote)
                elif name in changed:
                    changed[name] = remote
                else:
                    return None
            token = page.next_token
            if token is None:
                break
        right = changes.reconcile(directory.key, changed, requested_s)
        if any(remote is not None for remote in {**changed, **right}.values()):
            return None
        if any(info.key == directory.key and info.size_bytes for info in unseen):
            # Nobody can see its content through the mount, so nobody meant to delete it.
            logs.event(log, "kept: a directory's object has content", key=directory.key)
            return None
        return [info.key for info in unseen]


def _name(directory: Directory, key: str) -> str:
    return from_relative_key(key[len(directory.key) :])[0]


def _is_here(child: Inode) -> bool:
    return isinstance(child, Directory) or (isinstance(child, File) and child.spool is not None)
