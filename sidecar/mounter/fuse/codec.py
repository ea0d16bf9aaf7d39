"""Bytes of /dev/fuse to typed values and back; functions are named after the structs of fuse.h.

Pure: no I/O, no clock, no file system calls. :mod:`.operations` says what a request means.
"""

from __future__ import annotations

import os
import stat
import struct
from typing import NamedTuple

from sidecar.mounter.filesystem.inodes.attributes import (
    BLOCK_BYTES,
    Attributes,
    Caller,
    Entry,
    Statistics,
)
from sidecar.mounter.fuse import protocol as p

MAX_REQUEST_BYTES = 1024 * 1024
"""The largest read and write (max_pages 256)."""
MAX_BACKGROUND = 64
"""The most readahead requests in flight; above the threshold the kernel drops readahead."""
_CONGESTION_THRESHOLD = MAX_BACKGROUND * 3 // 4
_PAGE_BYTES = 4096
_UINT64_MAX = (1 << 64) - 1
_SET_FIELDS = ((p.Set.MODE, "mode"), (p.Set.UID, "uid"), (p.Set.GID, "gid"))
_NO_ATTR = bytes(p.ATTR.size)
_NO_ENTRY_OUT = bytes(p.ENTRY_BYTES)


class Request(NamedTuple):
    """One request. ``body`` lies in the buffer it was read into.

    Attributes:
        unique: its number; with :data:`.protocol.UNIQUE_RESEND` if it was sent before.
        thread: the thread that asks, by its number in this process's PID namespace; 0 if it has
            no number there.
    """

    opcode: int
    unique: int
    inode: int
    body: memoryview
    uid: int
    gid: int
    thread: int

    @property
    def caller(self) -> Caller:
        """The file system uid and gid of the process that asks (credentials(7))."""
        return Caller(self.uid, self.gid)

    @property
    def first_unique(self) -> int:
        """The number under which the kernel first sent the request."""
        return self.unique & ~p.UNIQUE_RESEND


# --- requests; each function raises struct.error for a malformed one ------------------------------


def decode(frame: memoryview) -> Request:
    """Split a frame. Raises struct.error if it is not a whole request."""
    if len(frame) < p.IN_HEADER.size:
        raise struct.error(f"a request of {len(frame)} bytes has no header")
    length, opcode, unique, inode, uid, gid, thread, *_ = p.IN_HEADER.unpack_from(frame)
    if length != len(frame):
        raise struct.error(f"a request of {len(frame)} bytes says it has {length}")
    return Request(opcode, unique, inode, frame[p.IN_HEADER.size :], uid, gid, thread)


def name_in(body: memoryview | bytes) -> str:
    """A NUL-terminated name."""
    name, end, _ = bytes(body).partition(b"\0")
    if not (name and end) or b"/" in name:
        raise struct.error("a name expected")
    return os.fsdecode(name)


class InitIn(NamedTuple):
    """The kernel's offer; ``flags`` are those of :class:`.protocol.Init`."""

    major: int
    max_readahead_bytes: int
    flags: int


def init_in(body: memoryview) -> InitIn:
    """INIT."""
    major, _minor, max_readahead_bytes, flags = p.INIT_IN.unpack_from(body)
    if flags & p.Init.INIT_EXT and len(body) >= p.INIT_IN.size + p.INIT_IN_FLAGS2.size:
        (flags2,) = p.INIT_IN_FLAGS2.unpack_from(body, p.INIT_IN.size)
        flags |= flags2 << 32
    return InitIn(major, max_readahead_bytes, flags)


def interrupt_in(body: memoryview) -> int:
    """INTERRUPT: the number of the request whose program got a signal."""
    (unique,) = p.INTERRUPT_IN.unpack_from(body)
    return int(unique)


def forget_in(body: memoryview) -> int:
    """FORGET: the number of lookups."""
    (count,) = p.FORGET_IN.unpack_from(body)
    return int(count)


def batch_forget_in(body: memoryview) -> list[tuple[int, int]]:
    """BATCH_FORGET: inodes and the number of lookups of each; the count is not trusted."""
    count, _ = p.BATCH_FORGET_IN.unpack_from(body)
    present = (len(body) - p.BATCH_FORGET_IN.size) // p.FORGET_ONE.size
    return [
        p.FORGET_ONE.unpack_from(body, p.BATCH_FORGET_IN.size + index * p.FORGET_ONE.size)
        for index in range(min(count, present))
    ]


class SetattrIn(NamedTuple):
    """What SETATTR changes.

    Attributes:
        changes: those of mode, uid, gid and mtime_ns that are set.
        mtime_now: the modification time becomes the time of the call.
        size_bytes: the new length, or None to keep it.
    """

    changes: dict[str, int]
    mtime_now: bool
    size_bytes: int | None


def setattr_in(body: memoryview) -> SetattrIn:
    """SETATTR."""
    fields = p.SETATTR_IN.unpack_from(body)
    valid, size_bytes, mtime_s, mtime_ns = fields[0], fields[3], fields[6], fields[9]
    given = {"mode": stat.S_IMODE(fields[11]), "uid": fields[13], "gid": fields[14]}
    changes = {name: given[name] for flag, name in _SET_FIELDS if valid & flag}
    if valid & p.Set.MTIME:
        # Before 1970 the kernel sends a negative number of seconds as a large one.
        signed_s = mtime_s - (mtime_s >> 63 << 64)
        changes["mtime_ns"] = signed_s * 10**9 + mtime_ns
    mtime_now = bool(valid & p.Set.MTIME_NOW)
    return SetattrIn(changes, mtime_now, size_bytes if valid & p.Set.SIZE else None)


class NewIn(NamedTuple):
    """What MKDIR, MKNOD or CREATE makes. ``mode`` comes without the bits of the umask."""

    name: str
    mode: int


def mkdir_in(body: memoryview) -> NewIn:
    """MKDIR; ``mode`` has permission bits only."""
    mode, _ = p.MKDIR_IN.unpack_from(body)
    return NewIn(name_in(body[p.MKDIR_IN.size :]), stat.S_IMODE(mode))


def mknod_in(body: memoryview) -> NewIn:
    """MKNOD; ``mode`` has the type bits, too."""
    mode, *_ = p.MKNOD_IN.unpack_from(body)
    return NewIn(name_in(body[p.MKNOD_IN.size :]), mode)


def create_in(body: memoryview) -> tuple[NewIn, int]:
    """CREATE: the file, and the flags of open(2)."""
    flags, mode, *_ = p.CREATE_IN.unpack_from(body)
    return NewIn(name_in(body[p.CREATE_IN.size :]), mode), flags


def symlink_in(body: memoryview) -> tuple[str, bytes]:
    """SYMLINK: the name and the target."""
    name, end, target = bytes(body).partition(b"\0")
    if not (end and target.endswith(b"\0")):
        raise struct.error("a name and a target expected")
    return name_in(name + end), target[:-1]


class RenameIn(NamedTuple):
    """RENAME or RENAME2; ``flags`` are those of renameat2(2)."""

    name: str
    new_parent: int
    new_name: str
    flags: int


def rename_in(body: memoryview) -> RenameIn:
    """RENAME."""
    (new_parent,) = p.RENAME_IN.unpack_from(body)
    name, new_name = _two_names(body[p.RENAME_IN.size :])
    return RenameIn(name, new_parent, new_name, 0)


def rename2_in(body: memoryview) -> RenameIn:
    """RENAME2."""
    new_parent, flags, _ = p.RENAME2_IN.unpack_from(body)
    name, new_name = _two_names(body[p.RENAME2_IN.size :])
    return RenameIn(name, new_parent, new_name, flags)


def _two_names(body: memoryview) -> tuple[str, str]:
    first, _, rest = bytes(body).partition(b"\0")
    return name_in(first + b"\0"), name_in(rest)


def open_in(body: memoryview) -> int:
    """OPEN: the flags of open(2)."""
    flags, _ = p.OPEN_IN.unpack_from(body)
    return int(flags)


def handle_in(body: memoryview) -> int:
    """RELEASE, FLUSH, FSYNC, RELEASEDIR: the handle, which all of them begin with."""
    (handle,) = p.HANDLE_IN.unpack_from(body)
    return int(handle)


def read_in(body: memoryview) -> tuple[int, int, int]:
    """READ, READDIR, READDIRPLUS: handle, offset, and size within what was negotiated."""
    handle, offset, size, _ = p.READ_IN.unpack_from(body)
    return handle, offset, min(size, MAX_REQUEST_BYTES)


def write_in(body: memoryview) -> tuple[int, int, memoryview]:
    """WRITE: handle, offset and data, which is never empty: write(2) of nothing sends none."""
    handle, offset, size, *_ = p.WRITE_IN.unpack_from(body)
    data = body[p.WRITE_IN.size :]
    if len(data) != size or not size:
        raise struct.error(f"WRITE of {size} bytes carries {len(data)}")
    return handle, offset, data


# --- answers --------------------------------------------------------------------------------------


def init_out(max_readahead_bytes: int, agreed: int) -> bytes:
    """INIT. ``agreed``: flags of :class:`.protocol.Init`."""
    return p.INIT_OUT.pack(
        p.MAJOR,
        p.MINOR,
        max_readahead_bytes,
        agreed & 0xFFFFFFFF,
        MAX_BACKGROUND,
        _CONGESTION_THRESHOLD,
        MAX_REQUEST_BYTES,
        1,  # time granularity, ns
        MAX_REQUEST_BYTES // _PAGE_BYTES,
        0,
        agreed >> 32,
        1 if agreed & p.Init.PASSTHROUGH else 0,
    )


def entry_out(entry: Entry) -> bytes:
    """LOOKUP and operations that make a name: the inode that the name leads to."""
    attributes, ttl_s, attributes_ttl_s = entry
    seconds, attributes_s = int(ttl_s), int(attributes_ttl_s)
    head = p.ENTRY_OUT.pack(
        attributes.inode,
        0,
        seconds,
        attributes_s,
        int((ttl_s - seconds) * 1e9),
        int((attributes_ttl_s - attributes_s) * 1e9),
    )
    return head + _attr(attributes)


def absent_entry_out(ttl_s: float) -> bytes:
    """LOOKUP: the name does not exist, which the kernel remembers (inode 0)."""
    seconds = int(ttl_s)
    return p.ENTRY_OUT.pack(0, 0, seconds, 0, int((ttl_s - seconds) * 1e9), 0) + _NO_ATTR


def attr_out(entry: Entry) -> bytes:
    """GETATTR and SETATTR."""
    seconds = int(entry.attributes_ttl_s)
    head = p.ATTR_OUT.pack(seconds, int((entry.attributes_ttl_s - seconds) * 1e9), 0)
    return head + _attr(entry.attributes)


def _attr(attributes: Attributes) -> bytes:
    seconds, nanoseconds = divmod(attributes.mtime_ns, 10**9)
    seconds &= _UINT64_MAX  # two's complement, as the kernel reads it
    return p.ATTR.pack(
        attributes.inode,
        attributes.size_bytes,
        -(-attributes.size_bytes // 512),
        seconds,
        seconds,
        seconds,
        nanoseconds,
        nanoseconds,
        nanoseconds,
        attributes.mode,
        attributes.nlink,
        attributes.uid,
        attributes.gid,
        0,
        BLOCK_BYTES,
        0,
    )


def open_out(handle: int, flags: int, backing_id: int | None = None) -> bytes:
    """OPEN, OPENDIR, CREATE.

    Args:
        flags: of :class:`.protocol.Open`.
        backing_id: of the file that the kernel reads instead, with ``PASSTHROUGH``.
    """
    return p.OPEN_OUT.pack(handle, flags, backing_id or 0)


def write_out(size_bytes: int) -> bytes:
    """WRITE: how much was written."""
    return p.WRITE_OUT.pack(size_bytes, 0)


def statfs_out(now: Statistics) -> bytes:
    """STATFS."""
    return p.STATFS_OUT.pack(
        now.blocks,
        now.blocks_free,
        now.blocks_free,
        now.files + now.files_free,
        now.files_free,
        BLOCK_BYTES,
        now.name_max,
        BLOCK_BYTES,
        0,
    )


def add_dirent(
    reply: bytearray, inode: int | None, offset: int, name: bytes, type_mode: int
) -> None:
    """READDIR: one more directory entry. ``inode``: None if no number was given out yet."""
    reply += p.DIRENT.pack(inode or p.UNKNOWN_INO, offset, len(name), type_mode >> 12)
    reply += name
    reply += bytes(-len(reply) % 8)


def add_direntplus(
    reply: bytearray,
    entry: Entry | None,
    inode: int | None,
    offset: int,
    name: bytes,
    type_mode: int,
) -> None:
    """READDIRPLUS: one more directory entry.

    Args:
        entry: what the name leads to. With None the kernel makes no inode of it, and counts
            no lookup.
        inode: shown if there is no entry.
    """
    if entry is None:
        reply += _NO_ENTRY_OUT
    else:
        reply += entry_out(entry)
        inode = entry.attributes.inode
    add_dirent(reply, inode, offset, name, type_mode)


# --- notifications --------------------------------------------------------------------------------


def inval_entry_out(parent: int, name: bytes) -> bytes:
    """INVAL_ENTRY: a name of a directory is out of date."""
    return p.NOTIFY_INVAL_ENTRY_OUT.pack(parent, len(name), 0) + name + b"\0"


def inval_inode_out(inode: int, *, pages: bool) -> bytes:
    """INVAL_INODE: the attributes of an inode are out of date, and its cached pages if ``pages``.

    A negative offset spares the pages (fs/fuse/inode.c, fuse_reverse_inval_inode).
    """
    return p.NOTIFY_INVAL_INODE_OUT.pack(inode, 0 if pages else -1, 0)
