"""What an attacker puts in the place of a file, each made by one function."""

from __future__ import annotations

import os
import socket
import stat
from collections.abc import Callable
from pathlib import Path
from typing import Final

NOBODY: Final = 65534

Plant = Callable[[Path, Path], None]
"""Puts something at the first path; the second is a file elsewhere that nobody may change."""


def fifo(path: Path, outside: Path) -> None:
    """Opening it waits for the other end."""
    os.mkfifo(path)


def link(path: Path, outside: Path) -> None:
    """A symbolic link to the file elsewhere."""
    path.symlink_to(outside)


def hard_link(path: Path, outside: Path) -> None:
    """A second name of the file elsewhere."""
    path.hardlink_to(outside)


def unix_socket(path: Path, outside: Path) -> None:
    """A socket that nobody listens to."""
    here = os.getcwd()
    os.chdir(path.parent)  # a socket's path has at most 107 bytes
    try:
        with socket.socket(socket.AF_UNIX) as made:
            made.bind(path.name)
    finally:
        os.chdir(here)


def device(path: Path, outside: Path) -> None:
    """``/dev/full``: writing fails, and reading never ends."""
    os.mknod(path, stat.S_IFCHR | 0o666, os.makedev(1, 7))


def directory(path: Path, outside: Path) -> None:
    """A directory that is not empty."""
    (path / "inner").mkdir(parents=True)


def of_another_user(path: Path, outside: Path) -> None:
    """A file that somebody else has made."""
    path.write_bytes(b"not ours")
    os.chown(path, NOBODY, NOBODY)


def writable_by_others(path: Path, outside: Path) -> None:
    """A file of ours that anybody may change."""
    path.write_bytes(b"x")
    path.chmod(0o666)


NOT_OURS: Final = (
    fifo,
    link,
    hard_link,
    unix_socket,
    device,
    of_another_user,
    writable_by_others,
)
"""Things that are not a file of this user alone, and can be deleted as one."""
