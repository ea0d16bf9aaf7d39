"""open(2) and its flags."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import mmap
import os
import shutil
import socket
import subprocess
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from tests.conformance.programs import fails_with, opened, write

BLOCK = 4096
FS_IOC_GETFLAGS = 0x80086601  # linux/fs.h
SLEEP = Path("/bin/sleep")


def test_o_creat_makes_a_file_or_opens_it(directory: Path) -> None:
    path = directory / "file"
    with opened(path, os.O_WRONLY | os.O_CREAT) as fd:
        os.write(fd, b"content")
    with opened(path, os.O_RDONLY | os.O_CREAT) as fd:
        assert os.read(fd, 100) == b"content"


def test_an_empty_new_file_exists(directory: Path) -> None:
    with opened(directory / "file", os.O_RDONLY | os.O_CREAT):
        assert (directory / "file").exists()
        assert os.listdir(directory) == ["file"]
    assert (directory / "file").stat().st_size == 0


def test_a_new_file_may_be_written_by_its_maker_whatever_its_mode(directory: Path) -> None:
    with opened(directory / "file", os.O_WRONLY | os.O_CREAT, 0o400) as fd:
        os.write(fd, b"content")
    assert (directory / "file").read_bytes() == b"content"


def test_o_excl_refuses_an_existing_name(directory: Path) -> None:
    write(directory / "file", b"content")
    (directory / "inner").mkdir()
    for name in ("file", "inner"):
        with fails_with(errno.EEXIST):
            os.open(directory / name, os.O_WRONLY | os.O_CREAT | os.O_EXCL)
    assert (directory / "file").read_bytes() == b"content"


def test_of_many_that_create_exclusively_one_wins(directory: Path) -> None:
    def create(_: int) -> bool:
        try:
            fd = os.open(directory / "file", os.O_WRONLY | os.O_CREAT | os.O_EXCL)
        except FileExistsError:
            return False
        os.close(fd)
        return True

    with ThreadPoolExecutor(8) as threads:
        assert sum(threads.map(create, range(32))) == 1


def test_o_trunc_empties(directory: Path) -> None:
    path = write(directory / "file", b"content")
    with opened(path, os.O_WRONLY | os.O_TRUNC) as fd:
        assert os.fstat(fd).st_size == path.stat().st_size == 0
    assert path.read_bytes() == b""


def test_o_append_writes_at_the_end_wherever_the_offset_is(directory: Path) -> None:
    path = write(directory / "file", b"one")
    with opened(path, os.O_RDWR | os.O_APPEND) as fd:
        assert os.read(fd, 3) == b"one"
        os.lseek(fd, 0, os.SEEK_SET)
        os.write(fd, b"two")
        os.lseek(fd, 0, os.SEEK_SET)
        os.write(fd, b"three")
    assert path.read_bytes() == b"onetwothree"


def test_reading_what_was_opened_for_writing(directory: Path) -> None:
    path = write(directory / "file", b"content")
    with opened(path, os.O_WRONLY) as fd, fails_with(errno.EBADF):
        os.read(fd, 1)
    with opened(path, os.O_RDONLY) as fd, fails_with(errno.EBADF):
        os.write(fd, b"x")


def test_o_direct_reads(directory: Path) -> None:
    path = write(directory / "file", bytes(range(256)) * 64)
    with opened(path, os.O_RDONLY | os.O_DIRECT) as fd, mmap.mmap(-1, 2 * BLOCK) as buffer:
        assert os.preadv(fd, [buffer], BLOCK) == 2 * BLOCK
        assert buffer[:] == bytes(range(256)) * 32
        assert os.preadv(fd, [buffer], 3 * BLOCK) == BLOCK
        assert os.preadv(fd, [buffer], 4 * BLOCK) == 0


def test_o_direct_writes(directory: Path) -> None:
    path = directory / "file"
    with (
        opened(path, os.O_WRONLY | os.O_CREAT | os.O_DIRECT) as fd,
        mmap.mmap(-1, BLOCK) as buffer,
    ):
        buffer[:] = b"x" * BLOCK
        assert os.pwritev(fd, [buffer], BLOCK) == BLOCK
    assert path.read_bytes() == bytes(BLOCK) + b"x" * BLOCK


def test_o_sync_and_o_dsync_write(directory: Path) -> None:
    path = directory / "file"
    for flag in (os.O_SYNC, os.O_DSYNC):
        with opened(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | flag) as fd:
            os.write(fd, b"one")
            os.write(fd, b"two")
        assert path.read_bytes() == b"onetwo"


def test_o_path_and_o_nofollow(directory: Path) -> None:
    path = write(directory / "file", b"content")
    with opened(path, os.O_PATH) as fd:
        assert os.fstat(fd).st_size == 7
    with opened(path, os.O_RDONLY | os.O_NOFOLLOW) as fd:
        assert os.read(fd, 7) == b"content"


def test_o_tmpfile_gives_a_file_without_a_name(directory: Path) -> None:
    with opened(directory, os.O_RDWR | os.O_TMPFILE) as fd:
        os.write(fd, b"content")
    assert os.listdir(directory) == []


def test_what_is_missing(directory: Path) -> None:
    for flags in (os.O_RDONLY, os.O_WRONLY, os.O_RDWR | os.O_TRUNC):
        with fails_with(errno.ENOENT):
            os.open(directory / "missing", flags)
    with fails_with(errno.ENOENT):
        os.open(directory / "missing" / "file", os.O_WRONLY | os.O_CREAT)


def test_a_directory_opened_as_a_file(directory: Path) -> None:
    for flags in (os.O_WRONLY, os.O_RDWR, os.O_WRONLY | os.O_CREAT):
        with fails_with(errno.EISDIR):
            os.open(directory, flags)
    with opened(directory, os.O_RDONLY) as fd, fails_with(errno.EISDIR):
        os.read(fd, 1)


def test_a_file_used_as_a_directory(directory: Path) -> None:
    path = write(directory / "file", b"")
    with fails_with(errno.ENOTDIR):
        os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    with fails_with(errno.ENOTDIR):
        os.open(path / "inner", os.O_WRONLY | os.O_CREAT)
    with fails_with(errno.ENOTDIR):
        os.listdir(path)
    with fails_with(errno.ENOTDIR):
        os.stat(path / "inner")


def test_many_files_are_open_at_once(directory: Path) -> None:
    paths = [write(directory / f"{number:03}", b"%03d" % number) for number in range(300)]
    descriptors = [os.open(path, os.O_RDONLY) for path in paths]
    try:
        assert [os.read(fd, 10) for fd in descriptors] == [b"%03d" % n for n in range(300)]
    finally:
        for fd in descriptors:
            os.close(fd)


def test_a_symbolic_link(directory: Path) -> None:
    write(directory / "file", b"content")
    os.symlink("file", directory / "link")
    assert os.readlink(directory / "link") == "file"
    assert (directory / "link").read_bytes() == b"content"


def test_a_hard_link(directory: Path) -> None:
    write(directory / "file", b"content")
    os.link(directory / "file", directory / "link")
    assert (directory / "link").read_bytes() == b"content"


def test_a_fifo(directory: Path) -> None:
    os.mkfifo(directory / "fifo")
    assert (directory / "fifo").is_fifo()


def test_a_device(directory: Path) -> None:
    os.mknod(directory / "null", 0o20666, os.makedev(1, 3))
    assert (directory / "null").is_char_device()


def test_a_socket(directory: Path) -> None:
    with opened(directory, os.O_PATH) as fd, socket.socket(socket.AF_UNIX) as listener:
        listener.bind(f"/proc/self/fd/{fd}/socket")  # sun_path has 108 bytes.
    assert (directory / "socket").is_socket()


def test_attributes_of_other_file_systems(directory: Path) -> None:
    path = write(directory / "file", b"content")
    with opened(path, os.O_RDONLY) as fd:
        fcntl.ioctl(fd, FS_IOC_GETFLAGS, bytes(8))


def test_a_program_that_runs_is_not_written(directory: Path) -> None:
    with running(directory / "program") as path:
        for flags in (os.O_WRONLY, os.O_RDWR, os.O_RDWR | os.O_TRUNC):
            with fails_with(errno.ETXTBSY):
                os.open(path, flags)
        with fails_with(errno.ETXTBSY):
            os.truncate(path, 0)
        assert path.read_bytes() == SLEEP.read_bytes()


def test_a_program_that_runs_is_not_emptied_by_a_reader(directory: Path) -> None:
    with running(directory / "program") as path:
        with contextlib.suppress(OSError):  # ETXTBSY, unless the program died of the change
            os.close(os.open(path, os.O_RDONLY | os.O_TRUNC))
        assert path.read_bytes() == SLEEP.read_bytes()


def test_what_is_being_written_is_not_run(directory: Path) -> None:
    path = directory / "program"
    shutil.copy(SLEEP, path)
    with opened(path, os.O_WRONLY), fails_with(errno.ETXTBSY):
        subprocess.run([path, "0"], check=True)
    subprocess.run([path, "0"], check=True)


@contextlib.contextmanager
def running(path: Path) -> Iterator[Path]:
    """A running program whose file is on the file system under test."""
    shutil.copy(SLEEP, path)
    with subprocess.Popen([path, "60"]) as process:
        try:
            yield path
        finally:
            process.kill()


def test_mknod_of_a_regular_file(directory: Path) -> None:
    os.mknod(directory / "file", 0o100600)
    assert (directory / "file").stat().st_size == 0


def test_what_is_refused_leaves_nothing(directory: Path) -> None:
    for make in (
        lambda: os.symlink("x", directory / "x"),
        lambda: os.link(directory, directory / "x"),
        lambda: os.mkfifo(directory / "x"),
        lambda: os.open(directory / "x", os.O_WRONLY),
    ):
        try:
            make()
        except OSError:
            assert not os.path.lexists(directory / "x")
        else:
            (directory / "x").unlink()
    assert os.listdir(directory) == []


def test_extended_attributes(directory: Path) -> None:
    path = write(directory / "file", b"")
    os.setxattr(path, "user.colour", b"red")
    assert os.getxattr(path, "user.colour") == b"red"
    assert os.listxattr(path) == ["user.colour"]
    os.removexattr(path, "user.colour")


def test_listing_extended_attributes(directory: Path) -> None:
    assert os.listxattr(write(directory / "file", b"")) == []
