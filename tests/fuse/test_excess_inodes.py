"""The kernel is asked to forget inodes, of which it keeps one for each name that was looked up."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from sidecar.mounter.system import mounts
from tests.support.waiting import wait_until

FILES, MOST = 3_000, 1_000


@pytest.fixture
def many(tmp_path: Path) -> Iterator[Path]:
    """A directory of FILES files on a mount that wants MOST inodes."""
    mountpoint = tmp_path / "m"
    mountpoint.mkdir()
    arguments = ["kernel", str(mountpoint), str(tmp_path / "state")]
    options = ["--files", str(FILES), "--most-inodes", str(MOST), "--ttl", "60", "--until-eof"]
    with subprocess.Popen(
        [sys.executable, "-m", "tests.support.serve", *arguments, *options],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    ) as process:
        try:
            assert process.stdout is not None
            assert process.stdout.readline() == b"serving\n"
            yield mountpoint / "many"
        finally:
            assert process.stdin is not None
            process.stdin.close()
            process.wait(60)
            mounts.clear(str(mountpoint))


def inodes(directory: Path) -> int:
    """How many the mount has."""
    found = os.statvfs(directory)
    return found.f_files - found.f_ffree


def test_inodes_that_nobody_uses_are_forgotten(many: Path) -> None:
    names = sorted(f"{number:05d}" for number in range(FILES))
    first = (many / names[0]).lstat().st_ino
    with (many / names[0]).open() as file:
        for name in names:
            assert (many / name).lstat().st_size == 5
        # A few hundred more are no reason to ask.
        wait_until(lambda: inodes(many) < MOST + 400, "the kernel forgets")
        assert os.fstat(file.fileno()).st_ino == first
        assert file.read() == names[0]
        assert (many / names[0]).lstat().st_ino == first
    assert [(many / name).read_text() for name in names[:9]] == names[:9]


def test_a_large_directory_gives_its_inodes_back(many: Path) -> None:
    """Its first names were given inodes before it showed how large it is."""
    assert len(os.listdir(many)) == FILES
    wait_until(lambda: inodes(many) <= MOST // 2, "the kernel forgets")
    before = inodes(many)
    assert {entry.name for entry in os.scandir(many)} == {f"{n:05d}" for n in range(FILES)}
    assert inodes(many) <= before  # it is known to be large by then
