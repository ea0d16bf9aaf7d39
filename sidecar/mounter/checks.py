"""What "ready means verified" checks by path, in a process that may hang.

Standard library only. Used for every kind of volume: a hostPath, a claim, a mounted bucket.
"""

from __future__ import annotations

import errno
import os
import secrets
from pathlib import Path

from sidecar.errors import PathMissing, PathNotReadable, PathNotWritable

_PROBE_PREFIX = ".mount-sidecar-probe-"


def check_directory(path: str, *, write: bool) -> None:
    """A directory exists and can be listed; with ``write`` a file can be made and removed.

    Raises PathMissing, PathNotReadable, PathNotWritable.
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
        probe = os.path.join(path, _PROBE_PREFIX + secrets.token_hex(8))
        try:
            os.close(os.open(probe, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600))
            os.unlink(probe)
        except OSError as error:
            raise PathNotWritable(
                f"`{path}` cannot be written: {_reason(error)}",
                "declare it `readOnly: true`, or make it writable",
            ) from None


def make_run_directory(root: str, path: str, uid: int, gid: int) -> None:
    """Create the run's outputs directory below the volume; what exists is kept as it is.

    New directories belong to ``uid`` and ``gid``. Raises PathNotWritable.
    """
    try:
        missing = []
        current = Path(path)
        while not current.is_dir() and current != Path(root):
            missing.append(current)
            current = current.parent
        for directory in reversed(missing):
            directory.mkdir(exist_ok=True)
            if (os.geteuid(), os.getegid()) != (uid, gid):
                _give(directory, uid, gid)
    except FileExistsError as error:
        raise PathNotWritable(
            f"the run's outputs directory `{path}` cannot be made: `{error.filename}` is a file",
            "remove it, or give the run another path",
        ) from None
    except OSError as error:
        raise PathNotWritable(
            f"the run's outputs directory `{path}` cannot be made: {_reason(error)}",
            "check what the outputs volume's credentials or permissions allow",
        ) from None


def _give(directory: Path, uid: int, gid: int) -> None:
    try:
        os.chown(directory, uid, gid)
    except OSError as error:
        # A bucket's directories belong to the spec's owner already, and an NFS export with
        # root_squash decides by itself.
        if error.errno not in (errno.EOPNOTSUPP, errno.EPERM, errno.ENOSYS):
            raise


def _reason(error: OSError) -> str:
    return os.strerror(error.errno or errno.EIO)
