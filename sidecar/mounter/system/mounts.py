"""mount(2), umount2(2), and the mounts that /proc lists. Standard library only.

Nothing here asks the server of a mount, which may hang or be gone: /proc/self/mountinfo is read,
and mounts are detached lazily. Everything is mounted and detached through descriptors, never by a
path that somebody else may lead elsewhere.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import os
from collections.abc import Iterator
from typing import NamedTuple

from sidecar.errors import FuseDeviceMissing, MountFailed, NotRoot
from sidecar.mounter.system.directories import (
    WALK,
    PathBlocked,
    make_directory,
    open_child,
    open_directory,
    path_of,
)

FUSE_DEVICE = "/dev/fuse"
_FUSE_HINT = f"is {FUSE_DEVICE} the kernel's, and the container privileged?"
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

_libc = ctypes.CDLL(None, use_errno=True)


class Mount(NamedTuple):
    """One line of /proc/self/mountinfo, see proc_pid_mountinfo(5).

    Attributes:
        root: the directory or file of the mounted file system that is at ``path``.
    """

    id: int
    root: str
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


def mounted(process: str = "self") -> list[Mount]:
    """Every mount of a process's mount namespace, in mount order.

    Raises:
        OSError: the process does not exist.
    """
    with open(f"/proc/{process}/mountinfo", "rb") as file:
        return [_parse(line.decode("utf-8", "surrogateescape")) for line in file]


def is_ours(mount: Mount) -> bool:
    """Whether a mount is a bucket or a guard of this product."""
    return mount.fstype == FSTYPE or is_guard(mount)


def is_guard(mount: Mount) -> bool:
    """Whether a mount is a guard."""
    return mount.fstype in (FSTYPE, "tmpfs") and mount.source == GUARD_SOURCE


class Mountpoint:
    """The place of a path, and the mounts that are stacked on it.

    Descriptors hold it once it is prepared, so it stays the same wherever the path leads.

    Args:
        path: absolute and normalised.
    """

    def __init__(self, path: str) -> None:
        self.path = path
        self._name = os.path.basename(path)
        self._parent: int | None = None
        self._directory: int | None = None
        self._made: list[tuple[int, str]] = []

    def prepare(self) -> int:
        """Make the directory if it is missing, and detach this product's mounts; their number.

        Raises:
            PathBlocked: a link is on the way, or something else that is no directory.
            OSError: it cannot be made.
            MountFailed: a mount cannot be detached.
        """
        self._parent = open_directory(
            os.path.dirname(self.path), make=True, on_made=self._note_made, walk_only=True
        )
        count = self.clear(keep_guard=True)
        if make_directory(self._parent, self._name, self.path):
            self._note_made(self._parent, self._name)
        self._directory = open_child(self._parent, self._name, self.path, WALK)
        return count

    def _note_made(self, parent: int, name: str) -> None:
        self._made.append((os.dup(parent), name))

    def guard(self, *, is_looked_at: bool = False) -> None:
        """Mount a FUSE connection without a server where a bucket will be mounted.

        While no bucket is mounted there, a program's writes would be lost, and a missing mount
        would look like an empty data set. With the guard every call gives ENOTCONN, root's too. A
        guard of an earlier start is as good. :meth:`clear` removes it, which the kubelet needs
        before it can delete the directory. Raises MountFailed.

        Args:
            is_looked_at: libfuse needs stat(2) to work, so the guard is an empty, read-only tmpfs
                of mode 0. Writing gives EROFS, and listing EACCES to everybody but root.
        """
        with self._top() as (mount, _):
            if mount is not None and is_guard(mount):
                return
        if is_looked_at:
            options = "mode=000,size=4k,nr_inodes=1"
            reason = self._mount(GUARD_SOURCE, "tmpfs", _MS_RDONLY, options)
        else:
            connection = open_connection()
            reason = self._mount(GUARD_SOURCE, FSTYPE, _MS_RDONLY, _fuse_options(connection))
            os.close(connection)
        if reason:
            what = f"cannot guard the mountpoint `{self.path}`: {reason}"
            raise MountFailed(what, "" if is_looked_at else _FUSE_HINT)

    def mount_fuse(
        self, connection: int, source: str, *, read_only: bool, max_read_bytes: int
    ) -> None:
        """Mount a connection (an open /dev/fuse). Raises MountFailed.

        Every user may use the mount (``allow_other``). The kernel checks permissions, by the modes
        that the file system reports (``default_permissions``).

        Args:
            connection: descriptor of the open /dev/fuse.
            source: what /proc/mounts shows as the mounted device.
            max_read_bytes: size of the largest READ.
        """
        options = f"{_fuse_options(connection)},max_read={max_read_bytes}"
        if reason := self._mount(source, FSTYPE, _MS_RDONLY if read_only else 0, options):
            raise MountFailed(f"cannot mount at `{self.path}`: {reason}", _FUSE_HINT)

    def _mount(self, source: str, fstype: str, flags: int, options: str) -> str | None:
        """Mount on top of what is there; why that failed, or None."""
        assert self._directory is not None
        result = _libc.mount(
            source.encode(),
            path_of(self._directory).encode(),
            fstype.encode(),
            flags | _MS_NOSUID | _MS_NODEV,
            options.encode(),
        )
        return os.strerror(ctypes.get_errno()) if result else None

    def raise_readahead(self) -> bool:
        """Raise the kernel's readahead of the mount above the default, which INIT can only lower.

        False if sysfs is read-only.
        """
        with self._top() as (mount, _):
            if mount is None:
                return True
            try:
                with open(f"/sys/class/bdi/{mount.device}/read_ahead_kb", "w") as file:
                    file.write(f"{READAHEAD_KIB}\n")
            except OSError:
                return False
            return True

    def clear(self, *, keep_guard: bool = False) -> int:
        """Detach this product's mounts, dead or alive; their number.

        Mounts of others on top of them are left alone. Raises MountFailed.

        Args:
            keep_guard: leave the guard in place.
        """
        count = 0
        while True:
            with self._top() as (mount, descriptor):
                if mount is None or not is_ours(mount) or (keep_guard and is_guard(mount)):
                    return count
                self._detach(descriptor)
            count += 1

    def unmount(self) -> bool:
        """Detach the topmost mount, whoever made it; False if there is none. Raises MountFailed."""
        with self._top() as (mount, descriptor):
            if mount is not None:
                self._detach(descriptor)
            return mount is not None

    def _detach(self, descriptor: int) -> None:
        """Detach a mount by a descriptor of its root, also if it is in use.

        A FUSE connection is aborted (MNT_FORCE): requests in flight fail at once, even if another
        process still holds the descriptor.
        """
        if _libc.umount2(path_of(descriptor).encode(), _MNT_FORCE | _MNT_DETACH) == 0:
            return
        code = ctypes.get_errno()
        if code != errno.EINVAL:  # that is: somebody else was faster
            raise MountFailed(f"cannot unmount `{self.path}`: {os.strerror(code)}")

    @contextlib.contextmanager
    def _top(self) -> Iterator[tuple[Mount | None, int]]:
        """The topmost mount, and a descriptor of its root; None if nothing is mounted here.

        Walking to the root of a mount sends its server no request.
        """
        with contextlib.ExitStack() as stack:
            try:
                parent = self._parent
                if parent is None:
                    parent = open_directory(os.path.dirname(self.path), walk_only=True)
                    stack.callback(os.close, parent)
                root = open_child(parent, self._name, self.path, WALK)
            except (FileNotFoundError, PathBlocked):
                yield None, -1
                return
            except OSError as error:
                raise MountFailed(
                    f"cannot look at the mountpoint `{self.path}`: {error.strerror}"
                ) from None
            stack.callback(os.close, root)
            number = _mount_id(root)
            # The number of the directory around it: nothing is mounted here.
            found = [] if number == _mount_id(parent) else mounted()
            yield next((mount for mount in found if mount.id == number), None), root

    def remove_directories(self) -> None:
        """Remove the directories that :meth:`prepare` made, if they are empty."""
        for parent, name in reversed(self._made):
            with contextlib.suppress(OSError):
                os.rmdir(name, dir_fd=parent)
        self.close()

    def close(self) -> None:
        """Close the descriptors. What is mounted stays."""
        held = [self._parent, self._directory, *(parent for parent, _ in self._made)]
        self._parent = self._directory = None
        self._made = []
        for descriptor in held:
            if descriptor is not None:
                os.close(descriptor)


def clear(path: str) -> int:
    """:meth:`Mountpoint.clear` by a path. Raises MountFailed."""
    return Mountpoint(path).clear()


def unmount(path: str) -> bool:
    """:meth:`Mountpoint.unmount` by a path. Raises MountFailed."""
    return Mountpoint(path).unmount()


def open_connection() -> int:
    """A new connection to the kernel's FUSE. Raises MountFailed."""
    try:
        return os.open(FUSE_DEVICE, os.O_RDWR | os.O_CLOEXEC)
    except OSError as error:
        raise MountFailed(f"cannot open {FUSE_DEVICE}: {error.strerror}") from None


def _fuse_options(connection: int) -> str:
    return f"fd={connection},rootmode=40000,user_id=0,group_id=0,allow_other,default_permissions"


def _mount_id(descriptor: int) -> int:
    """The id of the mount that a descriptor is in (proc_pid_fdinfo(5))."""
    with open(f"/proc/self/fdinfo/{descriptor}") as file:
        return next(int(line.split()[1]) for line in file if line.startswith("mnt_id:"))


def _parse(line: str) -> Mount:
    fields, _, rest = line.partition(" - ")
    head = fields.split(" ")
    fstype, source, *_options = rest.split(" ")
    return Mount(
        int(head[0]), _unescape(head[3]), _unescape(head[4]), head[2], fstype, _unescape(source)
    )


def _unescape(text: str) -> str:
    """Undo the kernel's octal escapes of space, tab, newline and backslash."""
    if "\\" not in text:
        return text
    parts = text.split("\\")
    return parts[0] + "".join(chr(int(part[:3], 8)) + part[3:] for part in parts[1:])
