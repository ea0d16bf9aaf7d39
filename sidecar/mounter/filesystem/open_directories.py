"""Handles of open directories, which outlive the worker."""

from __future__ import annotations

from collections.abc import Mapping

from sidecar.errors import InvalidArgument
from sidecar.mounter.filesystem.inodes.inode import Directory
from sidecar.mounter.filesystem.inodes.namespace import Namespace
from sidecar.mounter.filesystem.journal.journal import Journal
from sidecar.mounter.filesystem.journal.records import (
    DIRECTORY_HANDLE,
    DirectoryClosed,
    DirectoryOpened,
    ListingRead,
    NamesRead,
    Record,
)
from sidecar.mounter.filesystem.readdir import LostListing, OpenDirectory

_NAMES_AT_ONCE = 1024
"""The most names in one record, so that it fits into a frame."""


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
        """Close a handle."""
        self._opened.pop(handle, None)
        self._journal.write(DirectoryClosed(handle))

    def read_until(self, handle: int, end: int) -> None:
        """Note that its reader is about to get the names up to ``end``. Raises InvalidArgument."""
        opened = self.get(handle)
        noted = opened.note_returned(end)
        if noted is None:
            return
        listing = opened.listing
        assert listing is not None
        count, unwritten = len(listing), iter([(0, b"")])
        if noted.listed > listing.journalled:
            unwritten = listing.packed_keys(listing.journalled)
        for place, keys in unwritten:
            self._journal.write(ListingRead(handle, listing.number, noted.listed, place, keys))
        listing.journalled = count
        if noted.local or noted.is_anew:
            self._journal.write(NamesRead(handle, noted.local_before, noted.local))

    def records(self) -> list[Record]:
        """The open directories, for a successor. Takes no lock but that of the names' memory."""
        records: list[Record] = []
        written: set[int] = set()
        for handle, reading in list(self._opened.items()):
            local = list(reading.local)
            records.append(DirectoryOpened(handle, reading.directory.id, local[:_NAMES_AT_ONCE]))
            for start in range(_NAMES_AT_ONCE, len(local), _NAMES_AT_ONCE):
                part = local[start : start + _NAMES_AT_ONCE]
                records.append(NamesRead(handle, start, part))
            listing = reading.lost or reading.listing
            assert listing is not None
            number, listed = listing.number, reading.listed
            records.append(ListingRead(handle, number, listed, 0, b""))
            if number not in written:
                written.add(number)
                records += [
                    ListingRead(handle, number, listed, place, keys)
                    for place, keys in listing.packed_keys()
                ]
        return records

    @property
    def last_number(self) -> int:
        """The highest handle that was ever handed out."""
        return self._next - 1

    def restore(
        self,
        directories: Mapping[int, DirectoryOpened],
        listings: Mapping[int, Mapping[int, bytes]],
        places: Mapping[int, ListingRead],
        last_number: int,
    ) -> None:
        """Take over a predecessor's handles. Raises NodeForgotten, NotADirectory.

        Args:
            listings: packed keys by place, by the listing's number.
            places: how far readers got in listings, by handle.
        """
        lost: dict[int, LostListing] = {}
        for handle, record in directories.items():
            directory = self._namespace.directory(record.inode)
            read = places.get(handle, ListingRead(handle, 0, 0, 0, b""))
            listing = lost.get(read.listing)
            if listing is None or not read.listing:
                listing = LostListing(directory, listings.get(read.listing, {}))
                lost[read.listing] = listing
            self._opened[handle] = OpenDirectory(
                self._namespace, directory, None, listing, read.listed, record.names
            )
        self._next = last_number + 1
