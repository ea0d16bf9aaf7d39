"""Names to inodes: what the store has, what this mount changed, and how long it is believed."""

from __future__ import annotations

import contextlib
import itertools
import logging
import stat
import threading
import time
import weakref
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Executor
from typing import NamedTuple, TypeGuard

from sidecar.errors import NotADirectory, NotFound, SidecarError, WouldBlock
from sidecar.mounter.filesystem.attributes import (
    Attributes,
    Entry,
    Ownership,
    from_metadata,
)
from sidecar.mounter.filesystem.inodes import Directory, File, Inode, InodeTable, Link
from sidecar.mounter.filesystem.journal import Journal
from sidecar.mounter.filesystem.listing import Changes, Listing, Remote, find_remote
from sidecar.mounter.filesystem.metadata_prefetch import MetadataPrefetch, stamp_of
from sidecar.mounter.filesystem.names import check_name, is_link_key
from sidecar.mounter.filesystem.subtree_locks import SubtreeLocks, is_at_or_below
from sidecar.mounter.store.interface import ObjectInfo, Store

log = logging.getLogger(__name__)

RELIST_MISSES = 16
"""After so many names asked for one by one, reading the whole directory again may be cheaper."""
_TOOK_BELIEVED_S = 60.0
"""How long it is believed that a directory takes as long to list as it took."""
_REST_MISSES = 3
"""After so many names that a first page does not tell, the others are likely to be asked for."""
_LOGGED_KEYS = 10_000
_FIRST_ENTRY_OFFSET = 2
_LOCAL_OFFSET = 1 << 40
"""Where the lines begin that only this mount has, so that a listing may grow before them."""
_LOCAL_MARK = "\0"  # no name has one
_READDIR_BATCH = 128
_DIRECTORIES_AHEAD = 2
_NAMES_AHEAD = 16
"""Among so many names the next directories are looked for."""
_LATE_CHANGES_S = 120.0
_FOLLOWED_S = 10.0
"""A listing whose names are asked for in its order is kept, though it is not believed any more."""
DIRECTORY_ATTRIBUTES_S = 60.0
"""How long the attributes of a directory are believed: nothing tells that they changed."""


class DirectoryEntry(NamedTuple):
    """One name of a directory.

    Attributes:
        offset: continues the reading behind it.
        type_mode: S_IFREG, S_IFDIR or S_IFLNK.
        inode: its number, where there is an inode yet.
    """

    name: str
    offset: int
    type_mode: int
    inode: int | None


class OpenDirectory:
    """An open directory: one reading of it that stays the same until rewinddir(3).

    Attributes:
        given: names that the reader got already; those that only this mount has begin with
            :data:`_LOCAL_MARK`.
        local_names: what only this mount has, listed last; known once they are reached.
        listed: how many names of the listing come before them.
    """

    def __init__(
        self, directory: Directory, listing: Listing | None, given: list[str] | None = None
    ) -> None:
        self.directory = directory
        self.listing = listing
        self.given = given or []
        self._given_local = len(self.given_local())
        self.local_names: dict[str, None] | None = None
        self.listed = 0

    def rewind(self, listing: Listing) -> None:
        """Begin again, with what ``listing`` says."""
        self.listing = listing
        self.given = []
        self._given_local = 0
        self.local_names = None

    def give(self, end: int) -> list[str]:
        """Note that lines up to offset ``end`` are given; the names of the new ones."""
        listing = self.listing
        if listing is None:
            return []
        listed = len(self.given) - self._given_local
        if end <= _LOCAL_OFFSET:
            new = listing.names[listed : max(0, end - _FIRST_ENTRY_OFFSET)]
        else:
            new = listing.names[listed : self.listed]
            names = list(self.local_names or ())[self._given_local : end - _LOCAL_OFFSET]
            new += [_LOCAL_MARK + name for name in names]
            self._given_local += len(names)
        self.given += new
        return new

    def given_listed(self) -> list[str]:
        """Names of the listing that were given."""
        return [name for name in self.given if not name.startswith(_LOCAL_MARK)]

    def given_local(self) -> list[str]:
        """Names that only this mount had when they were given."""
        marked = (name for name in self.given if name.startswith(_LOCAL_MARK))
        return [name.removeprefix(_LOCAL_MARK) for name in marked]


class Namespace:
    """The name space of one mount. Safe to use from any thread.

    Args:
        ttl_s: how long names and attributes are believed without asking the store.
        reads_attributes: show the attributes that objects keep in their metadata.
        hidden: counts keys that no path shows, by reason.
        threads: ask the store ahead of a reader.
    """

    def __init__(
        self,
        store: Store,
        owner: Ownership,
        ttl_s: float,
        hidden: Callable[[str], None],
        journal: Journal,
        threads: Executor,
        *,
        reads_attributes: bool,
    ) -> None:
        self._threads = threads
        self._reads_attributes = reads_attributes
        self._metadata_prefetch = MetadataPrefetch(store, threads)
        self.ttl_s = ttl_s
        self.owner = owner
        self._store = store
        self._hidden = hidden
        self._hidden_logged: set[str] = set()
        self._hidden_lock = threading.Lock()
        self.subtrees = SubtreeLocks()
        self.inodes = InodeTable(time.time_ns(), journal)
        self._readings: weakref.WeakSet[OpenDirectory] = weakref.WeakSet()
        self._remembering: set[Directory] = set()  # with a listing, changes or absences
        self._moves = 0  # directories that got another name, so far
        self.on_remote_change: Callable[[Inode], None] = _ignore
        """Called with an inode that lost its name because the bucket changed."""

    # --- names ---------------------------------------------------------------------

    def directory(self, inode_id: int) -> Directory:
        """The directory inode of a number. Raises NodeForgotten, NotADirectory."""
        inode = self.inodes.get(inode_id)
        if not isinstance(inode, Directory):
            raise NotADirectory(f"`{inode.key}` is no directory")
        return inode

    def find(self, parent: Directory, name: str, *, wait: bool = True) -> Inode:
        """The inode of a name, asking the store where nothing fresh is known.

        Raises NotFound, NameTooLong, NameInvalid, what the store raises, and WouldBlock
        where the store must be asked and the caller does not ``wait``.
        """
        while True:
            with contextlib.suppress(_Moved):
                return self._find(parent, name, self._moves, wait=wait)

    def _find(self, parent: Directory, name: str, moves: int, *, wait: bool) -> Inode:
        now_s = time.monotonic()
        child = parent.children.get(name)
        if child is not None and (_is_local(child) or child.fresh_until_s > now_s):
            return child
        if parent.negative.holds(name, now_s):
            raise NotFound(f"`{parent.key}{name}`")
        check_name(name)
        listing = parent.listing
        if listing is not None and listing.loaded_s + self.ttl_s > now_s and listing.covers(name):
            exists, remote = name in listing.entries, listing.entries.get(name)
            return self._bind(parent, name, exists, remote, listing.loaded_s + self.ttl_s, moves)
        if not wait:
            raise WouldBlock(name)
        exists, remote, fresh_until_s = self._ask(parent, name, now_s)
        return self._bind(parent, name, exists, remote, fresh_until_s, moves)

    def absence_ttl_s(self, parent: Directory, name: str) -> float:
        """For how much longer a name that was not found is known not to exist."""
        return parent.negative.remaining_s(name)

    def exists(self, parent: Directory, name: str) -> bool:
        """Whether a name is taken."""
        try:
            self.find(parent, name)
        except NotFound:
            return False
        return True

    def enter(self, inode: Inode) -> Entry:
        """Count one lookup of the inode by the kernel, and say what it may keep."""
        self.inodes.hold([inode])
        return self.entry(inode)

    def entry(self, inode: Inode) -> Entry:
        """The attributes of an inode, and for how much longer they are believed."""
        ttl_s = self.ttl_s
        if not (inode.parent is None or inode.detached or _is_local(inode)):
            ttl_s = max(0.0, inode.fresh_until_s - time.monotonic())
        return Entry(self.attributes(inode), ttl_s, 0.0 if self._lacks_attributes(inode) else ttl_s)

    def _lacks_attributes(self, inode: Inode) -> bool:
        """Whether an inode's object may keep attributes that nobody has asked for yet."""
        if not self._reads_attributes or inode.parent is None or inode.detached:
            return False
        if isinstance(inode, Directory):
            return inode.attributes_until_s <= time.monotonic()
        assert isinstance(inode, File | Link)
        if inode.remote is None or _is_local(inode):
            return False
        return inode.remote.metadata is None

    def complete(self, inode: Inode, *, wait: bool = True) -> None:
        """Make sure that the attributes of an inode are those that its object keeps.

        Raises what the store raises, and WouldBlock as :meth:`find` does.
        """
        if not self._lacks_attributes(inode):
            return
        parent, key, listing = inode.parent, inode.object_key, None
        assert parent is not None
        if parent.listing is not None:
            listing = parent.listing
            self._metadata_prefetch.look_ahead(parent.key, listing, inode.name)
        if isinstance(inode, Directory):
            marker = self._metadata_prefetch.get(key, None, wait=wait)
            with self.inodes.lock:
                attributes = from_metadata((marker and marker.metadata) or {})
                self.take_directory_attributes(inode, attributes)
            return
        assert isinstance(inode, File | Link)
        remote = inode.remote
        assert remote is not None
        found = self._metadata_prefetch.get(key, remote, wait=wait)
        known = remote._replace(
            metadata=(found and found.metadata) or {}, properties=(found and found.properties) or {}
        )
        with self.inodes.lock:
            if inode.remote is remote and not _is_local(inode):
                self._take_attributes(inode, known)

    def take_directory_attributes(self, inode: Directory, attributes: dict[str, int]) -> None:
        """What a directory's object keeps is this."""
        # A directory's time moves with its names, which is not written down each time: the one
        # that is kept counts when it is first seen, and when somebody has set it since.
        mtime_ns = attributes.get("mtime_ns")
        if mtime_ns is not None and mtime_ns != inode.attributes.get("mtime_ns"):
            inode.mtime_ns = mtime_ns
        inode.attributes = attributes
        inode.attributes_until_s = time.monotonic() + DIRECTORY_ATTRIBUTES_S

    def _take_attributes(self, inode: File | Link, remote: ObjectInfo) -> None:
        """An inode's object, and the attributes that come with it."""
        inode.remote = remote
        if self._reads_attributes and remote.metadata is not None:
            inode.attributes = from_metadata(remote.metadata)
        self.inodes.note(inode)

    def _renew(self, inode: File | Link, remote: ObjectInfo) -> None:
        """The store named the version that the inode is; its metadata may be others by now."""
        known = inode.remote
        if not self._reads_attributes or known is None:
            return
        if remote.metadata is not None:
            if (remote.metadata, remote.properties) != (known.metadata, known.properties):
                self._take_attributes(inode, remote)
        elif stamp_of(remote) != stamp_of(known):
            self._take_attributes(inode, remote)

    def refresh(self, inode: Inode, *, wait: bool = True) -> None:
        """Make sure that the attributes of an inode are within their lifetime.

        Raises WouldBlock as :meth:`find` does, and NotFound when the name is gone and nobody
        holds the file open.
        """
        parent = inode.parent
        if parent is None or inode.detached or _is_local(inode):
            return
        if inode.fresh_until_s > time.monotonic():
            return
        try:
            self.find(parent, inode.name, wait=wait)
        except NotFound:
            # Who has it open asks by the inode, and no handle need be known (read-only mounts).
            if not (isinstance(inode, File) and inode.lookups):
                raise

    def attributes(self, inode: Inode) -> Attributes:
        """The attributes as they are known now."""
        owner = self.owner
        if isinstance(inode, Link):
            return Attributes(
                inode.id,
                owner.link_type_mode(),
                inode.remote.size_bytes,
                inode.attributes.get("mtime_ns", int(inode.remote.mtime_s * 1e9)),
                0 if inode.detached else 1,
                inode.attributes.get("uid", owner.uid),
                inode.attributes.get("gid", owner.gid),
            )
        if isinstance(inode, File):
            remote, set_ = inode.remote, inode.attributes
            mtime_ns = int(remote.mtime_s * 1e9) if remote is not None else 0
            if not set_:
                return Attributes(
                    inode.id,
                    owner.file_type_mode(),
                    inode.size_bytes,
                    mtime_ns,
                    0 if inode.detached else 1,
                    owner.uid,
                    owner.gid,
                )
            return Attributes(
                inode.id,
                owner.file_type_mode() & ~0o7777 | set_.get("mode", owner.file_mode),
                inode.size_bytes,
                set_.get("mtime_ns", mtime_ns),
                0 if inode.detached else 1,
                set_.get("uid", owner.uid),
                set_.get("gid", owner.gid),
            )
        assert isinstance(inode, Directory)
        set_ = inode.attributes
        return Attributes(
            inode.id,
            stat.S_IFDIR | set_.get("mode", owner.dir_mode),
            4096,
            inode.mtime_ns,
            2,
            set_.get("uid", owner.uid),
            set_.get("gid", owner.gid),
        )

    # --- reading a directory -----------------------------------------------------------

    def resume_directory(self, directory: Directory, given: list[str]) -> OpenDirectory:
        """Go on with a reading that another worker began, behind the lines it gave."""
        return self._reading(OpenDirectory(directory, None, given))

    def open_directory(self, directory: Directory) -> OpenDirectory:
        """Begin to read a directory; shares a listing that is fresh."""
        listing = self._fresh_listing(directory, time.monotonic())
        self._look_ahead(directory)
        return self._reading(OpenDirectory(directory, listing))

    def _look_ahead(self, directory: Directory) -> None:
        """Ask for the next directories where one after the other is read, as ``ls -R`` does."""
        parent = directory.parent
        if parent is None or parent.listing is None:
            return
        now_s = time.monotonic()
        since_s, parent.entered_s = now_s - parent.entered_s, now_s
        behind = parent.listing.follow(directory.name, _NAMES_AHEAD)
        if since_s * (_DIRECTORIES_AHEAD + 1) > self.ttl_s:
            return  # it would be too old when it is read
        children = (parent.children.get(name) for name, remote in behind if remote is None)
        for child in itertools.islice(children, _DIRECTORIES_AHEAD):
            if isinstance(child, Directory):
                self._threads.submit(self._list_ahead, child)

    def _list_ahead(self, directory: Directory) -> None:
        with contextlib.suppress(SidecarError):  # who reads it will be told
            self._fresh_listing(directory, time.monotonic()).load_until(1)

    def _reading(self, opened: OpenDirectory) -> OpenDirectory:
        with self.inodes.lock:
            self._readings.add(opened)
        return opened

    def read_directory(
        self, opened: OpenDirectory, offset: int, *, wait: bool = True
    ) -> Iterator[DirectoryEntry]:
        """The lines behind ``offset``, pages loaded as they are reached.

        0 is the beginning, also of a reading that is under way: then it shows what is there
        by now, as rewinddir(3) says.
        """
        directory = opened.directory
        if offset <= 0:
            opened.rewind(self._fresh_listing(directory, time.monotonic()))
            yield DirectoryEntry(".", 1, stat.S_IFDIR, directory.id)
        if offset <= 1:
            yield DirectoryEntry("..", 2, stat.S_IFDIR, (directory.parent or directory).id)
        if offset < _LOCAL_OFFSET:
            yield from self._read_listed(opened, max(0, offset - _FIRST_ENTRY_OFFSET), wait)
        yield from self._read_local(opened, max(0, offset - _LOCAL_OFFSET), wait)

    def enter_lines(self, opened: OpenDirectory, names: Sequence[str]) -> list[Entry | None]:
        """:meth:`enter` for lines just read, without a request; None for one that is gone."""
        directory, listing = opened.directory, self._listing_of(opened, wait=True)
        with self.inodes.lock:  # no directory gets another name in between
            inodes = [self._inode_of_line(directory, listing, name) for name in names]
            self.inodes.hold([inode for inode in inodes if inode is not None])
            return [self.entry(inode) if inode is not None else None for inode in inodes]

    def _inode_of_line(self, directory: Directory, listing: Listing, name: str) -> Inode | None:
        fresh_until_s = 0.0 if listing.doubts(name) else listing.loaded_s + self.ttl_s
        child = directory.children.get(name)
        if child is not None and (_is_local(child) or child.fresh_until_s >= fresh_until_s):
            return child  # known later than the listing
        try:
            remote = listing.entries[name]
        except KeyError:
            return None
        return self._bind(directory, name, True, remote, fresh_until_s, self._moves)

    def _listing_of(self, opened: OpenDirectory, wait: bool) -> Listing:
        """The listing of an open directory; read again if another worker had it."""
        listing = opened.listing
        if listing is None:
            if not wait:
                raise WouldBlock(opened.directory.key)
            directory = opened.directory
            with self.inodes.lock:  # so that no move makes the key another one in between
                listing = Listing(
                    self._store,
                    directory.key,
                    directory.changes,
                    self._hide,
                    self._threads,
                    opened.given_listed(),
                )
                opened.listing = listing
            listing.load_all()
        return listing

    def _read_listed(
        self, opened: OpenDirectory, start: int, wait: bool
    ) -> Iterator[DirectoryEntry]:
        """What the store has, from the index ``start`` on."""
        directory, listing = opened.directory, self._listing_of(opened, wait)
        for index in itertools.count(start):
            if opened.local_names is None and index >= len(listing.names):
                if not (wait or listing.complete):
                    raise WouldBlock(directory.key)
                listing.load_until(index + _READDIR_BATCH, ahead=True)
                if index >= len(listing.names):
                    self._note_local(opened, listing)
            if opened.local_names is not None and index >= opened.listed:
                break
            name = listing.names[index]
            if name in listing.entries and name not in (opened.local_names or ()):
                remote = listing.entries[name]
                child = directory.children.get(name)
                yield DirectoryEntry(
                    name,
                    index + 1 + _FIRST_ENTRY_OFFSET,
                    _type_of(remote),
                    child.id if child is not None else None,
                )

    def _read_local(
        self, opened: OpenDirectory, start: int, wait: bool
    ) -> Iterator[DirectoryEntry]:
        """What only this mount has yet: files being written, directories without objects.

        A file that is saved meanwhile keeps its place here.
        """
        directory, listing = opened.directory, self._listing_of(opened, wait)
        for index, name in enumerate(self._note_local(opened, listing)):
            child = directory.children.get(name)
            if index >= start and child is not None:
                yield DirectoryEntry(
                    name,
                    index + 1 + _LOCAL_OFFSET,
                    stat.S_IFDIR if isinstance(child, Directory) else stat.S_IFREG,
                    child.id,
                )

    def _note_local(self, opened: OpenDirectory, listing: Listing) -> dict[str, None]:
        """The names that are listed last; settled when they are first asked for."""
        with self.inodes.lock:
            if opened.local_names is None:
                children = opened.directory.children.items()
                # What another worker gave keeps its place.
                opened.local_names = dict.fromkeys(opened.given_local())
                for name, child in children:
                    if _is_local(child) and name not in listing.entries:
                        opened.local_names[name] = None
                # After the names: what is saved in between is listed there and skipped here.
                opened.listed = len(listing.names)
            return opened.local_names

    # --- changes through this mount ------------------------------------------------------

    def changed(self, parent: Directory, name: str, exists: bool, remote: Remote) -> None:
        """Tell everything that remembers the directory what the store now has there."""
        parent.negative.discard(name)
        parent.changes.made(name, exists, remote)
        self._remembering.add(parent)
        parent.mtime_ns = time.time_ns()
        listing = parent.listing
        if listing is not None:
            listing.apply(name, exists, remote)

    def doubt(self, inode: Inode) -> bool:
        """The store has another version of a file or a link by now, or none.

        Whoever asks for its name next asks the store. False for what has no name there.
        """
        with self.inodes.lock:
            parent = inode.parent
            if parent is None or inode.detached or isinstance(inode, Directory) or _is_local(inode):
                return False
            inode.fresh_until_s = 0.0
            listings = {opened.listing for opened in self._readings if opened.directory is parent}
            for listing in listings | {parent.listing}:
                if listing is not None:
                    listing.doubt(inode.name)
            return True

    def settle(self, inode: File, remote: ObjectInfo, asked_s: float) -> None:
        """The version that this mount made is called so by the store.

        Args:
            asked_s: when the store was asked (monotonic).
        """
        parent = inode.parent
        assert parent is not None
        inode.remote = remote
        inode.fresh_until_s = asked_s + self.ttl_s
        parent.changes.made(inode.name, True, remote)
        if parent.listing is not None:
            parent.listing.apply(inode.name, True, remote)
        self.inodes.note(inode)

    def move_directory(
        self,
        inode: Directory,
        target: Directory,
        name: str,
        copied: Mapping[str, tuple[ObjectInfo, ObjectInfo]],
    ) -> None:
        """A directory has another name, and all below it other keys.

        Args:
            copied: old key to (the version that was copied, the copy).
        """
        source, old_name = inode.parent, inode.name
        assert source is not None
        with self.inodes.lock:
            below = [other for other in self.inodes if is_at_or_below(other, inode)]
            old_keys = {other.id: other.object_key for other in below}
            self.inodes.move(inode, target, name)
            self._moves += 1
            for other in below:
                if isinstance(other, Directory):
                    other.changes = Changes()
                    other.negative.clear()
                else:
                    self._move_object(other, copied.get(old_keys[other.id]))
            listings = {d.listing: d for d in below if isinstance(d, Directory)}
            listings |= {opened.listing: opened.directory for opened in self._readings}
            for listing, directory in listings.items():
                if listing is not None and is_at_or_below(directory, inode):
                    listing.move(directory.key, directory.changes, copied)
        self.changed(source, old_name, False, None)
        self.changed(target, name, True, None)

    def _move_object(self, inode: Inode, pair: tuple[ObjectInfo, ObjectInfo] | None) -> None:
        """Something below a directory that was moved has another key."""
        assert isinstance(inode, File | Link)
        known = inode.remote
        if isinstance(inode, File) and inode.spool is not None:
            # What is in the spool is newer, whatever was copied.
            inode.remote = pair[1] if pair is not None else None
        elif pair is not None and known is not None and known.version == pair[0].version:
            inode.remote = pair[1]
        else:
            self.inodes.detach(inode)  # somebody else changed or deleted it; its readers hear that
            return
        self.inodes.note(inode)

    # --- asking the store ------------------------------------------------------------------

    def _ask(self, parent: Directory, name: str, now_s: float) -> tuple[bool, Remote, float]:
        """(exists, what, until when that is believed)."""
        with parent.lock:
            listing = parent.listing
            fresh = listing is not None and listing.loaded_s + self.ttl_s > now_s
            if listing is None or (not fresh and self._pays(parent, listing, now_s)):
                listing = self._new_listing(parent)
                fresh = True
            elif not (fresh and listing.covers(name)):
                parent.misses += 1
            load_rest = parent.misses >= _REST_MISSES
        if fresh:
            if not listing.names and not listing.complete:
                listing.load_until(1)
            if load_rest and not (listing.covers(name) or listing.doubts(name)):
                listing.await_rest(name)
            if listing.covers(name):
                until_s = listing.loaded_s + self.ttl_s
                if name in listing.entries:
                    return True, listing.entries[name], until_s
                return False, None, until_s
        asked_s = time.monotonic()
        exists, remote = find_remote(self._store, parent.key, name)
        with parent.lock:
            parent.missed_s += time.monotonic() - asked_s
        exists, remote = parent.changes.since(asked_s).get(name, (exists, remote))
        if listing.doubts(name):
            listing.apply(name, exists, remote)
        return exists, remote, asked_s + self.ttl_s

    def _pays(self, parent: Directory, old: Listing, now_s: float) -> bool:
        """Whether to read a directory again, whose listing ``old`` is not believed any more.

        It would answer for the metadata lifetime, and save then what names that are asked for
        one by one cost at present. The store may take longer than that to list a large
        directory, above all one that is being written to.
        """
        if parent.misses < RELIST_MISSES:
            return False
        since_s = now_s - (old.loaded_s + self.ttl_s)
        if since_s > _TOOK_BELIEVED_S:
            return True
        return old.took_s * since_s <= parent.missed_s * self.ttl_s

    def _bind(
        self,
        parent: Directory,
        name: str,
        exists: bool,
        remote: Remote,
        fresh_until_s: float,
        moves: int,
    ) -> Inode:
        """Make the inode of a name agree with what the store said.

        Args:
            moves: how many directories had got another name when the store was asked. Raises
                _Moved where it is another number: the answer may be about another directory.
        """
        old: Inode | None = None
        with self.inodes.lock:
            if self._moves != moves:
                raise _Moved
            child = parent.children.get(name)
            if child is not None and _is_local(child):
                return child
            if not exists:
                if child is not None:
                    self.inodes.detach(child)
                    self.on_remote_change(child)
                parent.negative.add(name, fresh_until_s)
                self._remembering.add(parent)
                raise NotFound(f"`{parent.key}{name}`")
            if remote is None:
                if not isinstance(child, Directory):
                    old, child = child, self.inodes.add_directory(parent, name, parent.mtime_ns)
            elif not _is_version(child, remote):
                add = self.inodes.add_link if is_link_key(remote.key) else self.inodes.add_file
                old, child = child, add(parent, name, remote)
                if remote.metadata is not None:
                    self._take_attributes(child, remote)
            else:
                self._renew(child, remote)
            child.fresh_until_s = fresh_until_s
        if old is not None:
            self.on_remote_change(old)
        return child

    def _fresh_listing(self, directory: Directory, now_s: float) -> Listing:
        with directory.lock:
            listing = directory.listing
            if listing is None or listing.loaded_s + self.ttl_s <= now_s:
                listing = self._new_listing(directory)
            return listing

    def _new_listing(self, directory: Directory) -> Listing:
        directory.changes.forget_before(time.monotonic() - _LATE_CHANGES_S)
        with self.inodes.lock:  # so that no move makes the key another one in between
            listing = Listing(
                self._store, directory.key, directory.changes, self._hide, self._threads
            )
            listing.loaded_s = time.monotonic()  # its first page is about to be asked for
            directory.listing = listing
            self._remembering.add(directory)
            directory.misses = 0
            directory.missed_s = 0.0
        return listing

    def drop_expired(self) -> None:
        """Let go of what is not believed any more, also where nobody asks again.

        Every second or so. Who has asked a listing a moment ago still has all of it.
        """
        now_s = time.monotonic()
        with self.inodes.lock:
            read = {opened.listing for opened in self._readings}
            expired = [
                listing
                for directory in list(self._remembering)
                if (listing := self._forget_expired(directory, now_s, read)) is not None
            ]
        expired.clear()  # without the lock: it takes its time

    def _forget_expired(
        self, directory: Directory, now_s: float, read: set[Listing | None]
    ) -> Listing | None:
        """Forget it of one directory; its listing where that is nobody's any more."""
        listing, expired = directory.listing, None
        if listing is not None and listing.names and listing not in read:
            of_use_s = max(listing.loaded_s + self.ttl_s, listing.used_s + _FOLLOWED_S)
            if of_use_s <= now_s:
                directory.listing, expired = listing.without_names(), listing
        directory.changes.forget_before(now_s - _LATE_CHANGES_S)
        directory.negative.drop_expired(now_s)
        listed = directory.listing is not None and directory.listing.names
        if not (listed or directory.changes or directory.negative):
            self._remembering.discard(directory)
        return expired

    def _hide(self, key: str, reason: str) -> None:
        self._hidden(reason)
        with self._hidden_lock:
            if key in self._hidden_logged:
                return
            if len(self._hidden_logged) < _LOGGED_KEYS:
                self._hidden_logged.add(key)
        log.warning("key left out: %r (%s)", key, reason)


class _Moved(Exception):
    """A directory got another name while the store was asked: ask again."""


def _ignore(_inode: Inode) -> None:
    """Nobody needs to be told."""


def _type_of(remote: Remote) -> int:
    if remote is None:
        return stat.S_IFDIR
    return stat.S_IFLNK if is_link_key(remote.key) else stat.S_IFREG


def _is_version(inode: Inode | None, remote: ObjectInfo) -> TypeGuard[File | Link]:
    """Whether an inode is this version of this kind of object."""
    if isinstance(inode, File):
        known = inode.remote if not is_link_key(remote.key) else None
    elif isinstance(inode, Link):
        known = inode.remote if is_link_key(remote.key) else None
    else:
        return False
    return known is not None and known.version == remote.version


def _is_local(inode: Inode) -> bool:
    """Whether this mount knows more about the inode than the store does."""
    if isinstance(inode, File):
        return inode.spool is not None
    return isinstance(inode, Directory) and inode.kept
