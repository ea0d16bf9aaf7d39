"""Checks a volume by its path: a hostPath, a claim or a mounted bucket. Standard library only.

Called in a process of its own, since any call may hang.
"""

from __future__ import annotations

import errno
import os
import stat
from pathlib import Path

from sidecar.errors import PathMissing, PathNotReadable, PathNotWritable
from sidecar.mounter.system.directories import (
    WALK,
    PathBlocked,
    make_directory,
    open_child,
    open_directory,
)

_PROBE_PREFIX = ".mount-sidecar-probe-"
_PROBE_BYTES = 16
_WRITE_OF_OTHERS = stat.S_IWGRP | stat.S_IWOTH


def check_directory(path: str, *, write: bool, filled: bool = False) -> None:
    """Check that a directory can be listed and, with ``write``, that a file can be written.

    No link is followed, neither on the way nor in it.

    Args:
        filled: whether it must have content.

    Raises:
        PathMissing, PathNotReadable, PathNotWritable: a check failed.
    """
    directory = _open(path)
    try:
        with os.scandir(directory) as entries:
            is_empty = next(entries, None) is None
    except OSError as error:
        os.close(directory)
        raise _not_readable(path, error) from None
    try:
        if filled and is_empty:
            raise PathMissing(
                f"`{path}` is empty: the hostPath does not exist on this node, or nothing is "
                "mounted there",
                "mount it on the node, or put what is to be read there",
            )
        if write:
            _write_and_remove(directory)
    except OSError as error:
        raise PathNotWritable(
            f"`{path}` cannot be written: {_reason(error)}",
            "declare it `readOnly: true`, or make it writable",
        ) from None
    finally:
        os.close(directory)


def _open(path: str) -> int:
    """A descriptor of a volume's directory. Raises PathMissing, PathNotReadable."""
    try:
        return open_directory(path)
    except FileNotFoundError:
        raise PathMissing(
            f"`{path}` does not exist",
            "it must be mounted into the sidecar too, and a hostPath must exist on the node",
        ) from None
    except PathBlocked as blocked:
        if blocked.is_link:
            raise PathNotReadable(
                f"`{path}` is not used: {blocked.strerror}", blocked.advice
            ) from None
        raise PathMissing(f"`{path}` is not a directory", "only directories are mounted") from None
    except OSError as error:
        raise _not_readable(path, error) from None


def _not_readable(path: str, error: OSError) -> PathNotReadable:
    return PathNotReadable(
        f"`{path}` cannot be listed: {_reason(error)}", "check its owner and mode"
    )


def _write_and_remove(directory: int) -> None:
    """Make a file, write it, read it back, remove it. Raises OSError."""
    # Not by `secrets`, which would load OpenSSL into process 1.
    name = _PROBE_PREFIX + os.urandom(8).hex()
    content = os.urandom(_PROBE_BYTES)
    flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
    descriptor = os.open(name, flags, 0o600, dir_fd=directory)
    try:
        os.write(descriptor, content)
        os.fsync(descriptor)  # only here does NFS report a full disk
        if os.pread(descriptor, len(content), 0) != content:
            raise OSError(errno.EIO, os.strerror(errno.EIO))
    finally:
        try:
            os.unlink(name, dir_fd=directory)
        finally:
            os.close(descriptor)


def make_run_directory(root: str, path: str, uid: int, gid: int, mode: int) -> None:
    """Create the run's outputs directory ``path`` below the volume's ``root``.

    Directories that exist are left as they are. New ones belong to ``uid`` and ``gid``. The last
    one has ``mode``; those above it have no write permission for group and others. No link is
    followed: experiments write there, and this process is root.

    Raises:
        PathMissing, PathNotReadable: the volume's root is gone, or is no directory.
        PathNotWritable: it cannot be made, or a link or a file is in the way.
    """
    parent, current = _open(root), root
    umask = os.umask(0)
    try:
        parts = Path(path).relative_to(root).parts
        for left, name in zip(range(len(parts) - 1, -1, -1), parts, strict=True):
            current = os.path.join(current, name)
            wanted = mode & ~_WRITE_OF_OTHERS if left else mode
            inner = _open_or_make(parent, name, current, uid, gid, wanted)
            os.close(parent)
            parent = inner
    except PathBlocked as blocked:
        raise PathNotWritable(
            f"the run's outputs directory `{path}` cannot be made: {blocked.strerror}",
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


def _open_or_make(parent: int, name: str, path: str, uid: int, gid: int, mode: int) -> int:
    """A descriptor of the directory ``name`` in ``parent``, made if it does not exist."""
    try:
        return open_child(parent, name, path, WALK)
    except FileNotFoundError:
        pass
    if not make_directory(parent, name, path, mode):  # another run's sidecar was faster
        return open_child(parent, name, path, WALK)
    made = open_child(parent, name, path)
    try:
        if _is_new(made):
            _give(made, uid, gid, mode)
    except OSError as error:
        # An NFS export with root_squash chooses owner and mode itself; a process that is not
        # root gives nothing away.
        if error.errno not in (errno.EOPNOTSUPP, errno.EPERM, errno.ENOSYS):
            os.close(made)
            raise
    return made


def _is_new(made: int) -> bool:
    """Whether a directory can be the one that this process made a moment ago.

    Whoever may rename in the directory above can put another directory in its place, whose owner
    must not change. A directory that this process made belongs to it and is empty.
    """
    with os.scandir(made) as entries:
        return os.fstat(made).st_uid == os.geteuid() and next(entries, None) is None


def _give(made: int, uid: int, gid: int, mode: int) -> None:
    if (os.geteuid(), os.getegid()) != (uid, gid):
        os.fchown(made, uid, gid)
    # mkdir(2) ignores the set-group-ID bit; the directory above may hand its own down.
    now = stat.S_IMODE(os.fstat(made).st_mode)
    if now != mode | now & stat.S_ISGID:
        os.fchmod(made, mode)


def _reason(error: OSError) -> str:
    return os.strerror(error.errno or errno.EIO)
