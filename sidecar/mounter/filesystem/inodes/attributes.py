"""Attributes of inodes: the fields of stat(2) that a bucket can fill, and how objects keep them.

Only values and their conversion.
"""

from __future__ import annotations

import re
import stat
from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple

BLOCK_BYTES = 4096
"""st_blksize; st_blocks counts 512-byte units, as stat(2) wants."""


class Attributes(NamedTuple):
    """The attributes of one inode.

    Attributes:
        mode: permission bits, and those of the type (S_IFREG, S_IFDIR, S_IFLNK).
        mtime_ns: since the epoch.
    """

    inode: int
    mode: int
    size_bytes: int
    mtime_ns: int
    nlink: int
    uid: int
    gid: int


class Entry(NamedTuple):
    """FUSE's entry: what a name leads to, and for how long the kernel may believe it.

    Attributes:
        ttl_s: lifetime of the name.
        attributes_ttl_s: lifetime of the attributes; 0 while some of them are not known.
    """

    attributes: Attributes
    ttl_s: float
    attributes_ttl_s: float


@dataclass(frozen=True, slots=True)
class Ownership:
    """Owner and permission bits of objects that do not keep their own."""

    uid: int
    gid: int
    file_mode: int
    dir_mode: int

    def file_type_mode(self) -> int:
        """``file_mode`` with the type bits."""
        return stat.S_IFREG | self.file_mode

    def link_type_mode(self) -> int:
        """The mode of every symbolic link, whose permission bits nobody checks (symlink(7))."""
        return stat.S_IFLNK | 0o777


class Caller(NamedTuple):
    """The user and group of the process that makes a system call."""

    uid: int
    gid: int


def attributes_of_new(
    owner: Ownership, parent: Attributes, type_mode: int, caller: Caller
) -> dict[str, int]:
    """Mode, uid and gid of something new in a directory, if they differ from the volume's.

    As on a local disk (inode_init_owner of the kernel's fs/inode.c), it belongs to the caller.
    A directory with the set-group-ID bit passes its group on, and the bit to new directories.

    Args:
        parent: the directory's attributes.
        type_mode: type and permission bits, without the umask's.
    """
    uid, gid = caller
    if parent.mode & stat.S_ISGID:
        gid = parent.gid
        if stat.S_ISDIR(type_mode):
            type_mode |= stat.S_ISGID
    volume = {"uid": owner.uid, "gid": owner.gid}
    found = {"uid": uid, "gid": gid}
    if not stat.S_ISLNK(type_mode):
        found["mode"] = stat.S_IMODE(type_mode)
        volume["mode"] = owner.dir_mode if stat.S_ISDIR(type_mode) else owner.file_mode
    return {name: value for name, value in found.items() if value != volume[name]}


def from_metadata(metadata: Mapping[str, str]) -> dict[str, int]:
    """The attributes that an object keeps, under the keys of s3fs-fuse and rclone (mtime).

    Returns mode, uid, gid and mtime_ns. Other tools may write anything: attributes that are missing
    or make no sense are left out.
    """
    found: dict[str, int] = {}
    for name in ("mode", "uid", "gid"):
        text = metadata.get(name, "")
        if _NUMBER.fullmatch(text) and int(text) < _UINT32:
            found[name] = stat.S_IMODE(int(text)) if name == "mode" else int(text)
    time = _TIME.fullmatch(metadata.get("mtime", ""))
    if time is not None:
        sign, seconds, fraction = time.groups(default="")
        total_ns = int(seconds) * 10**9 + int(f"{fraction:0<9.9}")
        if int(seconds) < _INT63:
            found["mtime_ns"] = -total_ns if sign else total_ns
    return found


def to_metadata(attributes: Mapping[str, int], type_mode: int) -> dict[str, str]:
    """The reverse of :func:`from_metadata`.

    Args:
        type_mode: S_IFREG or S_IFDIR, which s3fs-fuse keeps with the mode.
    """
    metadata: dict[str, str] = {}
    if "mtime_ns" in attributes:
        seconds, nanoseconds = divmod(abs(attributes["mtime_ns"]), 10**9)
        sign = "-" if attributes["mtime_ns"] < 0 else ""
        metadata["mtime"] = f"{sign}{seconds}.{nanoseconds:09d}"
    if "mode" in attributes:
        metadata["mode"] = str(type_mode | attributes["mode"])
    for name in ("uid", "gid"):
        if name in attributes:
            metadata[name] = str(attributes[name])
    return metadata


def merge_metadata(
    kept: Mapping[str, str] | None, attributes: Mapping[str, int], type_mode: int, max_bytes: int
) -> dict[str, str]:
    """The metadata of an object's next version: what it ``kept`` so far, and these attributes.

    Args:
        max_bytes: the store's limit. Attributes beyond it are left out.
    """
    metadata = dict(kept or {})
    used_bytes = sum(map(_length_bytes, metadata.items()))
    for item in to_metadata(attributes, type_mode).items():
        name, value = item
        if name in metadata or used_bytes + _length_bytes(item) <= max_bytes:
            used_bytes += _length_bytes(item)
            metadata[name] = value
    return metadata


def _length_bytes(item: tuple[str, str]) -> int:
    return sum(len(text.encode()) for text in item)


_NUMBER = re.compile(r"[0-9]{1,20}")
_TIME = re.compile(r"(-)?(\d{1,19})(?:\.(\d*))?", re.ASCII)
_UINT32 = 1 << 32
_INT63 = 1 << 63


class Statistics(NamedTuple):
    """The fields of statvfs(3), in units of :data:`BLOCK_BYTES`."""

    blocks: int
    blocks_free: int
    files: int
    files_free: int
    name_max: int
