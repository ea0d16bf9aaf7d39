"""write(2) and its variants: reads return what was written, before and after close."""

from __future__ import annotations

import errno
import mmap
import os
import random
import sqlite3
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from sidecar.units import MIB
from tests.conformance import syscalls
from tests.conformance.programs import fails_with, file_system, forget_pages, opened, write


def content(path: Path) -> bytes:
    """The content from the file system, not from the kernel's pages."""
    forget_pages(path)
    return path.read_bytes()


def test_sequentially_a_large_file(directory: Path) -> None:
    data = random.Random(3).randbytes(20 * MIB + 1)  # more than two parts of an upload
    path = directory / "file"
    with opened(path, os.O_WRONLY | os.O_CREAT) as fd:
        view = memoryview(data)
        while view:
            view = view[os.write(fd, view[:300_000]) :]
    assert content(path) == data


def test_over_what_is_there(directory: Path) -> None:
    path = write(directory / "file", b"a much longer content")
    path.write_bytes(b"short")
    assert content(path) == b"short"


def test_part_of_what_is_there(directory: Path) -> None:
    path = write(directory / "file", b"0123456789")
    with opened(path, os.O_RDWR) as fd:
        assert os.read(fd, 2) == b"01"
        os.write(fd, b"ab")
        assert os.pread(fd, 10, 0) == b"01ab456789"
    assert content(path) == b"01ab456789"


def test_append_again_and_again(directory: Path) -> None:
    path = directory / "log"
    for number in range(5):
        with path.open("a") as file:
            file.write(f"line {number}\n")
    assert content(path) == b"".join(b"line %d\n" % number for number in range(5))


def test_at_random(directory: Path) -> None:
    choose = random.Random(5)
    expected = bytearray(MIB)
    path = write(directory / "file", bytes(expected))
    with opened(path, os.O_RDWR) as fd:
        for _ in range(100):
            offset, data = choose.randrange(MIB - 5_000), choose.randbytes(5_000)
            os.pwrite(fd, data, offset)
            expected[offset : offset + 5_000] = data
            look = choose.randrange(MIB)
            assert os.pread(fd, 3_000, look) == expected[look : look + 3_000]
    assert content(path) == expected


def test_from_several_buffers(directory: Path) -> None:
    path = directory / "file"
    with opened(path, os.O_WRONLY | os.O_CREAT) as fd:
        assert os.writev(fd, [b"one", b"", b"two"]) == 6
        assert os.pwritev(fd, [b"X", b"Y"], 1) == 2
    assert content(path) == b"oXYtwo"


def test_nothing(directory: Path) -> None:
    path = write(directory / "file", b"content")
    with opened(path, os.O_WRONLY) as fd:
        assert os.write(fd, b"") == 0
    assert content(path) == b"content"


def test_beyond_the_end_leaves_a_hole_of_zeros(directory: Path) -> None:
    path = directory / "file"
    with opened(path, os.O_RDWR | os.O_CREAT) as fd:
        os.pwrite(fd, b"end", 3 * MIB)
        assert os.fstat(fd).st_size == 3 * MIB + 3
        assert os.pread(fd, 100, MIB) == bytes(100)
    assert content(path) == bytes(3 * MIB) + b"end"


def test_truncate_by_path(directory: Path) -> None:
    path = write(directory / "file", b"0123456789")
    os.truncate(path, 4)
    assert content(path) == b"0123"
    os.truncate(path, 8)
    assert content(path) == b"0123\0\0\0\0"
    os.truncate(path, 0)
    assert content(path) == b""


def test_truncate_by_descriptor(directory: Path) -> None:
    path = write(directory / "file", b"0123456789")
    with opened(path, os.O_RDWR) as fd:
        os.ftruncate(fd, 4)
        os.ftruncate(fd, 6)
        assert os.pread(fd, 10, 0) == b"0123\0\0"
        assert path.stat().st_size == 6
    assert content(path) == b"0123\0\0"


def test_truncate_by_path_what_is_being_written(directory: Path) -> None:
    path = directory / "file"
    with opened(path, os.O_RDWR | os.O_CREAT) as fd:
        os.write(fd, b"0123456789")
        os.truncate(path, 3)
        assert os.fstat(fd).st_size == 3
        os.write(fd, b"x")  # at its own offset, behind a hole
    assert content(path) == b"012" + bytes(7) + b"x"


def test_truncate_refused(directory: Path) -> None:
    path = write(directory / "file", b"content")
    with opened(path, os.O_RDONLY) as fd, fails_with(errno.EINVAL):
        os.ftruncate(fd, 0)
    with fails_with(errno.EISDIR):
        os.truncate(directory, 0)
    with fails_with(errno.ENOENT):
        os.truncate(directory / "missing", 0)
    with fails_with(errno.EINVAL):
        os.truncate(path, -1)
    assert content(path) == b"content"


def test_truncate_beyond_the_largest_file(directory: Path) -> None:
    """1 EiB is too large for a bucket; tmpfs, XFS and Btrfs allow 8 EiB, the range of off_t."""
    path = write(directory / "file", b"content")
    refused = 0
    try:
        os.truncate(path, 1 << 60)
    except OSError as error:
        refused = error.errno or 0
    if refused or file_system(directory).startswith("fuse"):
        assert refused == errno.EFBIG
        assert content(path) == b"content"


def test_two_writers_see_each_other(directory: Path) -> None:
    path = write(directory / "file", b"----------")
    with opened(path, os.O_RDWR) as one, opened(path, os.O_RDWR) as other:
        os.pwrite(one, b"1", 1)
        os.pwrite(other, b"2", 2)
        assert os.pread(one, 4, 0) == os.pread(other, 4, 0) == b"-12-"
    assert content(path) == b"-12-------"


def test_two_that_append_lose_nothing(directory: Path) -> None:
    path = write(directory / "file", b"")

    def append(letter: bytes) -> None:
        with opened(path, os.O_WRONLY | os.O_APPEND) as fd:
            for _ in range(50):
                os.write(fd, letter * 10)

    with ThreadPoolExecutor(2) as threads:
        list(threads.map(append, [b"a", b"b"]))
    lines = content(path)
    assert len(lines) == 1_000
    assert {lines[start : start + 10] for start in range(0, 1_000, 10)} == {b"a" * 10, b"b" * 10}


def test_a_reader_sees_a_writer_s_bytes(directory: Path) -> None:
    path = write(directory / "file", b"old")
    with opened(path, os.O_RDONLY) as reader, opened(path, os.O_WRONLY) as writer:
        assert os.read(reader, 10) == b"old"
        os.pwrite(writer, b"newer", 0)
        assert os.pread(reader, 10, 0) == b"newer"
        os.fsync(writer)
        assert os.pread(reader, 10, 0) == b"newer"
    assert content(path) == b"newer"


def test_a_reader_goes_on_after_the_writer_closed(directory: Path) -> None:
    path = write(directory / "file", b"old content")
    with opened(path, os.O_RDONLY) as reader:
        assert os.pread(reader, 3, 0) == b"old"
        with opened(path, os.O_WRONLY) as writer:
            os.pwrite(writer, b"new", 0)
        os.posix_fadvise(reader, 0, 0, os.POSIX_FADV_DONTNEED)
        assert os.pread(reader, 20, 0) == b"new content"


def test_a_reader_of_a_file_that_is_emptied(directory: Path) -> None:
    path = write(directory / "file", b"old content")
    with opened(path, os.O_RDONLY) as reader:
        path.write_bytes(b"new")
        os.posix_fadvise(reader, 0, 0, os.POSIX_FADV_DONTNEED)
        assert os.pread(reader, 20, 0) == b"new"


def test_after_unlink(directory: Path) -> None:
    path = write(directory / "file", b"old content")
    with opened(path, os.O_RDWR) as fd:
        path.unlink()
        os.pwrite(fd, b"new", 0)
        os.fsync(fd)
        assert os.pread(fd, 20, 0) == b"new content"
        assert os.fstat(fd).st_size == 11
    assert not path.exists()
    assert os.listdir(directory) == []


def test_a_new_file_after_unlink_and_a_second_one_of_its_name(directory: Path) -> None:
    path = directory / "file"
    with opened(path, os.O_RDWR | os.O_CREAT) as fd:
        os.write(fd, b"first")
        path.unlink()
        path.write_bytes(b"second")
        os.write(fd, b"!")
        assert os.pread(fd, 10, 0) == b"first!"
    assert content(path) == b"second"


def test_fsync_and_its_kin(directory: Path) -> None:
    path = directory / "file"
    with opened(path, os.O_WRONLY | os.O_CREAT) as fd:
        for number, synchronise in enumerate((os.fsync, os.fdatasync, _range, _whole)):
            os.write(fd, b"%d" % number)
            synchronise(fd)
            assert path.stat().st_size == number + 1
    assert content(path) == b"0123"


def _range(fd: int) -> None:
    syscalls.sync_file_range(fd, 0, 0)


def _whole(fd: int) -> None:
    os.sync()


def test_fsync_of_a_directory(directory: Path) -> None:
    with opened(directory, os.O_RDONLY | os.O_DIRECTORY) as fd:
        os.fsync(fd)


def test_close_of_a_duplicate_saves_what_was_written_so_far(directory: Path) -> None:
    path = directory / "file"
    with opened(path, os.O_WRONLY | os.O_CREAT) as fd:
        os.write(fd, b"one")
        os.close(os.dup(fd))
        assert content(path) == b"one"
        os.write(fd, b"two")
    assert content(path) == b"onetwo"


def test_a_descriptor_inherited_by_a_child(directory: Path) -> None:
    path = directory / "file"
    with opened(path, os.O_WRONLY | os.O_CREAT) as fd:
        os.write(fd, b"parent ")
        pid = os.posix_spawn(
            "/bin/echo", ["echo", "child"], {}, file_actions=[(os.POSIX_SPAWN_DUP2, fd, 1)]
        )
        assert os.waitpid(pid, 0)[1] == 0
        os.write(fd, b"parent again")
    assert content(path) == b"parent child\nparent again"


def test_through_a_shared_map(directory: Path) -> None:
    path = write(directory / "file", bytes(10_000))
    with opened(path, os.O_RDWR) as fd, mmap.mmap(fd, 0) as mapped:
        mapped[5_000:5_003] = b"map"
        mapped.flush()
        assert os.pread(fd, 3, 5_000) == b"map"
    assert content(path) == bytes(5_000) + b"map" + bytes(4_997)


def test_through_a_shared_map_whose_file_was_closed(directory: Path) -> None:
    path = write(directory / "file", bytes(10_000))
    with opened(path, os.O_RDWR) as fd:
        mapped = mmap.mmap(fd, 0)
    mapped[0:3] = b"map"
    mapped.close()
    assert content(path)[:3] == b"map"


def test_posix_fallocate_extends(directory: Path) -> None:
    path = directory / "file"
    with opened(path, os.O_RDWR | os.O_CREAT) as fd:
        os.posix_fallocate(fd, 0, 100_000)
    assert content(path) == bytes(100_000)


def test_fallocate(directory: Path) -> None:
    with opened(directory / "file", os.O_RDWR | os.O_CREAT) as fd:
        syscalls.fallocate(fd, 0, 0, 100_000)
        assert os.fstat(fd).st_size == 100_000


def test_a_database(directory: Path) -> None:
    for _ in range(2):
        with sqlite3.connect(directory / "base.db") as base:
            base.execute("create table if not exists t (x integer)")
            base.executemany("insert into t values (?)", [(number,) for number in range(500)])
        base.close()
    base = sqlite3.connect(directory / "base.db")
    assert base.execute("select count(*), sum(x) from t").fetchone() == (1_000, 249_500)
    base.close()
    assert os.listdir(directory) == ["base.db"]
