"""Reading directories: entries, their offsets, and what a reader already has."""

from __future__ import annotations

import itertools
import stat
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from enum import IntEnum
from typing import NamedTuple

from sidecar.errors import WouldBlock
from sidecar.mounter.filesystem.inodes.attributes import Entry
from sidecar.mounter.filesystem.inodes.inode import Directory, Inode, Link
from sidecar.mounter.filesystem.inodes.namespace import Namespace
from sidecar.mounter.filesystem.names.listing import NUMBERS, Listing
from sidecar.mounter.filesystem.names.names import LINK_SUFFIX
from sidecar.mounter.filesystem.names.packed_names import unpack_keys
from sidecar.mounter.filesystem.names.remotes import ForgottenObject, Listed, RemoteDirectory
from sidecar.mounter.store.interface import ObjectInfo

_BATCH = 128
_PREFETCHED_DIRECTORIES = 2
_SEARCHED_NAMES = 16
"""Among this many names the next directories are looked for."""


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
    written, directories without objects), and names listed only since another worker's reading."""


class Position(NamedTuple):
    """A place in a directory: between the entries of one section.

    Attributes:
        passed: how many entries of the section come before it.
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
        offset: where reading goes on after it.
        type_mode: S_IFREG, S_IFDIR or S_IFLNK.
        inode: its number; None if it has no inode yet.
    """

    name: str
    offset: int
    type_mode: int
    inode: int | None


class NotedNames(NamedTuple):
    """Names that a reader is about to get, and did not have yet.

    Attributes:
        listed: how many names of the listing it has then.
        local_before: how many local names it had.
        local: the local names that it gets now.
        is_anew: local names that were noted before are not valid any more.
    """

    listed: int
    local_before: int
    local: list[str]
    is_anew: bool


class LostListing:
    """Another worker's listing. Some readings of it go on here, all on one listing.

    Attributes:
        number: no other listing of this process has it.

    Args:
        keys: packed relative keys of its names, by place: those from that place to the next one.
    """

    def __init__(self, directory: Directory, keys: Mapping[int, bytes]) -> None:
        self.number = next(NUMBERS)
        self._keys = keys
        self._directory = directory
        self._listing: Listing | None = None
        self._lock = threading.Lock()
        self._is_restored = False

    def listing(self, namespace: Namespace) -> Listing:
        """The listing that replaces it. The caller holds the inodes' lock until it is used."""
        if self._listing is None:
            self._listing = namespace.directory_cache.unshared_listing(self._directory)
        return self._listing

    def restore(self, listing: Listing) -> None:
        """Give the names their places in a listing, and load what has them now.

        Raises what the store raises.
        """
        with self._lock:
            if not self._is_restored:
                listing.restore(unpack_keys(keys) for _, keys in self.packed_keys())
                self._is_restored = True
        listing.load_all()

    def packed_keys(self) -> Sequence[tuple[int, bytes]]:
        """(place, packed keys of the names from there on)."""
        return sorted(self._keys.items())


class _LocalSection(NamedTuple):
    """The end of a reading, which is fixed once it is reached.

    Attributes:
        listed: how many names of the listing come first.
        names: the local names after that, in order.
    """

    listed: int
    names: dict[str, None]


class OpenDirectory:
    """An open directory: one reading of it, which stays the same until rewinddir(3).

    Attributes:
        listing: what is read; None until a reading that another worker began is continued.
        listed: how many names of the listing the reader has.
        local: the local names that it has, in order.
        lost: another worker's listing, until this one goes on with it.
    """

    def __init__(
        self,
        namespace: Namespace,
        directory: Directory,
        listing: Listing | None,
        lost: LostListing | None = None,
        listed: int = 0,
        local: Sequence[str] = (),
    ) -> None:
        self._namespace = namespace
        self.directory = directory
        self.listing = listing
        self.lost = lost
        self.listed = listed
        self.local = list(local)
        self._local: _LocalSection | None = None
        self._is_beyond = False  # whether there are more names than there may be inodes
        self._is_noted = False
        self._has_noted = bool(self.local)  # local names
        namespace.directory_cache.add_reading(self)

    @classmethod
    def open(cls, namespace: Namespace, directory: Directory) -> OpenDirectory:
        """Begin to read a directory. A fresh listing is shared."""
        listing = namespace.directory_cache.fresh_listing(directory)
        _prefetch_next_directories(namespace, directory)
        return cls(namespace, directory, listing)

    def read(self, offset: int, *, wait: bool = True) -> Iterator[DirectoryEntry]:
        """The entries after ``offset``. Pages are loaded when they are reached.

        Offset 0 begins a new reading of the present entries, as rewinddir(3) does.
        Raises the store's errors, and WouldBlock if a page must be loaded and ``wait`` is False.
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

    def enter(self, names: Sequence[str]) -> dict[str, Entry | None]:
        """:meth:`Namespace.enter` for entries that were just read, without asking the store.

        A name that is gone again is missing. None if not enough is known of it here, and for all
        names from the first on for which there are too many inodes. Giving out more inodes is of
        no use then: a program that wants attributes asks for them by name.
        """
        namespace, listing = self._namespace, self._loaded_listing(wait=True)
        with namespace.inodes.lock:  # so that no directory is renamed meanwhile
            inodes, directory = namespace.inodes, self.directory
            if len(listing) > inodes.most or listing.fully_loaded:
                directory.is_huge = len(listing) > inodes.most
            is_beyond = self._is_beyond or directory.is_huge
            room = 0 if is_beyond else max(0, inodes.most - len(inodes))
            if room < len(names):
                self._is_beyond = True
                namespace.excess_inodes.reduce(inodes.most // 4)
            found: dict[str, Inode | ForgottenObject | None]
            found = {name: self._inode_of(listing, name) for name in names[:room]}
            namespace.inodes.hold([inode for inode in found.values() if isinstance(inode, Inode)])
            entries = {
                name: namespace.entry(inode) if isinstance(inode, Inode) else None
                for name, inode in found.items()
                if inode is not None
            }
            return entries | dict.fromkeys(names[room:])

    def note_returned(self, offset: int) -> NotedNames | None:
        """Note that the reader gets the entries up to ``offset``; None if that is noted already."""
        if self.listing is None or self.lost is not None:
            return None
        listed, before, local = self.listed, len(self.local), self._local
        section, passed = Position.at(offset)
        if section is Section.LISTED:
            listed = min(passed, len(self.listing))
        elif section is Section.LOCAL and local is not None:
            listed = local.listed
            # The kernel may ask from any offset; islice takes none above sys.maxsize.
            end = min(passed, len(local.names))
            self.local += itertools.islice(local.names, before, end)
        if self._is_noted and listed <= self.listed and len(self.local) == before:
            return None
        self._is_noted = True
        self.listed = max(self.listed, listed)
        is_anew, self._has_noted = self._has_noted and not before, bool(self.local)
        return NotedNames(self.listed, before, self.local[before:], is_anew)

    def _rewind(self) -> None:
        self.listing = self._namespace.directory_cache.fresh_listing(self.directory)
        self.lost = None
        self.listed = 0
        self.local = []
        self._local = None
        self._is_beyond = False
        self._is_noted = False

    def _inode_of(self, listing: Listing, name: str) -> Inode | ForgottenObject | None:
        namespace = self._namespace
        fresh_until_s = 0.0
        if not listing.is_invalidated(name):
            fresh_until_s = listing.as_of_s + namespace.ttl_s
        child = self.directory.children.get(name)
        if child is not None and (child.is_local or child.fresh_until_s >= fresh_until_s):
            return child  # known later than the listing
        remote = listing.get(name)
        if remote is None or isinstance(remote, ForgottenObject):
            return remote
        return namespace.bind(self.directory, name, remote, fresh_until_s)

    def _loaded_listing(self, wait: bool) -> Listing:
        """The listing; if another worker had it, in full and with the same places."""
        lost, listing = self.lost, self.listing
        if lost is not None:
            if not wait:
                raise WouldBlock(self.directory.key)
            with self._namespace.inodes.lock:  # so that the directory keeps its key meanwhile
                listing = self.listing = lost.listing(self._namespace)
            lost.restore(listing)
            self.lost = None
        assert listing is not None
        return listing

    def _read_listed(self, start: int, wait: bool) -> Iterator[DirectoryEntry]:
        listing, children = self._loaded_listing(wait), self.directory.children
        place = start
        while True:
            if self._local is None and place >= len(listing):
                if not (wait or listing.fully_loaded):
                    raise WouldBlock(self.directory.key)
                listing.load_until(place + _BATCH, prefetch=True)
                if place >= len(listing):
                    self._local_section(listing)
            local = self._local
            if place >= (local.listed if local is not None else len(listing)):
                break
            stretch, opened = listing.stretch(place)
            end = min(stretch + len(opened.names), len(listing))
            while place < end:
                local = self._local
                if local is not None and place >= local.listed:
                    return
                name = opened.names[place - stretch]
                place += 1
                listed = opened.listed[name]
                if listed is not None and (local is None or name not in local.names):
                    child = children.get(name)
                    yield DirectoryEntry(
                        name,
                        int(Section.LISTED) + place,
                        _type_of(listed),
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
            elif (listed := listing.get(name)) is not None:  # saved, and forgotten since
                yield DirectoryEntry(name, first + index, _type_of(listed), None)

    def _local_section(self, listing: Listing) -> _LocalSection:
        """The end of the reading, as it was when it was first reached."""
        with self._namespace.inodes.lock:
            if self._local is None:
                # Names that another worker returned keep their places.
                names = dict.fromkeys(self.local)
                is_past_listed = bool(names)
                for name, child in self.directory.children.items():
                    if child.is_local and listing.get(name) is None:
                        names[name] = None
                # The listing is read after the local names: files saved in between are listed.
                listed = len(listing)
                if is_past_listed:  # the reader has all that was listed then; the rest is here
                    names |= dict.fromkeys(_names_behind(listing, self.listed))
                    listed = self.listed
                self._local = _LocalSection(listed, names)
            return self._local


def _prefetch_next_directories(namespace: Namespace, directory: Directory) -> None:
    """List the next directories if one is read after the other, as ``ls -R`` does."""
    parent = directory.parent
    if parent is None or parent.listing is None:
        return
    now_s = time.monotonic()
    since_s, parent.last_opened_s = now_s - parent.last_opened_s, now_s
    following = parent.listing.next_if_sequential(directory.name, _SEARCHED_NAMES)
    if since_s * (_PREFETCHED_DIRECTORIES + 1) > namespace.ttl_s:
        return  # the listing would have expired when it is read
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


def _type_of(listed: Listed) -> int:
    if type(listed) is ObjectInfo:  # not isinstance(), since this runs for every entry
        return stat.S_IFLNK if listed.key.endswith(LINK_SUFFIX) else stat.S_IFREG
    if isinstance(listed, ForgottenObject):
        return stat.S_IFLNK if listed.is_link else stat.S_IFREG
    return stat.S_IFDIR


def _names_behind(listing: Listing, place: int) -> Iterator[str]:
    while place < len(listing):
        start, opened = listing.stretch(place)
        names = opened.names[place - start :]
        yield from names
        place += len(names)
