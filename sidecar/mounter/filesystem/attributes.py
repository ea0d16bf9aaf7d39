"""What the file system says about an inode: the fields of stat(2) that a bucket can fill."""

from __future__ import annotations

import re
import stat
from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple

BLOCK_BYTES = 4096
"""st_blksize; st_blocks counts 512-byte units, as stat(2) wants."""


class Attributes(NamedTuple):
    """Attributes of one inode. Times in nanoseconds since the epoch.

    ``mode`` holds the file type bits too (S_IFREG, S_IFDIR, S_IFLNK).
    """

    inode: int
    mode: int
    size_bytes: int
    mtime_ns: int
    nlink: int
    uid: int
    gid: int


class Entry(NamedTuple):
    """A name's answer: the inode's attributes, and for how long the kernel may keep both.

    Attributes:
        ttl_s: for how long the name leads to this inode.
        attributes_ttl_s: for how long the attributes are these; 0 where they are not known
            in full yet.
    """

    attributes: Attributes
    ttl_s: float
    attributes_ttl_s: float


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


class Caller(NamedTuple):
    """Who makes something: the user and the group that the system call's process has."""

    uid: int
    gid: int


def of_new(owner: Ownership, parent: Attributes, type_mode: int, caller: Caller) -> dict[str, int]:
    """What something new in a directory has that it would not have from the volume anyway.

    As on a local disk (inode_init_owner of the kernel's fs/inode.c): it belongs to who makes it,
    but a directory with the set-group-ID bit gives its group, and that bit to directories.

    Args:
        parent: the directory's.
        type_mode: type and permission bits, the umask already taken off. Those of a link are
            never asked.
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
    """Attributes by the keys of s3fs-fuse (mode, uid, gid) and rclone (mtime).

    Returns mode, uid, gid, mtime_ns as far as they are there and make sense: other tools write
    what they like, and what is not understood is as if it were not there.
    """
    found: dict[str, int] = {}
    for name in ("mode", "uid", "gid"):
        text = metadata.get(name, "")
        if text.isascii() and text.isdigit() and int(text) < _UINT32:
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


def beside_metadata(
    kept: Mapping[str, str] | None, attributes: Mapping[str, int], type_mode: int, max_bytes: int
) -> dict[str, str]:
    """The metadata of an object's next version: what other tools ``kept`` there, and attributes.

    Args:
        max_bytes: what the store takes; what has no room beside other tools' is left out.
    """
    metadata = dict(kept or {})
    used_bytes = sum(map(_length, metadata.items()))
    for item in to_metadata(attributes, type_mode).items():
        name, value = item
        if name in metadata or used_bytes + _length(item) <= max_bytes:
            used_bytes += _length(item)
            metadata[name] = value
    return metadata


def _length(item: tuple[str, str]) -> int:
    return sum(len(text.encode()) for text in item)


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
