"""Operations that make and remove names: mkdir, rmdir, create, symlink, unlink.

The intention is written to the journal before the store is asked. So a request that is sent again
finds that its change may have been made, which is then no error.
"""

from __future__ import annotations

import stat
import time

from sidecar.errors import (
    FileExists,
    IsADirectory,
    NameTooLong,
    NotADirectory,
    NotEmpty,
    NotFound,
)
from sidecar.mounter.filesystem.content.open_files import OpenFiles
from sidecar.mounter.filesystem.inodes.attributes import (
    Caller,
    Entry,
    attributes_of_new,
    to_metadata,
)
from sidecar.mounter.filesystem.inodes.directory_markers import DirectoryMarkers
from sidecar.mounter.filesystem.inodes.inode import Directory, File, Inode, Link
from sidecar.mounter.filesystem.inodes.namespace import Namespace
from sidecar.mounter.filesystem.journal.journal import Journal
from sidecar.mounter.filesystem.names.names import LINK_SUFFIX, TARGET_MAX_BYTES, check_file_name
from sidecar.mounter.filesystem.names.remotes import REMOTE_DIRECTORY
from sidecar.mounter.store.interface import Store


class NameChanges:
    """Makes and removes names of one mount. Safe to use from any thread.

    The caller holds the directory's subtree lock. A new file needs none: its object comes later.
    """

    def __init__(
        self,
        store: Store,
        namespace: Namespace,
        files: OpenFiles,
        journal: Journal,
        markers: DirectoryMarkers,
    ) -> None:
        self._store = store
        self._namespace = namespace
        self._files = files
        self._journal = journal
        self._markers = markers

    def make_directory(
        self, directory: Directory, name: str, mode: int | None, caller: Caller | None
    ) -> Entry:
        """mkdir(2), counted as held. Raises FileExists, what the store raises."""
        found = find_or_none(self._namespace, directory, name)
        if found is not None:
            if self._was_begun and isinstance(found, Directory):
                return self._namespace.enter(found)  # a dead worker made it for this request
            raise FileExists(f"`{directory.key}{name}`")
        key = f"{directory.key}{name}/"
        self._store.check_key(key)
        mode = self._namespace.owner.dir_mode if mode is None else mode
        attributes = self._attributes_of_new(directory, stat.S_IFDIR | mode, caller)
        self._journal.intend("mkdir")
        made = self._store.put(key, b"", to_metadata(attributes, stat.S_IFDIR))
        with self._namespace.inodes.lock:
            inode = self._namespace.inodes.add_directory(directory, name, time.time_ns())
            inode.kept = True
            self._namespace.attributes.set_of_directory(inode, attributes, made)
            self._namespace.apply_change(directory, name, REMOTE_DIRECTORY)
            return self._namespace.enter(inode)

    def remove_directory(self, directory: Directory, name: str) -> None:
        """rmdir(2). Raises NotADirectory, NotEmpty, NotFound, what the store raises."""
        inode = self._find_to_remove(directory, name)
        if inode is not None:
            if not isinstance(inode, Directory):
                raise NotADirectory(f"`{inode.key}`")
            keys = self._markers.unseen_keys(inode)
            if keys is None:
                raise NotEmpty(f"`{inode.key}`")
            self._journal.intend("rmdir")
            for key in {*keys, inode.key}:
                self._store.delete(key)
            inode.kept = False
            self._namespace.apply_removal(directory, name)
            self._namespace.inodes.detach(inode)
        self._markers.keep(directory)

    def find_created(self, directory: Directory, name: str, *, exclusive: bool) -> Inode | None:
        """The file that open(2) with O_CREAT finds; None if it has to make one.

        Raises FileExists for O_EXCL, unless a dead worker made it for this very request.
        """
        found = find_or_none(self._namespace, directory, name)
        if found is not None and exclusive and not self._was_begun:
            raise FileExists(f"`{found.key}`")
        return found

    def create(
        self, directory: Directory, name: str, mode: int, caller: Caller | None, *, exclusive: bool
    ) -> tuple[Entry, File]:
        """A new, empty file, counted as held. Raises NotPermitted if no file may have the name."""
        self._store.check_key(directory.key + name)
        check_file_name(name)
        attributes = self._attributes_of_new(directory, stat.S_IFREG | stat.S_IMODE(mode), caller)
        self._journal.intend("create")
        with self._namespace.inodes.lock:
            file = self._files.create(directory, name, attributes, exclusive=exclusive)
            directory.negative.discard(name)
            directory.mtime_ns = time.time_ns()
            return self._namespace.enter(file), file

    def symlink(
        self, directory: Directory, name: str, target: bytes, caller: Caller | None
    ) -> Entry:
        """symlink(2), counted as held. Raises FileExists, NameTooLong, what the store raises."""
        found = find_or_none(self._namespace, directory, name)
        if found is not None:
            if self._was_begun and isinstance(found, Link):
                return self._namespace.enter(found)  # a dead worker made it for this request
            raise FileExists(f"`{found.key}`")
        if len(target) > TARGET_MAX_BYTES:
            raise NameTooLong(f"a link's target of {len(target)} bytes")
        key = f"{directory.key}{name}{LINK_SUFFIX}"
        self._store.check_key(key)
        attributes = self._attributes_of_new(
            directory, self._namespace.owner.link_type_mode(), caller
        )
        self._journal.intend("symlink")
        remote = self._store.put(key, target, to_metadata(attributes, stat.S_IFREG))
        with self._namespace.inodes.lock:
            inode = self._namespace.inodes.add_link(directory, name, remote)
            inode.target = target
            inode.attributes = attributes
            inode.fresh_until_s = time.monotonic() + self._namespace.ttl_s
            self._namespace.apply_change(directory, name, remote)
            return self._namespace.enter(inode)

    def unlink(self, directory: Directory, name: str) -> None:
        """unlink(2). Raises IsADirectory, NotFound, what the store raises."""
        inode = self._find_to_remove(directory, name)
        if inode is not None:
            if isinstance(inode, Directory):
                raise IsADirectory(f"`{inode.key}`")
            self._journal.intend("unlink")
            if isinstance(inode, File):
                self._unlink_file(inode, directory, name)
            else:
                self._store.delete(inode.object_key)
                self._namespace.apply_removal(directory, name)
                self._namespace.inodes.detach(inode)
        self._markers.keep(directory)

    def _unlink_file(self, inode: File, directory: Directory, name: str) -> None:
        with inode.lock, self._files.losing_name(inode):
            if inode.remote is not None:
                self._store.delete(inode.key)
            self._namespace.apply_removal(directory, name)
            self._namespace.inodes.detach(inode)

    @property
    def _was_begun(self) -> bool:
        """Whether a dead worker had begun to make the change of this very request."""
        return self._journal.intent() is not None

    def _find_to_remove(self, directory: Directory, name: str) -> Inode | None:
        """The inode of a name; None if a dead worker removed it for this request."""
        try:
            return self._namespace.find(directory, name)
        except NotFound:
            if not self._was_begun:
                raise
            self._namespace.apply_removal(directory, name)
            return None

    def _attributes_of_new(
        self, directory: Directory, type_mode: int, caller: Caller | None
    ) -> dict[str, int]:
        """The attributes of something new in a directory. Loads the directory's if needed."""
        owner = self._namespace.owner
        self._namespace.attributes.load(directory)
        parent = self._namespace.attributes.of(directory)
        return attributes_of_new(owner, parent, type_mode, caller or Caller(owner.uid, owner.gid))


def find_or_none(namespace: Namespace, directory: Directory, name: str) -> Inode | None:
    """The inode of a name, if the name is taken. Raises as :meth:`Namespace.find` otherwise."""
    try:
        return namespace.find(directory, name)
    except NotFound:
        return None
