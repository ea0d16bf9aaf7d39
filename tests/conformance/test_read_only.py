"""A read-only volume: every change is EROFS, and reading works."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.conformance.programs import fails_with

CHANGES: dict[str, Callable[[Path], object]] = {
    "create": lambda root: os.open(root / "new", os.O_WRONLY | os.O_CREAT),
    "create_to_read": lambda root: os.open(root / "new", os.O_RDONLY | os.O_CREAT),
    "open_to_write": lambda root: os.open(root / "file", os.O_WRONLY),
    "open_to_append": lambda root: os.open(root / "file", os.O_RDWR | os.O_APPEND),
    "open_to_truncate": lambda root: os.open(root / "file", os.O_RDONLY | os.O_TRUNC),
    "truncate": lambda root: os.truncate(root / "file", 0),
    "unlink": lambda root: os.unlink(root / "file"),
    "mkdir": lambda root: os.mkdir(root / "new"),
    "rmdir": lambda root: os.rmdir(root / "empty"),
    "rename": lambda root: os.rename(root / "file", root / "new"),
    "rename_directory": lambda root: os.rename(root / "directory", root / "new"),
    "chmod": lambda root: os.chmod(root / "file", 0o777),
    "chown": lambda root: os.chown(root / "file", 1, 1),
    "utime": lambda root: os.utime(root / "file"),
    "symlink": lambda root: os.symlink("file", root / "new"),
    "link": lambda root: os.link(root / "file", root / "new"),
    "mkfifo": lambda root: os.mkfifo(root / "new"),
    "setxattr": lambda root: os.setxattr(root / "file", "user.x", b""),
}


@pytest.mark.parametrize("change", CHANGES)
def test_a_change(read_only_directory: Path, change: str) -> None:
    before = sorted(os.walk(read_only_directory))
    with fails_with(errno.EROFS):
        CHANGES[change](read_only_directory)
    assert sorted(os.walk(read_only_directory)) == before
    assert (read_only_directory / "file").read_text() == "content"


def test_reading(read_only_directory: Path) -> None:
    assert sorted(os.listdir(read_only_directory)) == ["directory", "empty", "file"]
    assert os.listdir(read_only_directory / "empty") == []
    assert (read_only_directory / "directory" / "inner").read_text() == "more"
    assert not os.access(read_only_directory / "file", os.W_OK)
    assert os.statvfs(read_only_directory).f_flag & os.ST_RDONLY
