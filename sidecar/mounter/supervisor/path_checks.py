"""Checks a volume by its path: a hostPath, a claim or a mounted bucket. Standard library only.

Called in a process of its own, since any of it may hang.
"""

from __future__ import annotations

import errno
import os
import stat
from pathlib import Path

from sidecar.errors import PathMissing, PathNotReadable, PathNotWritable

_PROBE_PREFIX = ".mount-sidecar-probe-"
_PROBE_BYTES = 16
_WALK = os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC
_WRITE_OF_OTHERS = stat.S_IWGRP | stat.S_IWOTH


def check_directory(path: str, *, write: bool) -> None:
    """Check that a directory can be listed and, with ``write``, that a file can be written.

    Raises:
        PathMissing, PathNotReadable, PathNotWritable: it cannot.
    """
    try:
        with os.scandir(path) as entries:
            next(entries, None)
    except FileNotFoundError:
        raise PathMissing(
            f"`{path}` does not exist",
            "it must be mounted into the sidecar too, and a hostPath must exist on the node",
        ) from None
    except NotADirectoryError:
        raise PathMissing(f"`{path}` is not a directory", "only directories are mounted") from None
    except OSError as error:
        raise PathNotReadable(
            f"`{path}` cannot be listed: {_reason(error)}", "check its owner and mode"
        ) from None
    if write:
        # Not of `secrets`, which would load OpenSSL into process 1.
        probe = os.path.join(path, _PROBE_PREFIX + os.urandom(8).hex())
        try:
            _write_and_remove(probe)
        except OSError as error:
            raise PathNotWritable(
                f"`{path}` cannot be written: {_reason(error)}",
                "declare it `readOnly: true`, or make it writable",
            ) from None


def _write_and_remove(path: str) -> None:
    """Make a file, write it, read it back, remove it. Raises OSError."""
    content = os.urandom(_PROBE_BYTES)
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    try:
        os.write(descriptor, content)
        os.fsync(descriptor)  # NFS reports only here that there is no space
        if os.pread(descriptor, len(content), 0) != content:
            raise OSError(errno.EIO, os.strerror(errno.EIO), path)
    finally:
        try:
            os.unlink(path)
        finally:
            os.close(descriptor)


def make_run_directory(root: str, path: str, uid: int, gid: int, mode: int) -> None:
    """Create the run's outputs directory ``path`` below the volume's ``root``.

    Directories that exist are left as they are. New ones belong to ``uid`` and ``gid``. The last
    one has ``mode``; those above it have no write permission for group and others. No link below
    ``root`` is followed: experiments write there, and this process is root.

    Raises:
        PathNotWritable: it cannot be made, or a link or a file is in the way.
    """
    umask = os.umask(0)
    name, current, parent = "", root, os.open(root, _WALK)
    try:
        parts = Path(path).relative_to(root).parts
        for left, name in zip(range(len(parts) - 1, -1, -1), parts, strict=True):
            current = os.path.join(current, name)
            wanted = mode & ~_WRITE_OF_OTHERS if left else mode
            inner = _open_or_make(parent, name, uid, gid, wanted)
            os.close(parent)
            parent = inner
    except NotADirectoryError:
        is_link = stat.S_ISLNK(os.lstat(name, dir_fd=parent).st_mode)
        raise PathNotWritable(
            f"the run's outputs directory `{path}` cannot be made: `{current}` is a "
            f"{'symbolic link' if is_link else 'file'}",
            "remove it, or give the run another path",
        ) from None
    except OSError as error:
        raise PathNotWritable(
            f"the run's outputs directory `{path}` cannot be made: {_reason(error)}",
            "check what the outputs volume's credentials or permissions allow",
        ) from None
    finally:
        os.close(parent)
        os.umask(umask)


def _open_or_make(parent: int, name: str, uid: int, gid: int, mode: int) -> int:
    """A descriptor of the directory ``name`` in ``parent``, made if it does not exist."""
    try:
        return os.open(name, _WALK | os.O_NOFOLLOW, dir_fd=parent)
    except FileNotFoundError:
        pass
    try:
        os.mkdir(name, mode, dir_fd=parent)
    except FileExistsError:  # another run's sidecar made it meanwhile
        return os.open(name, _WALK | os.O_NOFOLLOW, dir_fd=parent)
    made = os.open(name, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=parent)
    try:
        if (os.geteuid(), os.getegid()) != (uid, gid):
            os.fchown(made, uid, gid)
        # mkdir(2) ignores the set-group-ID bit; the directory above may hand its own down.
        now = stat.S_IMODE(os.fstat(made).st_mode)
        if now != mode | now & stat.S_ISGID:
            os.fchmod(made, mode)
    except OSError as error:
        # An NFS export with root_squash chooses owner and mode itself.
        if error.errno not in (errno.EOPNOTSUPP, errno.EPERM, errno.ENOSYS):
            os.close(made)
            raise
    return made


def _reason(error: OSError) -> str:
    return os.strerror(error.errno or errno.EIO)
