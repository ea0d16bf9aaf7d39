"""Reading directories: entries, their offsets, and what a reader was given already.

Knows no handles and no journal.
"""

from __future__ import annotations

import itertools
import stat
import time
from collections.abc import Iterator, Sequence
from enum import IntEnum
from typing import NamedTuple

from sidecar.errors import WouldBlock
from sidecar.mounter.filesystem.attributes import Entry
from sidecar.mounter.filesystem.inodes import Directory, Inode, Link
from sidecar.mounter.filesystem.listing import Listing, Remote, RemoteDirectory
from sidecar.mounter.filesystem.names import is_link_key
from sidecar.mounter.filesystem.namespace import Namespace
from sidecar.mounter.filesystem.records import LocalName, ReturnedName

_BATCH = 128
_PREFETCHED_DIRECTORIES = 2
_SEARCHED_NAMES = 16
"""Among so many names the next directories are looked for."""


class Section(IntEnum):
    """The sections of a directory, in the order in which they are read.

    The value is the section's first offset. The kernel and journals keep offsets, so they
    stay as they are. A listing may grow up to where the local names begin.
    """

    DOTS = 0
    """``.`` and ``..``."""
    LISTED = 2
    """What the store has."""
    LOCAL = 1 << 40
    """What only this mount had when the reading reached this section (files that are being
    written, directories without objects), and what is listed only since another worker did."""


class Position(NamedTuple):
    """A place in a directory: between the entries of one section.

    Attributes:
        passed: how many entries of the section are in front of it.
    """

    section: Section
    passed: int

    @classmethod
    def at(cls, offset: int) -> Position:
        """The place of an offset (d_off of getdents64(2)) that an entry was returned with."""
        if offset >= Section.LOCAL:
            return cls(Section.LOCAL, offset - Section.LOCAL)
        if offset >= Section.LISTED:
            return cls(Section.LISTED, offset - Section.LISTED)
        return cls(Section.DOTS, max(0, offset))


class DirectoryEntry(NamedTuple):
    """One entry of a directory.

    Attributes:
        offset: where to go on reading behind it.
        type_mode: S_IFREG, S_IFDIR or S_IFLNK.
        inode: its number; None if it has no inode yet.
    """

    name: str
    offset: int
    type_mode: int
    inode: int | None


class _LocalSection(NamedTuple):
    """The end of a reading, which is fixed once it is reached.

    Attributes:
        listed: how many names of the listing come first.
        names: what follows, in order.
    """

    listed: int
    names: dict[str, None]


class OpenDirectory:
    """An open directory: one reading of it, which stays the same until rewinddir(3).

    Attributes:
        listing: what is read; None while a reading that another worker began was not continued.
        returned: the names that the reader got, in order.
    """

    def __init__(
        self,
        namespace: Namespace,
        directory: Directory,
        listing: Listing | None,
        returned: list[ReturnedName],
    ) -> None:
        self._namespace = namespace
        self.directory = directory
        self.listing = listing
        self.returned = returned
        self._returned_local = len(self._local_names())
        self._local: _LocalSection | None = None
        namespace.directory_cache.add_reading(self)

    @classmethod
    def open(cls, namespace: Namespace, directory: Directory) -> OpenDirectory:
        """Begin to read a directory; a listing that is fresh is shared."""
        listing = namespace.directory_cache.fresh_listing(directory)
        _prefetch_next_directories(namespace, directory)
        return cls(namespace, directory, listing, [])

    @classmethod
    def resume(
        cls, namespace: Namespace, directory: Directory, returned: list[ReturnedName]
    ) -> OpenDirectory:
        """Go on with a reading that another worker began.

        Args:
            returned: the names that the reader got from it.
        """
        return cls(namespace, directory, None, returned)

    def read(self, offset: int, *, wait: bool = True) -> Iterator[DirectoryEntry]:
        """The entries behind ``offset``. Pages are loaded as they are reached.

        Offset 0 begins a new reading, of what is there by now, as rewinddir(3) says.
        Raises what the store raises, and WouldBlock where a page must be loaded and the caller
        does not ``wait``.
        """
        directory = self.directory
        section, passed = Position.at(offset)
        if section is Section.DOTS:
            if passed == 0:
                self._rewind()
                yield DirectoryEntry(".", 1, stat.S_IFDIR, directory.id)
            yield DirectoryEntry("..", 2, stat.S_IFDIR, (directory.parent or directory).id)
            section, passed = Section.LISTED, 0
        if section is Section.LISTED:
            yield from self._read_listed(passed, wait)
            passed = 0
        yield from self._read_local(passed, wait)

    def enter(self, names: Sequence[str]) -> list[Entry | None]:
        """:meth:`Namespace.enter` for entries that were just read, without asking the store.

        None for one that is gone again.
        """
        namespace, listing = self._namespace, self._loaded_listing(wait=True)
        with namespace.inodes.lock:  # no directory is renamed in between
            inodes = [self._inode_of(listing, name) for name in names]
            namespace.inodes.hold([inode for inode in inodes if inode is not None])
            return [namespace.entry(inode) if inode is not None else None for inode in inodes]

    def note_returned(self, offset: int) -> list[ReturnedName]:
        """The reader gets the entries up to ``offset``; the names that it did not have yet."""
        listing = self.listing
        if listing is None:
            return []
        returned: list[ReturnedName] = []
        listed = len(self.returned) - self._returned_local
        section, passed = Position.at(offset)
        if section is Section.LISTED:
            returned += listing.names[listed:passed]
        elif section is Section.LOCAL and self._local is not None:
            returned += listing.names[listed : self._local.listed]
            # The kernel may ask from any offset; islice takes none above sys.maxsize.
            end = min(passed, len(self._local.names))
            local = itertools.islice(self._local.names, self._returned_local, end)
            before = len(returned)
            returned += map(LocalName, local)
            self._returned_local += len(returned) - before
        self.returned += returned
        return returned

    def _rewind(self) -> None:
        self.listing = self._namespace.directory_cache.fresh_listing(self.directory)
        self.returned = []
        self._returned_local = 0
        self._local = None

    def _local_names(self) -> list[str]:
        return [name.name for name in self.returned if isinstance(name, LocalName)]

    def _inode_of(self, listing: Listing, name: str) -> Inode | None:
        namespace = self._namespace
        fresh_until_s = 0.0
        if not listing.is_invalidated(name):
            fresh_until_s = listing.as_of_s + namespace.ttl_s
        child = self.directory.children.get(name)
        if child is not None and (child.is_local or child.fresh_until_s >= fresh_until_s):
            return child  # known later than the listing
        remote = listing.entries.get(name)
        if remote is None:
            return None
        return namespace.bind(self.directory, name, remote, fresh_until_s)

    def _loaded_listing(self, wait: bool) -> Listing:
        """The listing; in full, and with the same places, where another worker had it."""
        listing = self.listing
        if listing is None:
            if not wait:
                raise WouldBlock(self.directory.key)
            names = [name for name in self.returned if isinstance(name, str)]
            with self._namespace.inodes.lock:  # no rename makes the key another one in between
                listing = self._namespace.directory_cache.unshared_listing(self.directory, names)
                self.listing = listing
            listing.load_all()
        return listing

    def _read_listed(self, start: int, wait: bool) -> Iterator[DirectoryEntry]:
        listing, children = self._loaded_listing(wait), self.directory.children
        first = int(Section.LISTED) + 1
        for index in itertools.count(start):
            if self._local is None and index >= len(listing.names):
                if not (wait or listing.fully_loaded):
                    raise WouldBlock(self.directory.key)
                listing.load_until(index + _BATCH, prefetch=True)
                if index >= len(listing.names):
                    self._local_section(listing)
            local = self._local
            if local is not None and index >= local.listed:
                break
            name = listing.names[index]
            remote = listing.entries.get(name)
            if remote is not None and (local is None or name not in local.names):
                child = children.get(name)
                yield DirectoryEntry(
                    name,
                    first + index,
                    _type_of(remote),
                    child.id if child is not None else None,
                )

    def _read_local(self, start: int, wait: bool) -> Iterator[DirectoryEntry]:
        """The local names. A file that is saved meanwhile keeps its place here."""
        listing, children = self._loaded_listing(wait), self.directory.children
        first = int(Section.LOCAL) + 1
        for index, name in enumerate(self._local_section(listing).names):
            if index < start:
                continue
            child = children.get(name)
            if child is not None:
                yield DirectoryEntry(name, first + index, _type_of_inode(child), child.id)
            elif (remote := listing.entries.get(name)) is not None:  # saved, and forgotten since
                yield DirectoryEntry(name, first + index, _type_of(remote), None)

    def _local_section(self, listing: Listing) -> _LocalSection:
        """The end of the reading, as it was when it was first asked for."""
        with self._namespace.inodes.lock:
            if self._local is None:
                # What another worker returned keeps its place.
                names = dict.fromkeys(self._local_names())
                is_past_listed = bool(names)
                for name, child in self.directory.children.items():
                    if child.is_local and name not in listing.entries:
                        names[name] = None
                # Look at the listing after that: what is saved in between is listed.
                listed = len(listing.names)
                if is_past_listed:  # the reader got all that was listed then; the rest is here
                    listed = len(self.returned) - self._returned_local
                    names |= dict.fromkeys(listing.names[listed:])
                self._local = _LocalSection(listed, names)
            return self._local


def _prefetch_next_directories(namespace: Namespace, directory: Directory) -> None:
    """List the next directories where one is read after the other, as ``ls -R`` does."""
    parent = directory.parent
    if parent is None or parent.listing is None:
        return
    now_s = time.monotonic()
    since_s, parent.last_opened_s = now_s - parent.last_opened_s, now_s
    following = parent.listing.next_if_sequential(directory.name, _SEARCHED_NAMES)
    if since_s * (_PREFETCHED_DIRECTORIES + 1) > namespace.ttl_s:
        return  # it would have expired when it is read
    children = (
        parent.children.get(name)
        for name, remote in following
        if isinstance(remote, RemoteDirectory)
    )
    for child in itertools.islice(children, _PREFETCHED_DIRECTORIES):
        if isinstance(child, Directory):
            namespace.directory_cache.prefetch(child)


def _type_of_inode(inode: Inode) -> int:
    if isinstance(inode, Directory):
        return stat.S_IFDIR
    return stat.S_IFLNK if isinstance(inode, Link) else stat.S_IFREG


def _type_of(remote: Remote) -> int:
    if isinstance(remote, RemoteDirectory):
        return stat.S_IFDIR
    return stat.S_IFLNK if is_link_key(remote.key) else stat.S_IFREG
