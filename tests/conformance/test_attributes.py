"""stat(2), statvfs(3), and the calls that change attributes."""

from __future__ import annotations

import errno
import os
import stat
import time
from pathlib import Path

from sidecar.units import MIB
from tests.conformance import syscalls
from tests.conformance.programs import NOBODY, fails_with, opened, write

THE_PAST_NS = 1_000_000_000_123_456_789
THE_TICK_NS = 20_000_000
"""Granularity of a local file system's times: the kernel's timer tick, with a margin."""


def test_type_size_and_blocks_of_a_file(directory: Path) -> None:
    path = write(directory / "file", b"x" * 10_000)
    with opened(path, os.O_RDONLY) as fd:
        os.fsync(fd)  # a local file system counts blocks only then
    found = path.stat()
    assert stat.S_ISREG(found.st_mode)
    assert found.st_size == 10_000
    assert found.st_size <= found.st_blocks * 512 < found.st_size + 2 * found.st_blksize
    assert found.st_nlink == 1


def test_type_of_a_directory(directory: Path) -> None:
    (directory / "inner").mkdir()
    found = (directory / "inner").stat()
    assert stat.S_ISDIR(found.st_mode)
    assert found.st_nlink >= 2


def test_two_files_have_two_numbers(directory: Path) -> None:
    numbers = {write(directory / name, b"").stat().st_ino for name in "abc"}
    assert len(numbers) == 3


def test_the_number_is_the_same_while_a_file_is_open(directory: Path) -> None:
    path = directory / "file"
    with opened(path, os.O_RDWR | os.O_CREAT) as fd:
        number = os.fstat(fd).st_ino
        os.write(fd, b"one")
        os.fsync(fd)
        os.ftruncate(fd, 1)
        assert path.stat().st_ino == number
        path.rename(directory / "renamed")
        assert (directory / "renamed").stat().st_ino == number
        assert os.fstat(fd).st_ino == number


def test_the_number_in_a_listing_is_the_number_of_the_file(directory: Path) -> None:
    for name in "abc":
        write(directory / name, b"")
    with os.scandir(directory) as entries:
        listed = {entry.name: entry.inode() for entry in entries}
    assert listed == {path.name: path.stat().st_ino for path in directory.iterdir()}


def test_a_writer_s_size_is_seen_at_once_by_path_and_descriptor(directory: Path) -> None:
    path = directory / "file"
    with opened(path, os.O_WRONLY | os.O_CREAT) as fd:
        for size in (1, 2, 3):
            os.write(fd, b"x")
            assert os.fstat(fd).st_size == path.stat().st_size == size


def test_writing_moves_the_modification_time_and_reading_does_not(directory: Path) -> None:
    path = write(directory / "file", b"one")
    os.utime(path, ns=(THE_PAST_NS, THE_PAST_NS))
    path.read_bytes()
    assert path.stat().st_mtime_ns == THE_PAST_NS
    before = time.time_ns() - THE_TICK_NS
    with opened(path, os.O_WRONLY | os.O_APPEND) as fd:
        os.write(fd, b"two")
        assert os.fstat(fd).st_mtime_ns >= before
    assert path.stat().st_mtime_ns >= before


def test_a_new_name_moves_the_directory_s_modification_time(directory: Path) -> None:
    os.utime(directory, ns=(THE_PAST_NS, THE_PAST_NS))
    assert directory.stat().st_mtime_ns == THE_PAST_NS
    write(directory / "file", b"")
    assert directory.stat().st_mtime_ns > THE_PAST_NS


def test_a_modification_time_that_was_set_is_kept(directory: Path) -> None:
    path = write(directory / "file", b"content")
    os.utime(path, ns=(THE_PAST_NS, THE_PAST_NS))
    assert path.stat().st_mtime_ns == THE_PAST_NS
    path.rename(directory / "renamed")
    assert (directory / "renamed").stat().st_mtime_ns == THE_PAST_NS
    assert (directory / "renamed").read_bytes() == b"content"


def test_a_modification_time_set_while_writing_is_kept_after_close(directory: Path) -> None:
    path = directory / "file"
    with opened(path, os.O_WRONLY | os.O_CREAT) as fd:
        os.write(fd, b"content")
        os.utime(fd, ns=(THE_PAST_NS, THE_PAST_NS))
    assert path.stat().st_mtime_ns == THE_PAST_NS


def test_a_time_before_1970_is_kept(directory: Path) -> None:
    path = write(directory / "file", b"")
    os.utime(path, ns=(-5_000_000_000, -5_000_000_000))
    assert path.stat().st_mtime_ns == -5_000_000_000


def test_setting_the_access_time_leaves_the_modification_time(directory: Path) -> None:
    path = write(directory / "file", b"")
    os.utime(path, ns=(THE_PAST_NS, THE_PAST_NS))
    syscalls.set_access_time(path, 12345)
    assert path.stat().st_mtime_ns == THE_PAST_NS


def test_the_access_time_is_kept(directory: Path) -> None:
    path = write(directory / "file", b"")
    os.utime(path, (12345, 67890))
    assert path.stat().st_atime == 12345


def test_chmod_of_a_file_is_kept(directory: Path) -> None:
    path = write(directory / "file", b"content")
    for mode in (0o600, 0o755, 0o444):
        path.chmod(mode)
        assert stat.S_IMODE(path.stat().st_mode) == mode
    path.rename(directory / "renamed")
    assert stat.S_IMODE((directory / "renamed").stat().st_mode) == 0o444
    assert (directory / "renamed").read_bytes() == b"content"


def test_chmod_of_an_open_file_is_kept_after_close(directory: Path) -> None:
    path = directory / "file"
    with opened(path, os.O_WRONLY | os.O_CREAT) as fd:
        os.write(fd, b"content")
        os.fchmod(fd, 0o640)
    assert stat.S_IMODE(path.stat().st_mode) == 0o640


def test_writing_a_file_again_keeps_its_mode(directory: Path) -> None:
    path = write(directory / "file", b"one")
    path.chmod(0o600)
    path.write_bytes(b"two")
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


def test_the_mode_of_a_new_file_is_masked(directory: Path) -> None:
    before = os.umask(0o027)
    try:
        with opened(directory / "file", os.O_WRONLY | os.O_CREAT, 0o666):
            pass
    finally:
        os.umask(before)
    assert stat.S_IMODE((directory / "file").stat().st_mode) == 0o640


def test_the_mode_of_a_new_directory_is_kept(directory: Path) -> None:
    (directory / "inner").mkdir(0o700)
    assert stat.S_IMODE((directory / "inner").stat().st_mode) == 0o700


def test_chmod_of_a_directory(directory: Path) -> None:
    (directory / "inner").mkdir()
    (directory / "inner").chmod(0o700)
    assert stat.S_IMODE((directory / "inner").stat().st_mode) == 0o700


def test_chmod_of_a_directory_to_the_mode_it_has(directory: Path) -> None:
    directory.chmod(stat.S_IMODE(directory.stat().st_mode))


def test_chown_to_the_owner(directory: Path) -> None:
    path = write(directory / "file", b"")
    for one in (path, directory):
        found = one.stat()
        os.chown(one, found.st_uid, found.st_gid)
        os.chown(one, -1, found.st_gid)
        assert (one.stat().st_uid, one.stat().st_gid) == (found.st_uid, found.st_gid)


def test_chown_of_a_file_is_kept(directory: Path) -> None:
    path = write(directory / "file", b"content")
    os.chown(path, NOBODY, NOBODY)
    assert (path.stat().st_uid, path.stat().st_gid) == (NOBODY, NOBODY)
    assert path.read_bytes() == b"content"


def test_chown_of_a_directory(directory: Path) -> None:
    (directory / "inner").mkdir()
    os.chown(directory / "inner", NOBODY, NOBODY)
    assert (directory / "inner").stat().st_uid == NOBODY


def test_a_change_of_mode_moves_the_change_time_only(directory: Path) -> None:
    path = write(directory / "file", b"")
    os.utime(path, ns=(THE_PAST_NS, THE_PAST_NS))
    before = time.time_ns() - THE_TICK_NS
    path.chmod(0o600)
    assert path.stat().st_mtime_ns == THE_PAST_NS
    assert path.stat().st_ctime_ns >= before


def test_statvfs_is_plausible(directory: Path) -> None:
    found = os.statvfs(directory)
    assert found.f_frsize > 0
    assert found.f_blocks * found.f_frsize > MIB
    assert 0 < found.f_bavail <= found.f_bfree <= found.f_blocks
    assert 0 < found.f_ffree <= found.f_files
    assert found.f_namemax == 255


def test_attributes_of_what_does_not_exist(directory: Path) -> None:
    with fails_with(errno.ENOENT):
        (directory / "missing").chmod(0o600)
    with fails_with(errno.ENOENT):
        os.utime(directory / "missing")


def test_a_time_of_a_directory_is_set_again_after_its_names_changed(directory: Path) -> None:
    """As rsync does before and after it fills a directory."""
    inner = directory / "inner"
    inner.mkdir()
    stamp_ns = 1_300_000_000_123_456_789
    for name in ("a", "b"):
        os.utime(inner, ns=(stamp_ns, stamp_ns))
        assert inner.stat().st_mtime_ns == stamp_ns
        (inner / name).write_bytes(b"x")
    os.utime(inner, ns=(stamp_ns, stamp_ns))
    assert inner.stat().st_mtime_ns == stamp_ns
