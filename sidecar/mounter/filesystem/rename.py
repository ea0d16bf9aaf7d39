"""rename(2) of files, links and directories.

The store copies an object, then deletes the old one, and a worker may die in between. Its successor
gets the request again, and finds the intention in the journal.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

from sidecar.errors import (
    FileExists,
    InvalidArgument,
    IsADirectory,
    NotADirectory,
    NotEmpty,
    Stale,
)
from sidecar.mounter.filesystem.content.open_files import OpenFiles
from sidecar.mounter.filesystem.directory_rename import DirectoryRename
from sidecar.mounter.filesystem.inodes.directory_markers import DirectoryMarkers
from sidecar.mounter.filesystem.inodes.inode import Directory, File, Inode, Link
from sidecar.mounter.filesystem.inodes.namespace import Namespace
from sidecar.mounter.filesystem.inodes.subtree_locks import is_at_or_below
from sidecar.mounter.filesystem.journal.journal import Journal
from sidecar.mounter.filesystem.journal.records import RENAME, RENAME_DIRECTORY, Intended
from sidecar.mounter.filesystem.name_changes import find_or_none
from sidecar.mounter.filesystem.names.names import LINK_SUFFIX, check_file_name
from sidecar.mounter.store.interface import Store

RENAME_NOREPLACE = 1
"""renameat2(2): fail if the new name exists."""


class Rename:
    """The renames of one mount. Safe to use from any thread."""

    def __init__(
        self,
        store: Store,
        namespace: Namespace,
        files: OpenFiles,
        journal: Journal,
        markers: DirectoryMarkers,
        directories: DirectoryRename,
    ) -> None:
        self._store = store
        self._namespace = namespace
        self._files = files
        self._journal = journal
        self._markers = markers
        self._directories = directories

    def rename(
        self, source: Directory, name: str, target: Directory, new_name: str, flags: int
    ) -> None:
        """renameat2(2); an inode that has the new name is replaced.

        Raises FileExists, InvalidArgument, IsADirectory, NotADirectory, NotEmpty, NotFound,
        NotPermitted, and the store's errors.
        """
        if flags & ~RENAME_NOREPLACE:
            raise InvalidArgument(f"rename flags {flags:#x}")
        with self._namespace.subtree_locks.shared(source, target):
            if self._rename_object(source, name, target, new_name, flags):
                return
        self._rename_directory(source, name, target, new_name, flags)

    def _rename_object(
        self, source: Directory, name: str, target: Directory, new_name: str, flags: int
    ) -> bool:
        """Rename a file or a link; False if it is a directory."""
        intent = self._journal.intent()
        if intent is not None:
            if intent.operation == RENAME_DIRECTORY:
                return False
            renamed = self._renamed_before(intent, target, new_name)
            if isinstance(renamed, File | Link):
                self._leave_old_name(renamed, source, name, intent.replaced_key)
                self._markers.keep(source)
                return True
        inode = self._namespace.find(source, name)
        replaced = find_or_none(self._namespace, target, new_name)
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
        self._store.check_key(new_key)
        if isinstance(inode, File):
            check_file_name(new_name)
        # A file that replaces a link, or the reverse, has another key than the replaced object.
        replaced_key = None
        if replaced is not None and replaced.object_key != new_key:
            replaced_key = replaced.object_key
        self._journal.intend(RENAME, inode.id, replaced_key)
        lost = replaced if isinstance(replaced, File) else None
        # If a file that is being replaced were saved now, it would replace what has its name.
        with _locks(inode, replaced), self._files.losing_name(lost):
            if isinstance(inode, File):
                self._files.saver.complete_upload(inode)
                self._give_name_to_file(inode, target, new_name, new_key)
                self._leave_old_name(inode, source, name, replaced_key)
            else:
                self._copy(inode, target, new_name, new_key)
                self._namespace.inodes.move(inode, target, new_name)
                self._leave_old_name(inode, source, name, replaced_key)
        if source is not target:
            self._markers.keep(source)
        return True

    def _give_name_to_file(
        self, inode: File, target: Directory, new_name: str, new_key: str
    ) -> None:
        """The first half of a rename."""
        if inode.spool is not None:
            inode.spool.set_exclusive(False)  # O_EXCL was about the old name
        if inode.remote is not None and not (inode.spool is not None and inode.spool.dirty):
            self._copy(inode, target, new_name, new_key)
        self._namespace.inodes.move(inode, target, new_name)

    def _copy(self, inode: File | Link, target: Directory, new_name: str, new_key: str) -> None:
        """Copy the inode's object to its new key. Raises Stale, what the store raises."""
        try:
            if isinstance(inode, File):
                self._files.saver.copy(inode, new_key)
            else:
                remote = inode.remote
                inode.remote = self._store.copy(remote.key, new_key, known=remote)
        except Stale:
            self._namespace.invalidate(inode)
            raise
        assert inode.remote is not None
        self._namespace.apply_change(target, new_name, inode.remote)

    def _leave_old_name(
        self, inode: File | Link, source: Directory, name: str, replaced_key: str | None
    ) -> None:
        """The second half: the inode has its new name, and the store has the old one, too.

        Args:
            replaced_key: of a replaced object whose key the new one does not have.
        """
        old_key: str | None = f"{source.key}{name}"
        if isinstance(inode, Link):
            self._delete(replaced_key, f"{old_key}{LINK_SUFFIX}")
        else:
            with inode.lock:
                had_object = inode.remote is not None
                must_save = had_object or replaced_key or not inode.writers
                if inode.spool is not None and inode.spool.dirty and must_save:
                    self._files.saver.save(inode)  # before the object that it replaces is deleted
                self._delete(replaced_key, old_key if had_object else None)
        self._namespace.apply_removal(source, name)

    def _delete(self, *keys: str | None) -> None:
        for key in keys:
            if key:
                self._store.delete(key)

    def _rename_directory(
        self, source: Directory, name: str, target: Directory, new_name: str, flags: int
    ) -> None:
        intent = self._journal.intent()
        if intent is not None:
            renamed = self._renamed_before(intent, target, new_name)
            if renamed is not None:
                with self._namespace.subtree_locks.shared(source, target):
                    self._directories.complete(renamed.id)
                    self._markers.keep(source)
                return
        inode = self._namespace.find(source, name)
        assert isinstance(inode, Directory)
        if is_at_or_below(target, inode):
            raise InvalidArgument(f"`{inode.key}` cannot go into itself")
        with self._namespace.subtree_locks.exclusive(inode, source, target):
            replaced = find_or_none(self._namespace, target, new_name)
            if replaced is not None and intent is None:
                self._check_replaceable(replaced, flags)
            for file in self._files.contents.dirty():
                if file.parent is not None and is_at_or_below(file.parent, inode):
                    self._files.saver.complete_upload(file)
            self._journal.intend(RENAME_DIRECTORY, inode.id)
            self._directories.rename(inode, target, new_name)
            self._markers.keep(source)

    def _check_replaceable(self, replaced: Inode, flags: int) -> None:
        """rename(2): only an empty directory can be replaced by another one."""
        if flags & RENAME_NOREPLACE:
            raise FileExists(f"`{replaced.key}`")
        if not isinstance(replaced, Directory):
            raise NotADirectory(f"`{replaced.key}`")
        if self._markers.unseen_keys(replaced) is None:
            raise NotEmpty(f"`{replaced.key}`")

    def _renamed_before(self, intent: Intended, target: Directory, new_name: str) -> Inode | None:
        """The inode, if it already had its new name when the worker died."""
        child = target.children.get(new_name)
        return child if child is not None and child.id == intent.inode else None


@contextlib.contextmanager
def _locks(*inodes: Inode | None) -> Iterator[None]:
    """The locks of the files among the inodes, always in the same order."""
    files = {inode.id: inode for inode in inodes if isinstance(inode, File)}
    with contextlib.ExitStack() as held:
        for _, file in sorted(files.items()):
            held.enter_context(file.lock)
        yield
