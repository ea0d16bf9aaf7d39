"""Records of the journal: one type for each kind. Fields are plain values."""

from __future__ import annotations

from typing import Final, Literal, NamedTuple

GrantKind = Literal["lookup", "handle", "reading"]
"""What an answer hands out: one lookup of an inode, the handle of a file or of a directory."""
LOOKUP: Final = "lookup"
FILE_HANDLE: Final = "handle"
DIRECTORY_HANDLE: Final = "reading"

RENAME: Final = "rename"
RENAME_DIRECTORY: Final = "move"
"""Operations of :class:`Intended` whose second attempt must know about the first."""

BareVersion = tuple[str, int, float, str]
"""Key, size, time and version of an object: :attr:`ObjectInfo.bare`."""


class LastNumbers(NamedTuple):
    """The highest numbers ever handed out. No number is handed out twice."""

    inode: int
    file_handle: int
    directory_handle: int


class DirectoryInode(NamedTuple):
    """All of a directory's inode.

    Attributes:
        parent: its number; None for the root.
        kept: it exists without any object.
    """

    inode: int
    parent: int | None
    name: str
    lookups: int
    detached: bool
    kept: bool
    mtime_ns: int


class LinkInode(NamedTuple):
    """All of a symbolic link's inode.

    Attributes:
        target: None if nobody has read it yet.
    """

    inode: int
    parent: int | None
    name: str
    lookups: int
    detached: bool
    remote: BareVersion
    attributes: dict[str, int]
    target: bytes | None


class FileInode(NamedTuple):
    """All of a file's inode.

    Attributes:
        remote: the object's version that the store has; None before the first upload.
        spool_name: of its spool file; None if the spool has nothing of it.
        is_dirty: the spool has something that the store lacks; without a spool file,
            ``attributes`` have.
        key: its key in the store; None if nothing of it is only here.
    """

    inode: int
    parent: int | None
    name: str
    lookups: int
    detached: bool
    remote: BareVersion | None
    attributes: dict[str, int]
    spool_name: str | None
    is_dirty: bool
    key: str | None


class Lookups(NamedTuple):
    """How many lookups of an inode the kernel holds now."""

    inode: int
    lookups: int


class InodeDropped(NamedTuple):
    """Nobody holds the inode any more."""

    inode: int


class FileOpened(NamedTuple):
    """An open file.

    Attributes:
        backing_id: of the local file that the kernel reads instead; None: no such file.
    """

    handle: int
    inode: int
    is_writable: bool
    backing_id: int | None


class FileClosed(NamedTuple):
    """The handle of an open file is gone."""

    handle: int


class DirectoryOpened(NamedTuple):
    """An open directory, and the local names that its reader already has."""

    handle: int
    inode: int
    names: list[str]


class ListingRead(NamedTuple):
    """The reader of an open directory has the first ``listed`` names of a listing.

    Attributes:
        place: the place in the listing of the first of ``keys``.
        keys: the listing's names from there on, also those that the reader does not have yet, in
            the form of :func:`packed_names.pack_keys`; empty if the journal has them.
    """

    handle: int
    listing: int
    listed: int
    place: int
    keys: bytes


class NamesRead(NamedTuple):
    """The reader of an open directory gets these local names, after the first ``start``."""

    handle: int
    start: int
    names: list[str]


class DirectoryClosed(NamedTuple):
    """The handle of an open directory is gone."""

    handle: int


class RenameBegun(NamedTuple):
    """A directory's objects are being copied to other keys. Both end in ``/``."""

    inode: int
    old_key: str
    new_key: str


class RenameEnded(NamedTuple):
    """The rename of this directory is complete, or undone."""

    inode: int


class Granted(NamedTuple):
    """The answer to a request hands these out."""

    request: int
    kind: GrantKind
    numbers: list[int]


class Revoked(NamedTuple):
    """One of the granted numbers never arrived, and is about to be released."""

    request: int
    kind: GrantKind
    number: int


class Intended(NamedTuple):
    """What a request is about to change in the store.

    Attributes:
        inode: the one that is renamed; None for another operation.
        replaced_key: of an object that the rename replaces and has to delete.
    """

    request: int
    operation: str
    inode: int | None = None
    replaced_key: str | None = None


class Replied(NamedTuple):
    """A request made its change; this is its answer."""

    request: int
    errno: int
    reply: bytes


class Resent(NamedTuple):
    """The kernel sent a request again: how many workers died of it, and crashed."""

    request: int
    deaths: int
    crashes: int


class Answered(NamedTuple):
    """These requests will not be sent again."""

    requests: list[int]


InodeRecord = DirectoryInode | LinkInode | FileInode
HandleRecord = FileOpened | FileClosed | DirectoryOpened | ListingRead | NamesRead | DirectoryClosed
RequestRecord = Granted | Revoked | Intended | Replied | Resent
Record = (
    LastNumbers
    | InodeRecord
    | Lookups
    | InodeDropped
    | HandleRecord
    | RenameBegun
    | RenameEnded
    | RequestRecord
    | Answered
)
