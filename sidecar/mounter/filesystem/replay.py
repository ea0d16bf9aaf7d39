"""What the records of a predecessor add up to.

Plain values only. Making inodes and handles of them does not belong here.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

from sidecar.mounter.filesystem.journal import Journal
from sidecar.mounter.filesystem.records import (
    Answered,
    DirectoryClosed,
    DirectoryInode,
    DirectoryOpened,
    FileClosed,
    FileInode,
    FileOpened,
    Granted,
    GrantKind,
    HandleRecord,
    InodeDropped,
    InodeRecord,
    Intended,
    LastNumbers,
    LinkInode,
    Lookups,
    NamesRead,
    Record,
    RenameBegun,
    RenameEnded,
    Replied,
    RequestRecord,
    Resent,
    Revoked,
)

MOST_CRASHES = 3
"""Workers that may end by themselves over one request. The next one refuses it."""
MOST_DEATHS = 30
"""The same for workers that were killed, by whoever: out of memory, perhaps, and perhaps not."""


class ReplayedRequest:
    """One request that the kernel may send again: what its workers made of it.

    Attributes:
        granted: (kind, number) of what they handed out; no answer with it has left.
        answer: (errno, reply) once its change was made.
        deaths, crashes: of its workers, and of those that ended by themselves.
    """

    def __init__(self, records: Iterable[RequestRecord]) -> None:
        self.granted: list[tuple[GrantKind, int]] = []
        self.answer: tuple[int, bytes] | None = None
        self.deaths = self.crashes = 0
        for record in records:
            if isinstance(record, Granted):
                self.granted += [(record.kind, number) for number in record.numbers]
            elif isinstance(record, Revoked):
                if (record.kind, record.number) in self.granted:
                    self.granted.remove((record.kind, record.number))
            elif isinstance(record, Replied):
                self.answer = record.errno, record.reply
            elif isinstance(record, Resent):
                self.deaths, self.crashes = record.deaths, record.crashes

    @property
    def is_hopeless(self) -> bool:
        """Whether it has ended more workers than it may."""
        return self.crashes >= MOST_CRASHES or self.deaths >= MOST_DEATHS


class UnsavedFile(NamedTuple):
    """A file whose content only the spool has."""

    key: str
    spool_path: str
    attributes: dict[str, int]


class RecoveredState:
    """What a predecessor held when it ended.

    Attributes:
        inodes: by number, with the lookups that the kernel holds.
        files: open files, by handle.
        directories: open directories, by handle, with the names that were read.
        renames: directories whose objects were being copied to other keys, by inode.
        requests: what was written about requests that the kernel may send again, by number.
        last: the highest numbers that were ever handed out. The kernel may ask again for the
            release of what was released already, and tar(1) takes two files of one inode number
            for one file: so no number is used twice.
    """

    def __init__(self) -> None:
        self.inodes: dict[int, InodeRecord] = {}
        self.files: dict[int, FileOpened] = {}
        self.directories: dict[int, DirectoryOpened] = {}
        self.renames: dict[int, RenameBegun] = {}
        self.requests: dict[int, list[RequestRecord]] = {}
        self.last = LastNumbers(0, 0, 0)

    @classmethod
    def read(cls, journal: Journal) -> RecoveredState:
        """Add up a journal. Raises StateUnusable where it cannot be read."""
        state = cls()
        for record in journal.read():
            state._add(record)
        return state

    def unsaved(self) -> list[UnsavedFile]:
        """What is in the spool and not in the store."""
        return [
            UnsavedFile(record.key, record.spool_path, record.attributes)
            for record in self.inodes.values()
            if isinstance(record, FileInode)
            and record.is_dirty
            and not record.detached
            and record.spool_path is not None
            and record.key is not None
        ]

    def _add(self, record: Record) -> None:
        match record:
            case DirectoryInode() | LinkInode() | FileInode():
                self.inodes[record.inode] = record
                if record.inode > self.last.inode:
                    self.last = self.last._replace(inode=record.inode)
            case Lookups():
                known = self.inodes.get(record.inode)
                if known is not None:
                    self.inodes[record.inode] = known._replace(lookups=record.lookups)
            case InodeDropped():
                self.inodes.pop(record.inode, None)
            case LastNumbers():
                self.last = record
            case RenameBegun():
                self.renames[record.inode] = record
            case RenameEnded():
                self.renames.pop(record.inode, None)
            case Granted() | Revoked() | Intended() | Replied() | Resent():
                self.requests.setdefault(record.request, []).append(record)
            case Answered():
                for request in record.requests:
                    self.requests.pop(request, None)
            case _:
                self._add_handle(record)

    def _add_handle(self, record: HandleRecord) -> None:
        match record:
            case FileOpened():
                self.files[record.handle] = record
                if record.handle > self.last.file_handle:
                    self.last = self.last._replace(file_handle=record.handle)
            case FileClosed():
                self.files.pop(record.handle, None)
            case DirectoryOpened():
                self.directories[record.handle] = record
                if record.handle > self.last.directory_handle:
                    self.last = self.last._replace(directory_handle=record.handle)
            case NamesRead():
                if record.handle in self.directories:
                    self.directories[record.handle].names[record.start :] = record.names
            case DirectoryClosed():
                self.directories.pop(record.handle, None)
