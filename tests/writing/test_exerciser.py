"""Random reads, writes, truncates, maps, syncs and reopens of one file, compared with a model.

As fsx does, with O_DIRECT and AIO, which the Rust crate of fsx lacks. Each read is compared
with a model in memory, the whole file now and then, and the object at the end. A failure
prints the seed and the last operations.
"""

from __future__ import annotations

import mmap
import os
import random
from collections import deque
from pathlib import Path
from typing import NamedTuple

import pytest

from tests.support.direct import BLOCK_BYTES, DirectFile
from tests.writing.buckets import Mounted

LONGEST_BYTES = 400_000
LONGEST_OPERATION_BYTES = 70_000
LOGGED = 200
WHOLE_EVERY = 250
SEED = int(os.environ.get("EXERCISER_SEED", "1"))


class Operation(NamedTuple):
    """One line of the log."""

    number: int
    name: str
    offset: int
    size_bytes: int


class Exerciser:
    """The file, its model, and a log of operations.

    Attributes:
        log: the last operations.
    """

    def __init__(self, path: Path, seed: int) -> None:
        self.log: deque[Operation] = deque(maxlen=LOGGED)
        self._path = path
        self._random = random.Random(seed)
        self._expected = bytearray()
        self._fd = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
        # Operations that wait for the store are rare.
        self._weights = {
            self._read: 25,
            self._write: 25,
            self._append: 5,
            self._truncate: 12,
            self._map_read: 10,
            self._map_write: 15,
            self._map_write_and_sync: 3,
            self._direct_read: 6,
            self._direct_write: 6,
            self._asynchronous_reads: 4,
            self._asynchronous_writes: 4,
            self._forget_pages: 2,
            self._sync: 1,
            self._reopen: 2,
        }

    def run(self, operations: int) -> None:
        """Do all operations, and close the file."""
        kinds, weights = list(self._weights), list(self._weights.values())
        for number in range(operations):
            kind = self._random.choices(kinds, weights)[0]
            offset = self._random.randrange(LONGEST_BYTES)
            size = self._random.randrange(1, LONGEST_OPERATION_BYTES)
            self.log.append(Operation(number, kind.__name__.strip("_"), offset, size))
            kind(offset, min(size, LONGEST_BYTES - offset))
            assert os.fstat(self._fd).st_size == len(self._expected)
            if number % WHOLE_EVERY == 0:
                self._compare(os.pread(self._fd, LONGEST_BYTES + 1, 0), 0, LONGEST_BYTES + 1)
        os.close(self._fd)

    def expected(self) -> bytes:
        """The model's bytes of a range."""
        return bytes(self._expected)

    def _compare(self, got: bytes, offset: int, size: int) -> None:
        wanted = bytes(self._expected[offset : offset + size])
        assert len(got) == len(wanted), f"{len(got)} bytes instead of {len(wanted)} at {offset}"
        if got != wanted:
            first = next(i for i, (a, b) in enumerate(zip(got, wanted, strict=True)) if a != b)
            wrong = sum(a != b for a, b in zip(got, wanted, strict=True))
            pytest.fail(f"{wrong} wrong bytes, the first at {offset + first}")

    def _store(self, offset: int, data: bytes) -> None:
        if len(self._expected) < offset:
            self._expected += bytes(offset - len(self._expected))
        self._expected[offset : offset + len(data)] = data

    # --- one method for each operation --------------------------------------------------------

    def _read(self, offset: int, size: int) -> None:
        self._compare(os.pread(self._fd, size, offset), offset, size)

    def _write(self, offset: int, size: int) -> None:
        data = self._random.randbytes(size)
        assert os.pwrite(self._fd, data, offset) == size
        self._store(offset, data)

    def _append(self, _offset: int, size: int) -> None:
        size = min(size, LONGEST_BYTES - len(self._expected))
        data = self._random.randbytes(size)
        os.lseek(self._fd, 0, os.SEEK_END)
        assert os.write(self._fd, data) == size
        self._store(len(self._expected), data)

    def _truncate(self, offset: int, _size: int) -> None:
        if self._random.random() < 0.5:
            os.ftruncate(self._fd, offset)
        else:
            os.truncate(self._path, offset)
        self._expected = self._expected[:offset].ljust(offset, b"\0")

    def _map_read(self, offset: int, size: int) -> None:
        if self._expected:
            with mmap.mmap(self._fd, 0, prot=mmap.PROT_READ) as mapped:
                self._compare(mapped[offset : offset + size], offset, size)

    def _map_write(self, offset: int, size: int, *, sync: bool = False) -> None:
        size = min(size, len(self._expected) - offset)
        if size <= 0:
            return
        data = self._random.randbytes(size)
        with mmap.mmap(self._fd, 0) as mapped:
            mapped[offset : offset + size] = data
            if sync:
                mapped.flush()
        self._store(offset, data)

    def _map_write_and_sync(self, offset: int, size: int) -> None:
        self._map_write(offset, size, sync=True)

    # O_DIRECT works in blocks and bypasses the pages of the other operations.

    def _direct_read(self, offset: int, size: int) -> None:
        offset, size = _blocks(offset, size)
        with DirectFile(self._path) as file:
            self._compare(file.read(offset, size), offset, size)

    def _direct_write(self, offset: int, size: int) -> None:
        offset, size = _blocks(offset, size)
        data = self._random.randbytes(size)
        with DirectFile(self._path) as file:
            file.write(offset, data)
        self._store(offset, data)

    def _asynchronous_reads(self, offset: int, size: int) -> None:
        pieces = self._pieces(offset, size)
        with DirectFile(self._path) as file:
            found = file.read_many(pieces)
        for (start, length), got in zip(pieces, found, strict=True):
            self._compare(got, start, length)

    def _asynchronous_writes(self, offset: int, size: int) -> None:
        pieces = [
            (start, self._random.randbytes(length)) for start, length in self._pieces(offset, size)
        ]
        with DirectFile(self._path) as file:
            file.write_many(pieces)
        for start, data in pieces:
            self._store(start, data)

    def _pieces(self, offset: int, size: int) -> list[tuple[int, int]]:
        """Some ranges that do not overlap, in random order."""
        offset, size = _blocks(offset, size)
        starts = range(offset, offset + size, 4 * BLOCK_BYTES)
        pieces = [(start, min(4 * BLOCK_BYTES, offset + size - start)) for start in starts]
        self._random.shuffle(pieces)
        return pieces

    def _forget_pages(self, _offset: int, _size: int) -> None:
        os.posix_fadvise(self._fd, 0, 0, os.POSIX_FADV_DONTNEED)

    def _sync(self, _offset: int, _size: int) -> None:
        self._random.choice((os.fsync, os.fdatasync))(self._fd)

    def _reopen(self, _offset: int, _size: int) -> None:
        os.close(self._fd)
        self._fd = os.open(self._path, os.O_RDWR)


def _blocks(offset: int, size: int) -> tuple[int, int]:
    """The range of whole blocks nearest to a range, within :data:`LONGEST_BYTES`."""
    start = min(offset, LONGEST_BYTES - BLOCK_BYTES) // BLOCK_BYTES * BLOCK_BYTES
    size = max(BLOCK_BYTES, size // BLOCK_BYTES * BLOCK_BYTES)
    return start, min(size, LONGEST_BYTES // BLOCK_BYTES * BLOCK_BYTES - start)


@pytest.mark.parametrize(
    ("store", "transport", "operations"),
    [
        pytest.param("s3", "kernel", 800, id="short-s3-kernel"),
        pytest.param("s3", "libfuse", 250, id="short-s3-libfuse"),
        *(
            pytest.param(
                store, transport, 100_000, id=f"soak-{store}-{transport}", marks=pytest.mark.soak
            )
            for store in ("s3", "gcs", "azure")
            for transport in ("kernel", "libfuse")
        ),
    ],
)
def test_every_byte_always(place: Mounted, operations: int) -> None:
    """`EXERCISER_SEED` chooses another order."""
    exerciser = Exerciser(place.path / "file", SEED)
    try:
        exerciser.run(operations)
    except BaseException:
        print(f"seed {SEED}, the last operations:")
        for operation in exerciser.log:
            print("{:6} {:20} offset {:6} size {:6}".format(*operation))
        raise
    assert place.cloud.read("file") == exerciser.expected()
