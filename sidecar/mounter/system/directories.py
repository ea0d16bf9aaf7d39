"""Directories and files by descriptor, so that no link is followed. Standard library only.

Experiments, earlier runs and other pods can write beside the sidecar's files, and the sidecar is
root. So a path is walked name by name, each opened in the directory before it with O_NOFOLLOW. A
link is an error wherever it is, and a link that takes a directory's place meanwhile is not met. The
result is a descriptor, and the path is not used again.

openat2(2) with RESOLVE_NO_SYMLINKS is not used: it makes no directories, so the same walk would be
needed beside it.
"""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
import stat
from collections.abc import Callable
from pathlib import Path

from sidecar.errors import StateUnusable

WALK = os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
"""Flags for a directory to go on from. Opening one sends no request to the server of a mount."""
_LIST = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_PIN = os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC
_DIRECTORY_MODE = 0o755
_MOST_TRIES = 10
"""How often to try to open a file that others make and remove meanwhile."""
_KINDS = {
    stat.S_IFLNK: "a symbolic link",
    stat.S_IFDIR: "a directory",
    stat.S_IFREG: "a file",
    stat.S_IFIFO: "a FIFO",
    stat.S_IFSOCK: "a socket",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
}

OnMade = Callable[[int, str], None]
"""Called with the descriptor of the directory in which one was made, and its name."""


class PathBlocked(NotADirectoryError):
    """Something else has the place of a directory or a file of the sidecar.

    ``strerror`` names it, as the end of a sentence, and ``filename`` is its path.

    Attributes:
        kind: its kind, as messages call it.
        is_link: whether it is a symbolic link.
        advice: what to do.
    """

    def __init__(self, path: str, mode: int) -> None:
        what = _KINDS.get(stat.S_IFMT(mode), "something else")
        self.kind = what
        self.advice = "remove it"
        self.is_link = stat.S_ISLNK(mode)
        if self.is_link:
            what += ", and no path of the sidecar may have one"
            self.advice = "remove it, or name the directory that it leads to"
        super().__init__(errno.ENOTDIR, f"`{path}` is {what}", path)


def open_directory(
    path: str | Path,
    *,
    make: bool = False,
    on_made: OnMade | None = None,
    mode: int = _DIRECTORY_MODE,
    walk_only: bool = False,
) -> int:
    """A descriptor of the directory ``path``, reached without a link.

    Args:
        make: make the directory, and those that are missing above it.
        on_made: see :data:`OnMade`.
        mode: for new directories, before the umask.
        walk_only: it need not be readable; the descriptor cannot list it.

    Raises:
        PathBlocked: a link, or something else that is no directory, is in the way.
        OSError: another reason, with ``filename``.
    """
    names = list(filter(None, os.path.abspath(path).split("/")))
    last = WALK if walk_only else _LIST
    directory, current = os.open("/", WALK if names else last), ""
    try:
        for left, name in zip(range(len(names) - 1, -1, -1), names, strict=True):
            current = f"{current}/{name}"
            flags = WALK if left else last
            if make:
                inner = make_child(directory, name, current, flags, mode=mode, on_made=on_made)
            else:
                inner = open_child(directory, name, current, flags)
            os.close(directory)
            directory = inner
    except BaseException:
        os.close(directory)
        raise
    return directory


def open_child(directory: int, name: str, path: str, flags: int = _LIST) -> int:
    """A descriptor of the directory ``name`` in another one. Errors as of :func:`open_directory`.

    Args:
        path: of the child, for messages.
        flags: of open(2), with O_DIRECTORY and O_NOFOLLOW.
    """
    try:
        return os.open(name, flags, dir_fd=directory)
    except NotADirectoryError as error:
        error.filename = path
        with contextlib.suppress(FileNotFoundError):  # somebody removed it meanwhile
            raise PathBlocked(path, os.lstat(name, dir_fd=directory).st_mode) from None
        raise
    except OSError as error:
        error.filename = path
        raise


def make_child(
    directory: int,
    name: str,
    path: str,
    flags: int = _LIST,
    *,
    mode: int = _DIRECTORY_MODE,
    on_made: OnMade | None = None,
) -> int:
    """:func:`open_child`, made if it is missing. Arguments as of :func:`open_directory`."""
    try:
        return open_child(directory, name, path, flags)
    except FileNotFoundError:
        if make_directory(directory, name, path, mode) and on_made is not None:
            on_made(directory, name)
        return open_child(directory, name, path, flags)


def make_directory(directory: int, name: str, path: str, mode: int = _DIRECTORY_MODE) -> bool:
    """mkdir(2) in a directory; False if the name is taken. Raises OSError."""
    try:
        os.mkdir(name, mode, dir_fd=directory)
    except FileExistsError:
        return False
    except OSError as error:
        error.filename = path
        raise
    return True


def open_file(directory: int, name: str, flags: int, mode: int = 0o600) -> int:
    """A descriptor of the regular file ``name`` in a directory; with O_CREAT made if missing.

    Nothing but a regular file is ever opened: a FIFO would wait, and a device may act.

    Raises:
            PathBlocked: something else has the name.
            OSError: any other reason.
    """
    flags |= os.O_CLOEXEC
    for _ in range(_MOST_TRIES):
        try:
            found = os.open(name, _PIN, dir_fd=directory)
        except FileNotFoundError:
            if not flags & os.O_CREAT:
                raise
            with contextlib.suppress(FileExistsError):  # somebody else made it meanwhile
                return os.open(name, flags | os.O_EXCL | os.O_NOFOLLOW, mode, dir_fd=directory)
            continue
        try:
            kind = os.fstat(found).st_mode
            if not stat.S_ISREG(kind):
                raise PathBlocked(name, kind)
            return os.open(path_of(found), flags & ~(os.O_CREAT | os.O_EXCL))
        finally:
            os.close(found)
    raise OSError(errno.EAGAIN, os.strerror(errno.EAGAIN), name)


def remove(directory: int, name: str) -> None:
    """Delete whatever has this name in a directory, also a directory with all its content.

    Nothing outside is touched. Raises OSError.
    """
    try:
        os.unlink(name, dir_fd=directory)
    except FileNotFoundError:
        return
    except IsADirectoryError:
        shutil.rmtree(name, dir_fd=directory)


def unusable(what: str, error: OSError, advice: str = "") -> StateUnusable:
    """The error, for people, that a directory cannot be prepared.

    Args:
        what: what could not be done.
        advice: used unless the error has its own.
    """
    if isinstance(error, PathBlocked):
        advice = error.advice
    return StateUnusable(f"{what}: {error.strerror}", advice)


def path_of(descriptor: int) -> str:
    """A path that leads to a descriptor's file, for calls that take no descriptors."""
    return f"/proc/self/fd/{descriptor}"


def pinned(path: str | Path) -> Path:
    """A path of a directory for libraries that take paths, made if missing; errors as above.

    The path leads to the same directory as long as this process lives, whatever happens to
    ``path``: the descriptor stays open.
    """
    return Path(path_of(open_directory(path, make=True)))
