"""What the file system says about a node: the fields of stat(2) that a bucket can fill."""

from __future__ import annotations

import stat
from dataclasses import dataclass
from typing import NamedTuple

BLOCK_BYTES = 4096
"""st_blksize; st_blocks counts 512-byte units, as stat(2) wants."""


class Attributes(NamedTuple):
    """Attributes of one node. Times in nanoseconds since the epoch.

    ``mode`` holds the file type bits too (S_IFREG, S_IFDIR, S_IFLNK).
    """

    node: int
    mode: int
    size_bytes: int
    mtime_ns: int
    nlink: int
    uid: int
    gid: int


class Entry(NamedTuple):
    """A name's answer: the node's attributes, and for how long the kernel may keep them."""

    attributes: Attributes
    ttl_s: float


class DirectoryEntry(NamedTuple):
    """One line of readdir. ``offset`` is what continues after it."""

    name: str
    offset: int
    attributes: Attributes


@dataclass(frozen=True, slots=True)
class Ownership:
    """Who owns what is in the bucket unless the object says otherwise."""

    uid: int
    gid: int
    file_mode: int
    dir_mode: int

    def file_type_mode(self) -> int:
        """``file_mode`` with the type bits."""
        return stat.S_IFREG | self.file_mode

    def link_type_mode(self) -> int:
        """A link's bits are never asked (symlink(7))."""
        return stat.S_IFLNK | 0o777

    def dir_type_mode(self) -> int:
        """``dir_mode`` with the type bits."""
        return stat.S_IFDIR | self.dir_mode


class Statistics(NamedTuple):
    """The fields of statvfs(3), in units of :data:`BLOCK_BYTES`."""

    blocks: int
    blocks_free: int
    files: int
    files_free: int
    name_max: int
