"""Helpers of the tests: expect an errno, run a program, run as another user, drop pages."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

NOBODY = 65534


@contextmanager
def fails_with(code: int) -> Iterator[None]:
    """The block must raise an OSError with this errno."""
    got = "success"
    try:
        yield
    except OSError as error:
        got = errno.errorcode[error.errno or 0]
    assert got == errno.errorcode[code]


def run(*command: str | Path, cwd: Path | None = None) -> str:
    """Run a program; its output. Fails with its standard error."""
    done = subprocess.run(
        [str(part) for part in command], cwd=cwd, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, f"{command}: {done.stderr}"
    return done.stdout


def file_system(path: Path) -> str:
    """The type of the file system at a path: ext4, tmpfs, fuse, ..."""
    return run("findmnt", "--noheadings", "--output", "FSTYPE", "--target", path).strip()


class User(NamedTuple):
    """The user and groups of a program."""

    uid: int
    gid: int
    groups: tuple[int, ...] = ()

    def with_groups(self, *groups: int) -> User:
        """The same user with other supplementary groups."""
        return self._replace(groups=groups)


# Imports come first: afterwards, the user may not have access to the interpreter's folder.
_AS_USER = """\
import os, shutil, stat, subprocess, sys
os.chdir(sys.argv[2])
uid, gid, umask, *groups = map(int, sys.argv[3:])
os.umask(umask)
os.setgroups(groups); os.setgid(gid); os.setuid(uid)
try:
    exec(sys.argv[1])
except OSError as error:
    sys.exit(error.errno)
"""


def as_user(statement: str, directory: Path, user: User, *, umask: int = 0o022) -> int:
    """Run Python statements in ``directory`` as a user; the errno that they raise, else 0.

    They must use relative names: the user may have no access to the directories above.
    """
    numbers = [str(number) for number in (user.uid, user.gid, umask, *user.groups)]
    command = [sys.executable, "-I", "-c", _AS_USER, statement, str(directory), *numbers]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert not done.stderr, done.stderr
    return done.returncode


def as_nobody(statement: str, directory: Path) -> int:
    """:func:`as_user` with uid 65534."""
    return as_user(statement, directory, User(NOBODY, NOBODY))


def forget_pages(path: Path) -> None:
    """Drop the kernel's pages of a file, so that the next read asks the file system."""
    fd = os.open(path, os.O_RDONLY)
    try:
        os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
    finally:
        os.close(fd)


def write(path: Path, data: bytes) -> Path:
    """Write and close a file, and drop the kernel's pages of it."""
    path.write_bytes(data)
    forget_pages(path)
    return path


@contextmanager
def opened(path: Path | str, flags: int, mode: int = 0o666) -> Iterator[int]:
    """open(2), and close(2) at the end."""
    fd = os.open(path, flags, mode)
    try:
        yield fd
    finally:
        os.close(fd)
