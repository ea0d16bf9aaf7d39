"""read(2) and its variants: every access pattern returns the file's bytes."""

from __future__ import annotations

import mmap
import os
import random
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from sidecar.units import MIB
from tests.conformance.programs import forget_pages, opened, write

CONTENT = random.Random(7).randbytes(5 * MIB + 12_345)


@pytest.fixture
def path(directory: Path) -> Path:
    return write(directory / "file", CONTENT)


def test_sequentially(path: Path) -> None:
    with opened(path, os.O_RDONLY) as fd:
        parts = []
        while part := os.read(fd, 100_000):
            parts.append(part)
    assert b"".join(parts) == CONTENT


def test_backwards(path: Path) -> None:
    with opened(path, os.O_RDONLY) as fd:
        for offset in reversed(range(0, len(CONTENT), 300_000)):
            assert os.pread(fd, 300_000, offset) == CONTENT[offset : offset + 300_000]


def test_strided(path: Path) -> None:
    with opened(path, os.O_RDONLY) as fd:
        for offset in range(0, len(CONTENT), 1_000_003):
            assert os.pread(fd, 5_000, offset) == CONTENT[offset : offset + 5_000]


def test_at_random(path: Path) -> None:
    choose = random.Random(1)
    with opened(path, os.O_RDONLY) as fd:
        os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_RANDOM)
        for _ in range(200):
            offset, size = choose.randrange(len(CONTENT)), choose.randrange(1, 70_000)
            assert os.pread(fd, size, offset) == CONTENT[offset : offset + size]


def test_interleaved_streams_of_one_descriptor(path: Path) -> None:
    step = 64 * 1024
    with opened(path, os.O_RDONLY) as fd:
        for position in range(0, MIB, step):
            for start in (0, 2 * MIB, 4 * MIB):
                offset = start + position
                assert os.pread(fd, step, offset) == CONTENT[offset : offset + step]


def test_beyond_the_end(path: Path) -> None:
    with opened(path, os.O_RDONLY) as fd:
        assert os.pread(fd, 100, len(CONTENT) - 10) == CONTENT[-10:]
        assert os.pread(fd, 100, len(CONTENT)) == b""
        assert os.pread(fd, 100, len(CONTENT) + 10 * MIB) == b""


def test_nothing(path: Path) -> None:
    with opened(path, os.O_RDONLY) as fd:
        assert os.read(fd, 0) == b""
        assert os.pread(fd, 0, 10) == b""
        assert os.lseek(fd, 0, os.SEEK_CUR) == 0


def test_an_empty_file(directory: Path) -> None:
    empty = write(directory / "empty", b"")
    assert empty.read_bytes() == b""


def test_into_several_buffers(path: Path) -> None:
    buffers = [bytearray(10), bytearray(100_000), bytearray(1)]
    with opened(path, os.O_RDONLY) as fd:
        assert os.preadv(fd, buffers, 5) == 100_011
        assert os.readv(fd, [bytearray(3)]) == 3
    assert b"".join(buffers) == CONTENT[5 : 5 + 100_011]


def test_through_a_map(path: Path) -> None:
    with (
        opened(path, os.O_RDONLY) as fd,
        mmap.mmap(fd, 0, flags=mmap.MAP_SHARED, prot=mmap.PROT_READ) as mapped,
    ):
        assert mapped[4 * MIB : 4 * MIB + 5_000] == CONTENT[4 * MIB : 4 * MIB + 5_000]
        assert mapped[:] == CONTENT


def test_through_a_map_whose_file_was_closed(path: Path) -> None:
    with opened(path, os.O_RDONLY) as fd:
        mapped = mmap.mmap(fd, 0, prot=mmap.PROT_READ)
    with mapped:
        assert mapped[:] == CONTENT


def test_several_threads_on_one_descriptor(path: Path) -> None:
    def check(seed: int) -> bool:
        choose = random.Random(seed)
        return all(
            os.pread(fd, 20_000, offset) == CONTENT[offset : offset + 20_000]
            for offset in (choose.randrange(len(CONTENT)) for _ in range(40))
        )

    with opened(path, os.O_RDONLY) as fd, ThreadPoolExecutor(8) as threads:
        assert all(threads.map(check, range(8)))


def test_several_threads_that_open_for_themselves(path: Path) -> None:
    def check(_: int) -> bool:
        return path.read_bytes() == CONTENT

    with ThreadPoolExecutor(4) as threads:
        assert all(threads.map(check, range(8)))


def test_duplicates_share_the_offset_and_outlive_each_other(path: Path) -> None:
    with opened(path, os.O_RDONLY) as fd:
        other = os.dup(fd)
        assert os.read(fd, 10) == CONTENT[:10]
        assert os.read(other, 10) == CONTENT[10:20]
    assert os.read(other, 10) == CONTENT[20:30]
    os.close(other)


def test_seeking(path: Path) -> None:
    with opened(path, os.O_RDONLY) as fd:
        assert os.lseek(fd, -10, os.SEEK_END) == len(CONTENT) - 10
        assert os.read(fd, 100) == CONTENT[-10:]
        assert os.lseek(fd, 100, os.SEEK_SET) == 100
        assert os.lseek(fd, 5, os.SEEK_CUR) == 105
        assert os.read(fd, 3) == CONTENT[105:108]
        assert os.lseek(fd, 0, os.SEEK_DATA) == 0
        assert os.lseek(fd, 0, os.SEEK_HOLE) == len(CONTENT)


def test_again_after_the_pages_were_dropped(path: Path) -> None:
    assert path.read_bytes() == CONTENT
    forget_pages(path)
    assert path.read_bytes() == CONTENT
