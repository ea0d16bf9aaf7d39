"""Handles of open directories, which outlive the worker.

What the reader of a directory is shown does not belong here.
"""

from __future__ import annotations

from collections.abc import Mapping

from sidecar.errors import InvalidArgument
from sidecar.mounter.filesystem.inodes import Directory
from sidecar.mounter.filesystem.journal import Journal
from sidecar.mounter.filesystem.namespace import Namespace
from sidecar.mounter.filesystem.readdir import OpenDirectory
from sidecar.mounter.filesystem.records import (
    DIRECTORY_HANDLE,
    DirectoryClosed,
    DirectoryOpened,
    NamesRead,
    Record,
)

_NAMES_AT_ONCE = 1024
"""In one record, so that none is longer than a frame may be."""


class OpenDirectories:
    """The open directories of one mount. Safe to use from any thread."""

    def __init__(self, namespace: Namespace, journal: Journal) -> None:
        self._namespace = namespace
        self._journal = journal
        self._opened: dict[int, OpenDirectory] = {}
        self._next = 1

    def __len__(self) -> int:
        return len(self._opened)

    def open(self, directory: Directory) -> int:
        """A new handle."""
        opened = OpenDirectory.open(self._namespace, directory)
        with self._namespace.inodes.lock:
            handle = self._next
            self._next += 1
            self._opened[handle] = opened
        self._journal.grant(DIRECTORY_HANDLE, [handle], [DirectoryOpened(handle, directory.id, [])])
        return handle

    def get(self, handle: int) -> OpenDirectory:
        """The open directory of a handle. Raises InvalidArgument."""
        try:
            return self._opened[handle]
        except KeyError:
            raise InvalidArgument(f"no open directory has the handle {handle}") from None

    def release(self, handle: int) -> None:
        """Nobody has it open any more."""
        self._opened.pop(handle, None)
        self._journal.write(DirectoryClosed(handle))

    def read_until(self, handle: int, end: int) -> None:
        """Its reader is about to get the names up to offset ``end``. Raises InvalidArgument."""
        opened = self.get(handle)
        names = opened.note_returned(end)
        start = len(opened.returned) - len(names)
        if names or not start:  # at the beginning, perhaps again: what was read is forgotten
            self._journal.write(NamesRead(handle, start, names))

    def records(self) -> list[Record]:
        """The open directories, for a successor. Takes no lock."""
        records: list[Record] = []
        for handle, opened in list(self._opened.items()):
            names = list(opened.returned)
            records.append(DirectoryOpened(handle, opened.directory.id, names[:_NAMES_AT_ONCE]))
            for start in range(_NAMES_AT_ONCE, len(names), _NAMES_AT_ONCE):
                part = names[start : start + _NAMES_AT_ONCE]
                records.append(NamesRead(handle, start, part))
        return records

    @property
    def last_number(self) -> int:
        """The highest handle that was ever handed out."""
        return self._next - 1

    def restore(self, directories: Mapping[int, DirectoryOpened], last_number: int) -> None:
        """Take over a predecessor's handles. Raises NodeForgotten, NotADirectory."""
        for handle, record in directories.items():
            directory = self._namespace.directory(record.inode)
            self._opened[handle] = OpenDirectory.resume(self._namespace, directory, record.names)
        self._next = last_number + 1
