"""Records of the journal: one type for each kind.

Fields are plain values. Their types also say what is believed of a record that is read.
"""

from __future__ import annotations

from typing import Annotated, Final, Literal, NamedTuple

from msgspec import Meta

from sidecar.mounter.filesystem.names.names import TARGET_MAX_BYTES
from sidecar.mounter.writing.stored_values import (
    Key,
    KeyOrPrefix,
    Number,
    Prefix,
    Seconds,
    SpoolName,
)

GrantKind = Literal["lookup", "handle", "reading"]
"""What an answer hands out: one lookup of an inode, the handle of a file or of a directory."""
LOOKUP: Final = "lookup"
FILE_HANDLE: Final = "handle"
DIRECTORY_HANDLE: Final = "reading"

RENAME: Final = "rename"
RENAME_DIRECTORY: Final = "move"
"""Operations of :class:`Intended` whose second attempt must know about the first."""

_MOST_BACKING_ID = (1 << 31) - 1
_MOST_ERRNO = 511  # fs/fuse/dev.c, fuse_dev_do_write
_MOST_REPLY_BYTES = 64 * 1024

BareVersion = tuple[str, Number, Seconds, str]
"""Key, size, time and version of an object: :attr:`ObjectInfo.bare`."""


class LastNumbers(NamedTuple):
    """The highest numbers ever handed out. No number is handed out twice."""

    inode: Number
    file_handle: Number
    directory_handle: Number


class DirectoryInode(NamedTuple):
    """All of a directory's inode.

    Attributes:
        parent: its number; None for the root.
        kept: it exists without any object.
    """

    inode: Number
    parent: Number | None
    name: str
    lookups: Number
    detached: bool
    kept: bool
    mtime_ns: int


class LinkInode(NamedTuple):
    """All of a symbolic link's inode.

    Attributes:
        target: None if nobody has read it yet.
    """

    inode: Number
    parent: Number | None
    name: str
    lookups: Number
    detached: bool
    remote: BareVersion
    attributes: dict[str, int]
    target: Annotated[bytes, Meta(max_length=TARGET_MAX_BYTES)] | None


class FileInode(NamedTuple):
    """All of a file's inode.

    Attributes:
        remote: the object's version that the store has; None before the first upload.
        spool_name: of its spool file; None if the spool has nothing of it.
        is_dirty: the spool has something that the store lacks; without a spool file,
            ``attributes`` have.
        key: its key in the store; None if nothing of it is only here.
    """

    inode: Number
    parent: Number | None
    name: str
    lookups: Number
    detached: bool
    remote: BareVersion | None
    attributes: dict[str, int]
    spool_name: SpoolName | None
    is_dirty: bool
    key: Key | None


class Lookups(NamedTuple):
    """How many lookups of an inode the kernel holds now."""

    inode: Number
    lookups: Number


class InodeDropped(NamedTuple):
    """Nobody holds the inode any more."""

    inode: Number


class FileOpened(NamedTuple):
    """An open file.

    Attributes:
        backing_id: of the local file that the kernel reads instead; None: no such file.
    """

    handle: Number
    inode: Number
    is_writable: bool
    backing_id: Annotated[int, Meta(ge=0, le=_MOST_BACKING_ID)] | None


class FileClosed(NamedTuple):
    """The handle of an open file is gone."""

    handle: Number


class DirectoryOpened(NamedTuple):
    """An open directory, and the local names that its reader already has."""

    handle: Number
    inode: Number
    names: list[str]


class ListingRead(NamedTuple):
    """The reader of an open directory has the first ``listed`` names of a listing.

    Attributes:
        place: the place in the listing of the first of ``keys``.
        keys: the listing's names from there on, also those that the reader does not have yet, in
            the form of :func:`packed_names.pack_keys`; empty if the journal has them.
    """

    handle: Number
    listing: Number
    listed: Number
    place: Number
    keys: bytes


class NamesRead(NamedTuple):
    """The reader of an open directory gets these local names, after the first ``start``."""

    handle: Number
    start: Number
    names: list[str]


class DirectoryClosed(NamedTuple):
    """The handle of an open directory is gone."""

    handle: Number


class RenameBegun(NamedTuple):
    """A directory's objects are being copied to other keys. Both end in ``/``."""

    inode: Number
    old_key: Prefix
    new_key: Prefix


class RenameEnded(NamedTuple):
    """The rename of this directory is complete, or undone."""

    inode: Number


class Granted(NamedTuple):
    """The answer to a request hands these out."""

    request: Number
    kind: GrantKind
    numbers: list[Number]


class Revoked(NamedTuple):
    """One of the granted numbers never arrived, and is about to be released."""

    request: Number
    kind: GrantKind
    number: Number


class Intended(NamedTuple):
    """What a request is about to change in the store.

    Attributes:
        inode: the one that is renamed; None for another operation.
        replaced_key: of an object that the rename replaces and has to delete.
    """

    request: Number
    operation: str
    inode: Number | None = None
    replaced_key: KeyOrPrefix | None = None


class Replied(NamedTuple):
    """A request made its change; this is its answer."""

    request: Number
    errno: Annotated[int, Meta(ge=0, le=_MOST_ERRNO)]
    reply: Annotated[bytes, Meta(max_length=_MOST_REPLY_BYTES)]


class Resent(NamedTuple):
    """The kernel sent a request again: how many workers died of it, and crashed."""

    request: Number
    deaths: Number
    crashes: Number


class Answered(NamedTuple):
    """These requests will not be sent again."""

    requests: list[Number]


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
