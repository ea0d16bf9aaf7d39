"""The sum of a predecessor's records, as plain values."""

from __future__ import annotations

import logging
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

from sidecar.mounter.filesystem.journal.journal import Journal
from sidecar.mounter.filesystem.journal.records import (
    Answered,
    BareVersion,
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
    ListingRead,
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
from sidecar.mounter.writing.frames import Damage

log = logging.getLogger(__name__)

MOST_HELD = 4_000_000
"""The most inodes, handles, request records and read names. So many take 3 GiB in a worker."""
NUMBERS_LEFT_OUT = 1 << 32
"""How far numbers are advanced if records are lost that may have given some out."""
_ROOT = 1
_MOST_LAST = 1 << 61
_MOST_SHOWN = 10

MOST_CRASHES = 3
"""How many workers may end by themselves over one request. The next one refuses it."""
MOST_DEATHS = 30
"""The same for workers that were killed: maybe out of memory, maybe not."""


class ReplayedRequest:
    """One request that the kernel may send again, and what its workers did for it.

    Attributes:
        granted: (kind, number) of what they handed out; no answer with it has left.
        answer: (errno, reply), once its change was made.
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
    """A file whose content only the spool has, or whose attributes the store lacks.

    Attributes:
        spool_name: None if it is the attributes, of this ``version``.
    """

    key: str
    spool_name: str | None
    attributes: dict[str, int]
    version: BareVersion | None


class RecoveredState:
    """What a predecessor held when it ended.

    It is consistent, whatever a journal says: each chain of parents ends, no handle is of an inode
    of another kind, no spool file is of two inodes. Records that contradict that are left out, and
    named in the log.

    Attributes:
        inodes: by number, with the lookups that the kernel holds.
        files: open files, by handle.
        directories: open directories, by handle, with the local names that were read.
        listings: packed keys of the listings that they read, by number, by place.
        places: how far their readers got in listings, by handle.
        renames: directories whose objects were being copied to other keys, by inode.
        requests: records of requests that the kernel may send again, by number.
        last: the highest numbers that were ever handed out. No number is used twice: the kernel may
            ask again to release one that was released already, and tar(1) takes two files with one
            inode number for one file.
        is_damaged: records are missing, so a spool file that no record names may be anything.
    """

    def __init__(self) -> None:
        self.inodes: dict[int, InodeRecord] = {}
        self.files: dict[int, FileOpened] = {}
        self.directories: dict[int, DirectoryOpened] = {}
        self.listings: dict[int, dict[int, bytes]] = {}
        self.places: dict[int, ListingRead] = {}
        self.renames: dict[int, RenameBegun] = {}
        self.requests: dict[int, list[RequestRecord]] = {}
        self.last = LastNumbers(0, 0, 0)
        self.is_damaged = False
        self._left_out = 0
        self._held = 0

    @classmethod
    def read(cls, journal: Journal) -> RecoveredState:
        """Add up a journal. Raises StateUnusable if the file is no journal."""
        state = cls()
        for found in journal.read():
            if isinstance(found, Damage):
                state._note_damage(journal.path, found)
            elif not state._add(found):
                state._leave_out(journal.path, "it holds more than any worker did")
                break
        for why in [*state._check_inodes(), *state._check_handles()]:
            state._leave_out(journal.path, why)
        if state._left_out > _MOST_SHOWN:
            log.error("`%s`: %d records left out in all", journal.path, state._left_out)
        more = NUMBERS_LEFT_OUT if state.is_damaged else 0
        state.last = LastNumbers(*(min(number, _MOST_LAST) + more for number in state.last))
        return state

    def unsaved(self) -> list[UnsavedFile]:
        """Everything that is not in the store."""
        return [
            UnsavedFile(record.key, record.spool_name, record.attributes, record.remote)
            for record in self.inodes.values()
            if isinstance(record, FileInode)
            and record.is_dirty
            and not record.detached
            and record.key is not None
        ]

    def _note_damage(self, path: Path, damage: Damage) -> None:
        if damage.is_end:  # as usual when a worker was killed
            self.is_damaged = True
            log.info("`%s`: the last record, at byte %d, is torn", path, damage.offset)
            return
        size_bytes = f"{damage.size_bytes} bytes" if damage.size_bytes else "a record"
        self._leave_out(path, f"{size_bytes} at byte {damage.offset}: {damage.why}")

    def _leave_out(self, path: Path, what: str) -> None:
        self.is_damaged = True
        self._left_out += 1
        if self._left_out <= _MOST_SHOWN:
            log.error("`%s` is damaged, and the rest of it used: %s", path, what)

    # --- record by record -----------------------------------------------------------------------

    def _add(self, record: Record) -> bool:
        """Whether there is room for what the record adds."""
        match record:
            case DirectoryInode() | LinkInode() | FileInode():
                self._held += record.inode not in self.inodes
                self.inodes[record.inode] = record
                if record.inode > self.last.inode:
                    self.last = self.last._replace(inode=record.inode)
            case Lookups():
                known = self.inodes.get(record.inode)
                if known is not None:
                    self.inodes[record.inode] = known._replace(lookups=record.lookups)
            case InodeDropped():
                self._held -= self.inodes.pop(record.inode, None) is not None
            case LastNumbers():
                self.last = LastNumbers(*map(max, self.last, record))
            case RenameBegun():
                self._held += 1
                self.renames[record.inode] = record
            case RenameEnded():
                self.renames.pop(record.inode, None)
            case Granted() | Revoked() | Intended() | Replied() | Resent():
                self._held += 1
                self.requests.setdefault(record.request, []).append(record)
            case Answered():
                for request in record.requests:
                    self._held -= len(self.requests.pop(request, ()))
            case _:
                self._add_handle(record)
        return self._held <= MOST_HELD

    def _add_handle(self, record: HandleRecord) -> None:
        match record:
            case FileOpened():
                self._held += 1
                self.files[record.handle] = record
                if record.handle > self.last.file_handle:
                    self.last = self.last._replace(file_handle=record.handle)
            case FileClosed():
                self._held -= self.files.pop(record.handle, None) is not None
            case DirectoryOpened():
                self._held += 1 + len(record.names)
                self.directories[record.handle] = record
                if record.handle > self.last.directory_handle:
                    self.last = self.last._replace(directory_handle=record.handle)
            case ListingRead():
                if record.keys:
                    keys = self.listings.setdefault(record.listing, {})
                    self._held += record.place not in keys
                    keys[record.place] = record.keys
                self.places[record.handle] = record._replace(keys=b"")
            case NamesRead():
                self._add_names(record)
            case DirectoryClosed():
                closed = self.directories.pop(record.handle, None)
                if closed is not None:
                    self._held -= 1 + len(closed.names)
                self.places.pop(record.handle, None)

    def _add_names(self, record: NamesRead) -> None:
        opened = self.directories.get(record.handle)
        if opened is None:
            return
        before = len(opened.names)
        if record.start > before:
            # Names in between are lost, and with them the meaning of the reader's offset.
            del self.directories[record.handle]
            self._held -= 1 + before
            return
        opened.names[record.start :] = record.names
        self._held += len(opened.names) - before

    # --- all of them together ---------------------------------------------------------------------

    def _check_inodes(self) -> Iterable[str]:
        """Leave out what cannot be true; descriptions of that."""
        root = self.inodes.get(_ROOT)
        if root is not None and not isinstance(root, DirectoryInode):
            del self.inodes[_ROOT]
            yield "the root is no directory"
        ends = {_ROOT}
        spooled: set[str] = set()
        for number in list(self.inodes):
            chain = self._chain(number, ends)
            if chain is None:
                record = self.inodes[number]
                self.inodes[number] = record._replace(parent=None, detached=True)
                yield f"inode {number} is above itself"
                chain = [number]
            ends.update(chain)
        for number, record in list(self.inodes.items()):
            if isinstance(record, FileInode) and record.spool_name is not None:
                if record.spool_name in spooled:
                    del self.inodes[number]
                    yield f"inode {number} has the spool file of another one"
                spooled.add(record.spool_name)

    def _chain(self, number: int, ends: set[int]) -> list[int] | None:
        """An inode and those above it, up to one in ``ends``; None if it is above itself."""
        chain: dict[int, None] = {}
        here: int | None = number
        while here is not None and here not in ends:
            if here in chain:
                return None
            chain[here] = None
            record = self.inodes.get(here)
            here = record.parent if record is not None else None
        return list(chain)

    def _check_handles(self) -> Iterable[str]:
        for handle, opened in list(self.files.items()):
            if not isinstance(self.inodes.get(opened.inode), FileInode):
                del self.files[handle]
                yield f"handle {handle} is of no file that is known"
        for handle, reading in list(self.directories.items()):
            directory = self.inodes.get(reading.inode)
            if reading.inode != _ROOT and not isinstance(directory, DirectoryInode):
                del self.directories[handle]
                yield f"handle {handle} is of no directory that is known"
        for handle in self.places.keys() - self.directories.keys():
            del self.places[handle]
