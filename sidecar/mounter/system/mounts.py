"""mount(2), umount2(2), and the mounts that /proc lists. Standard library only.

Nothing here touches a mount by path, because lstat(2) hangs, or fails with ENOTCONN, if its
server is gone: /proc/self/mountinfo is read, and mounts are detached lazily.
"""

from __future__ import annotations

import ctypes
import errno
import os
from typing import NamedTuple

from sidecar.errors import FuseDeviceMissing, MountFailed, NotRoot

FUSE_DEVICE = "/dev/fuse"
SUBTYPE = "mount-sidecar"
FSTYPE = f"fuse.{SUBTYPE}"
GUARD_SOURCE = "mount-sidecar-guard"

READAHEAD_KIB = 4096
"""Four of the largest requests, so that answers keep coming while one is copied."""

# include/uapi/linux/mount.h and fs.h
_MS_RDONLY = 1
_MS_NOSUID = 2
_MS_NODEV = 4
_MNT_FORCE = 1
_MNT_DETACH = 2
_UMOUNT_NOFOLLOW = 8

_libc = ctypes.CDLL(None, use_errno=True)


class Mount(NamedTuple):
    """One line of /proc/self/mountinfo, see proc_pid_mountinfo(5)."""

    path: str
    device: str
    fstype: str
    source: str


def check_host() -> None:
    """Check that this process can mount. Raises NotRoot, FuseDeviceMissing."""
    if os.geteuid() != 0:
        raise NotRoot(
            f"mounting needs root, and this process has uid {os.geteuid()}",
            "run the sidecar as root and privileged; the experiment needs neither",
        )
    try:
        os.close(os.open(FUSE_DEVICE, os.O_RDWR | os.O_CLOEXEC))
    except FileNotFoundError:
        raise FuseDeviceMissing(
            f"{FUSE_DEVICE} does not exist",
            "load the kernel module `fuse` on the node, and mount the device into the container",
        ) from None
    except OSError as error:
        raise FuseDeviceMissing(
            f"{FUSE_DEVICE} cannot be opened: {os.strerror(error.errno or errno.EIO)}",
            "the container must be privileged (the device cgroup refuses it otherwise)",
        ) from None


def mount_fuse(
    descriptor: int, path: str, source: str, *, read_only: bool, max_read_bytes: int
) -> None:
    """Mount a connection (an open /dev/fuse) at ``path``. Raises MountFailed.

    Every user may use the mount (``allow_other``). The kernel checks permissions, by the modes
    that the file system reports (``default_permissions``).

    Args:
        descriptor: of the open /dev/fuse.
        source: what /proc/mounts shows as the mounted device.
        max_read_bytes: size of the largest READ.
    """
    options = (
        f"fd={descriptor},rootmode=40000,user_id=0,group_id=0,"
        f"allow_other,default_permissions,max_read={max_read_bytes}"
    )
    flags = _MS_NOSUID | _MS_NODEV | (_MS_RDONLY if read_only else 0)
    result = _libc.mount(
        source.encode(), os.fsencode(path), FSTYPE.encode(), flags, options.encode()
    )
    if result != 0:
        reason = os.strerror(ctypes.get_errno())
        raise MountFailed(
            f"cannot mount at `{path}`: {reason}",
            f"is {FUSE_DEVICE} the kernel's, and the container privileged?",
        )


def raise_readahead(path: str) -> bool:
    """Raise the kernel's readahead of a mount above the default, which INIT can only lower.

    False if sysfs is read-only.
    """
    for mount in mounts_at(path)[-1:]:
        try:
            with open(f"/sys/class/bdi/{mount.device}/read_ahead_kb", "w") as file:
                file.write(f"{READAHEAD_KIB}\n")
        except OSError:
            return False
    return True


def unmount(path: str) -> bool:
    """Detach the topmost mount at ``path``, also if it is in use; False if there is none.

    A FUSE connection is aborted (MNT_FORCE): requests in flight fail at once, even if another
    process still holds the descriptor. Raises MountFailed.
    """
    if _libc.umount2(os.fsencode(path), _MNT_FORCE | _MNT_DETACH | _UMOUNT_NOFOLLOW) == 0:
        return True
    code = ctypes.get_errno()
    if code in (errno.EINVAL, errno.ENOENT):
        return False
    raise MountFailed(f"cannot unmount `{path}`: {os.strerror(code)}")


def mounted(process: str = "self") -> list[Mount]:
    """Every mount of a process's mount namespace, in mount order.

    Raises:
        OSError: the process does not exist.
    """
    with open(f"/proc/{process}/mountinfo", "rb") as file:
        return [_parse(line.decode("utf-8", "surrogateescape")) for line in file]


def mounts_at(path: str) -> list[Mount]:
    """The mounts stacked at exactly ``path``, the lowest first."""
    path = os.path.normpath(path)
    return [mount for mount in mounted() if mount.path == path]


def guard(path: str) -> None:
    """Mount an empty, read-only tmpfs of mode 0 where a bucket will be mounted.

    While no bucket is mounted there, what a program writes would be lost, and a missing mount
    would look like an empty data set. With the guard writing gives EROFS, even to root, and
    listing gives EACCES to everybody but root. :func:`clear` removes it, as the kubelet needs
    before it can delete the directory. Raises MountFailed.
    """
    result = _libc.mount(
        GUARD_SOURCE.encode(),
        os.fsencode(path),
        b"tmpfs",
        _MS_RDONLY | _MS_NOSUID | _MS_NODEV,
        b"mode=000,size=4k,nr_inodes=1",
    )
    if result != 0:
        reason = os.strerror(ctypes.get_errno())
        raise MountFailed(f"cannot guard the mountpoint `{path}`: {reason}")


def is_ours(mount: Mount) -> bool:
    """Whether it is a bucket mount or a guard of this product."""
    return mount.fstype == FSTYPE or is_guard(mount)


def is_guard(mount: Mount) -> bool:
    """Whether it is a guard."""
    return mount.fstype == "tmpfs" and mount.source == GUARD_SOURCE


def clear(path: str, *, keep_guard: bool = False) -> int:
    """Detach the mounts of this product at ``path``, dead or alive; how many.

    Mounts of others on top of them are left alone. Raises MountFailed.

    Args:
        keep_guard: leave the guard in place.
    """
    count = 0
    while True:
        top = mounts_at(path)[-1:]
        if not top or not is_ours(top[0]) or (keep_guard and is_guard(top[0])):
            return count
        if not unmount(path):
            return count
        count += 1


def _parse(line: str) -> Mount:
    fields, _, rest = line.partition(" - ")
    head = fields.split(" ")
    fstype, source, *_options = rest.split(" ")
    return Mount(_unescape(head[4]), head[2], fstype, _unescape(source))


def _unescape(text: str) -> str:
    """Undo the kernel's octal escapes of space, tab, newline and backslash."""
    if "\\" not in text:
        return text
    parts = text.split("\\")
    return parts[0] + "".join(chr(int(part[:3], 8)) + part[3:] for part in parts[1:])
