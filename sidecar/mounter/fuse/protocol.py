"""The FUSE kernel interface: numbers and layouts.

Source: the kernel's include/uapi/linux/fuse.h (protocol 7.45). All structures are little-endian
here, as all machines that this product is built for.
"""

from __future__ import annotations

import struct
from enum import IntEnum, IntFlag

MAJOR = 7
MINOR = 41
"""The minor version that is spoken. The kernel adapts to one lower than its own."""

ROOT_ID = 1
UNIQUE_RESEND = 1 << 63
"""Set in ``unique`` of a request that is sent again after FUSE_NOTIFY_RESEND."""
UNKNOWN_INO = 0xFFFFFFFF


class Opcode(IntEnum):
    """The kernel's requests."""

    LOOKUP = 1
    FORGET = 2
    GETATTR = 3
    SETATTR = 4
    READLINK = 5
    SYMLINK = 6
    MKNOD = 8
    MKDIR = 9
    UNLINK = 10
    RMDIR = 11
    RENAME = 12
    LINK = 13
    OPEN = 14
    READ = 15
    WRITE = 16
    STATFS = 17
    RELEASE = 18
    FSYNC = 20
    SETXATTR = 21
    GETXATTR = 22
    LISTXATTR = 23
    REMOVEXATTR = 24
    FLUSH = 25
    INIT = 26
    OPENDIR = 27
    READDIR = 28
    RELEASEDIR = 29
    FSYNCDIR = 30
    GETLK = 31
    SETLK = 32
    SETLKW = 33
    ACCESS = 34
    CREATE = 35
    INTERRUPT = 36
    BMAP = 37
    DESTROY = 38
    IOCTL = 39
    POLL = 40
    NOTIFY_REPLY = 41
    BATCH_FORGET = 42
    FALLOCATE = 43
    READDIRPLUS = 44
    RENAME2 = 45
    LSEEK = 46
    COPY_FILE_RANGE = 47
    SETUPMAPPING = 48
    REMOVEMAPPING = 49
    SYNCFS = 50
    TMPFILE = 51
    STATX = 52
    COPY_FILE_RANGE_64 = 53


class Init(IntFlag):
    """Flags of INIT that are used; those from 1 << 32 on travel in ``flags2``."""

    ASYNC_READ = 1 << 0
    ATOMIC_O_TRUNC = 1 << 3
    BIG_WRITES = 1 << 5
    DO_READDIRPLUS = 1 << 13
    READDIRPLUS_AUTO = 1 << 14
    ASYNC_DIO = 1 << 15
    PARALLEL_DIROPS = 1 << 18
    MAX_PAGES = 1 << 22
    INIT_EXT = 1 << 30
    PASSTHROUGH = 1 << 37
    HAS_RESEND = 1 << 39


class Open(IntFlag):
    """Flags of an answer to OPEN."""

    DIRECT_IO = 1 << 0
    KEEP_CACHE = 1 << 1
    CACHE_DIR = 1 << 3
    NOFLUSH = 1 << 5
    PASSTHROUGH = 1 << 7


class Set(IntFlag):
    """Which fields of a SETATTR are set."""

    MODE = 1 << 0
    UID = 1 << 1
    GID = 1 << 2
    SIZE = 1 << 3
    MTIME = 1 << 5
    FH = 1 << 6
    MTIME_NOW = 1 << 8


class Notify(IntEnum):
    """Messages that the kernel did not ask for; ``unique`` is 0, and the code is the error."""

    INVAL_INODE = 2
    INVAL_ENTRY = 3
    STORE = 4
    RESEND = 7


# ioctl(2) on the /dev/fuse descriptor
BACKING_OPEN = 0x4010E501
BACKING_CLOSE = 0x4004E502

IN_HEADER = struct.Struct("<IIQQIIIHH")  # len opcode unique nodeid uid gid pid extlen padding
OUT_HEADER = struct.Struct("<IiQ")  # len error unique
ATTR = struct.Struct("<6Q10I")  # ino size blocks times nsecs mode nlink uid gid rdev blksize flags
ENTRY_OUT = struct.Struct("<4Q2I")  # nodeid generation entry_valid attr_valid nsecs; attr follows
ATTR_OUT = struct.Struct("<QII")  # attr_valid nsec dummy; attr follows
OPEN_OUT = struct.Struct("<QIi")  # fh open_flags backing_id
INIT_IN = struct.Struct("<IIII")  # major minor max_readahead flags; flags2 follows since 7.36
INIT_IN_FLAGS2 = struct.Struct("<I")
INIT_OUT = struct.Struct("<IIIIHHIIHHII24x")
SETATTR_IN = struct.Struct("<IIQQQQQQ8I")
MKDIR_IN = struct.Struct("<II")
MKNOD_IN = struct.Struct("<IIII")
RENAME_IN = struct.Struct("<Q")
RENAME2_IN = struct.Struct("<QII")
OPEN_IN = struct.Struct("<II")
CREATE_IN = struct.Struct("<IIII")
READ_IN = struct.Struct("<QQII")  # fh offset size flags; the rest is not used
WRITE_IN = struct.Struct("<QQIIQII")
WRITE_OUT = struct.Struct("<II")
HANDLE_IN = struct.Struct("<Q")  # RELEASE, FLUSH, FSYNC and RELEASEDIR begin with it
STATFS_OUT = struct.Struct("<5Q4I24x")
FORGET_IN = struct.Struct("<Q")
BATCH_FORGET_IN = struct.Struct("<II")
FORGET_ONE = struct.Struct("<QQ")
INTERRUPT_IN = struct.Struct("<Q")
DIRENT = struct.Struct("<QQII")  # ino off namelen type; the name follows, padded to 8
NOTIFY_INVAL_INODE_OUT = struct.Struct("<Qqq")
NOTIFY_INVAL_ENTRY_OUT = struct.Struct("<QII")
NOTIFY_STORE_OUT = struct.Struct("<QQII")  # nodeid offset size padding; the content follows
BACKING_MAP = struct.Struct("<iIQ")

ENTRY_BYTES = ENTRY_OUT.size + ATTR.size


def dirent_bytes(name_length: int, *, plus: bool) -> int:
    """The space that one directory entry takes in a reply."""
    size = DIRENT.size + name_length
    if plus:
        size += ENTRY_BYTES
    return (size + 7) & ~7
