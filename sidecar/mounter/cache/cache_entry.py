"""One object version on local disk: a data file, and a map of which of its blocks are valid.

Several threads and processes use the same two files at once; the files are all they share.

- The data file has the object's length and is sparse. The map has for each block its state
  and checksum. A block is valid once its map entry says so, which is written after the data;
  a reader still compares the checksum, so a block that a crash tore or somebody altered is
  fetched again.
- Who is about to fetch a block leaves a lease with a short term in the map; others wait for
  the block instead of fetching it too, and fetch it themselves when the term has passed. No
  lock is held meanwhile.
- Whoever stores holds a lock on the data file for the time of the write, and notes what the
  file looks like afterwards (inode, length, times) and since which start of the machine all
  writes were seen. If it looks otherwise at the next write, somebody else changed it. Only a
  file that is whole and looks as noted, in the same run of the machine (a crash may lose
  pages that no time stamp tells of), may be given out unread (passthrough). Any other whole
  file is compared once first.
- flock(2) on the map keeps both files: shared by their users, exclusive for whoever makes
  or deletes them.

The map is read and written, not mapped: a mapped page that the disk refuses, or that another
process cuts off, is a SIGBUS (mmap(2)).
"""

from __future__ import annotations

import contextlib
import fcntl
import functools
import hashlib
import logging
import os
import struct
import threading
import time
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple, Protocol

log = logging.getLogger(__name__)

BLOCK_BYTES = 128 * 1024
LEASE_S = 2.0
"""How long others wait for a block that somebody said to be fetching."""
_USE_STAMP_S = 5.0
_PAGE_BYTES = 4096
_COMPARE_BYTES = 8 * 1024 * 1024

_MAGIC = b"mscache2"
_HEADER = struct.Struct("<8sQ8s4q")  # magic, length, boot, ino, size, mtime_ns, ctime_ns
_HEADER_BYTES = 64
_BLOCK = struct.Struct("<IId")  # state, crc32, end of the lease (seconds since the epoch)
_EMPTY, _LEASED, _VALID = 0, 1, 2
_NOBODY_KNOWS = bytes(8)
_FLOCK = struct.Struct("hhqqi4x")  # struct flock of fcntl(2), 64 bits


class Run(NamedTuple):
    """Blocks next to each other in one state, as bytes of the object.

    ``state``: ``valid``, ``leased`` to somebody else, or ``mine``: leased to the caller now.
    """

    start: int
    end: int
    state: str


class Folder(Protocol):
    """What an entry asks of the cache that it belongs to."""

    on_damage: Callable[[], None]

    def reserve(self, size_bytes: int, allocate: Callable[[], None]) -> bool:
        """Take the disk space by ``allocate``, within the budget; False beyond it."""


class Gone(Exception):
    """Somebody deleted the files, or failed to make them, meanwhile: open them anew."""


class CacheEntry:
    """One object version in the cache. Safe to use from any thread and process.

    Every method may raise OSError, of which nothing worse follows than that the store is
    asked instead.

    Args:
        path: of the data file; the map is beside it.
        size_bytes: the object's.

    Attributes:
        users: readers of this process; the cache counts them.
        comparing: a thread is reading it whole.

    Raises:
        Gone: try again.
        OSError: it cannot be cached.
    """

    def __init__(self, folder: Folder, path: Path, size_bytes: int) -> None:
        self._folder = folder
        self.path = path
        self.size_bytes = size_bytes
        self.users = 0
        self.comparing = False
        self._lock = threading.Lock()  # the file locks do not tell threads apart
        self._store_lock = threading.Lock()
        self._stamped_s = time.monotonic()
        self._blocks = -(-size_bytes // BLOCK_BYTES)
        flags = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW
        with contextlib.ExitStack() as on_failure:
            self._map_fd = os.open(path.with_suffix(".map"), flags, 0o600)
            on_failure.callback(os.close, self._map_fd)
            alone = _lock_alone(self._map_fd)
            if self.evicted:
                raise Gone
            self._fd = os.open(path, flags, 0o600)
            on_failure.callback(os.close, self._fd)
            if not self._is_map():
                if not alone:
                    raise Gone  # whoever was to make it could not
                self._make()
            if os.fstat(self._fd).st_size != size_bytes:
                os.ftruncate(self._fd, size_bytes)  # what was cut off does not compare
            os.utime(self._map_fd)
            fcntl.flock(self._map_fd, fcntl.LOCK_SH)
            on_failure.pop_all()

    def _is_map(self) -> bool:
        header = os.pread(self._map_fd, _HEADER.size, 0)
        if len(header) != _HEADER.size:
            return False
        magic, size, *_ = _HEADER.unpack(header)
        length = os.fstat(self._map_fd).st_size
        return magic == _MAGIC and size == self.size_bytes and length == self._map_bytes

    def _make(self) -> None:
        """A map of empty blocks over an empty data file."""
        os.ftruncate(self._map_fd, 0)
        os.ftruncate(self._fd, 0)

        def allocate() -> None:
            os.posix_fallocate(self._map_fd, 0, self._map_bytes)

        if not self._folder.reserve(_on_disk(self._map_bytes), allocate):
            raise OSError("the budget has no room for its map")
        os.ftruncate(self._fd, self.size_bytes)
        self._note(_boot())

    def close(self) -> None:
        """Close the files. Nobody uses the entry afterwards."""
        os.close(self._fd)
        os.close(self._map_fd)

    # --- who uses it ----------------------------------------------------------------------

    def use(self) -> bool:
        """Keep the entry from eviction; False if it was evicted already."""
        fcntl.flock(self._map_fd, fcntl.LOCK_SH)
        now_s = time.monotonic()
        if now_s - self._stamped_s >= _USE_STAMP_S:
            self._stamped_s = now_s
            os.utime(self._map_fd)  # the order of eviction
        return not self.evicted

    def leave(self) -> None:
        """Whoever evicts may take it from now on (who evicts asks for LOCK_EX)."""
        fcntl.flock(self._map_fd, fcntl.LOCK_UN)

    @property
    def evicted(self) -> bool:
        """Whether the files are no longer in the folder."""
        return os.fstat(self._map_fd).st_nlink == 0

    # --- blocks ---------------------------------------------------------------------------

    def claim(self, start: int, end: int) -> Run:
        """The longest run of blocks in one state from ``start``, up to ``end``.

        Blocks that nobody has or fetches are the caller's to fetch, who then calls
        :meth:`store` or :meth:`release`.
        """
        first, last = start // BLOCK_BYTES, -(-end // BLOCK_BYTES)
        run = self._run(first, last)
        if run.state == "mine":
            with self._locked_map():
                run = self._run(first, last)  # another one may have been quicker
                if run.state == "mine":
                    # What is not covered whole will not be stored.
                    low, high = self._whole(start, min(end, run.end * BLOCK_BYTES))
                    lease = _BLOCK.pack(_LEASED, 0, time.time() + LEASE_S)
                    os.pwrite(self._map_fd, lease * (high - low), _offset(low))
        return Run(start, min(run.end * BLOCK_BYTES, end), run.state)

    def release(self, start: int, end: int) -> None:
        """The fetch of a range failed, or it is not kept: others need not wait for it."""
        with self._locked_map():
            for index, (state, _, _) in self._read_map(
                start // BLOCK_BYTES, -(-end // BLOCK_BYTES)
            ):
                if state == _LEASED:
                    self._set(index, _EMPTY, 0)

    def read(self, start: int, buffer: memoryview) -> int:
        """Fill ``buffer`` from ``start``; the bytes up to the first block that is not right.

        ``start`` need not be a block's beginning; whole blocks are read and compared.
        """
        first = start - start % BLOCK_BYTES
        end = start + len(buffer)
        if first == start and (end % BLOCK_BYTES == 0 or end == self.size_bytes):
            return self._compare(buffer, start, os.preadv(self._fd, [buffer], start))
        last = min(-(-end // BLOCK_BYTES) * BLOCK_BYTES, self.size_bytes)
        whole = bytearray(last - first)
        length = os.preadv(self._fd, [whole], first)
        with memoryview(whole) as view:
            right = self._compare(view, first, length) - (start - first)
            count = max(0, min(right, len(buffer)))
            buffer[:count] = view[start - first : start - first + count]
        return count

    def store(self, start: int, data: memoryview) -> None:
        """Keep the blocks that lie whole in ``data``, if the budget has room for them."""
        end = start + len(data)
        with self._locked_data():
            blocks = self._read_map(*self._whole(start, end))
            missing = [index for index, (state, _, _) in blocks if state != _VALID]
            if not missing:
                return
            boot = self._writes_seen_since()  # before the disk space is taken, which is a change
            spans = list(_spans(missing, self.size_bytes))
            if self.evicted or not self._allocate(spans):
                self.release(start, end)
                return
            for low, size in spans:
                stored = data[low - start : low - start + size]
                _write(self._fd, stored, low)
                entries = b"".join(
                    _BLOCK.pack(_VALID, zlib.crc32(stored[at : at + BLOCK_BYTES]), 0.0)
                    for at in range(0, size, BLOCK_BYTES)
                )
                os.pwrite(self._map_fd, entries, _offset(low // BLOCK_BYTES))
            self._note(boot)

    def _whole(self, start: int, end: int) -> tuple[int, int]:
        """The blocks ``[first, last)`` that a range covers entirely."""
        first = -(-start // BLOCK_BYTES)
        last = self._blocks if end == self.size_bytes else end // BLOCK_BYTES
        return first, max(first, last)

    def _allocate(self, spans: list[tuple[int, int]]) -> bool:
        """Take the disk space of blocks, so that the budget counts what the disk counts."""

        def allocate() -> None:
            for low, size in spans:
                os.posix_fallocate(self._fd, low, size)

        return self._folder.reserve(sum(_on_disk(size) for _, size in spans), allocate)

    # --- the file as a whole --------------------------------------------------------------

    def open_sealed(self) -> int | None:
        """A descriptor of the whole, unaltered file; None if it is not known to be that."""
        if self._writes_seen_since() != _boot() or not self.whole:
            return None
        return os.open(f"/proc/self/fd/{self._fd}", os.O_RDONLY | os.O_CLOEXEC)

    @property
    def whole(self) -> bool:
        """Whether every block is valid."""
        packed = self._read_map_bytes(_HEADER_BYTES, self._blocks * _BLOCK.size)
        return packed[:: _BLOCK.size].count(_VALID) == self._blocks  # the state's first byte

    def compare_and_seal(self) -> None:
        """Read a whole file once and seal it, or find what is not right in it."""
        before = self._identity()
        buffer = bytearray(min(_COMPARE_BYTES, self.size_bytes))
        for start in range(0, self.size_bytes, _COMPARE_BYTES):
            size = min(_COMPARE_BYTES, self.size_bytes - start)
            with memoryview(buffer)[:size] as view:
                if self.read(start, view) != size:
                    return
        with self._locked_data():
            if self._identity() == before:
                self._note(_boot())

    def _writes_seen_since(self) -> bytes:
        """The start of the machine since which nobody wrote the data but :meth:`store`."""
        _, _, boot, *identity = _HEADER.unpack(self._read_map_bytes(0, _HEADER.size))
        known = tuple(identity) == self._identity() and boot == _boot()
        return bytes(boot) if known else _NOBODY_KNOWS

    def _note(self, boot: bytes) -> None:
        header = _HEADER.pack(_MAGIC, self.size_bytes, boot, *self._identity())
        os.pwrite(self._map_fd, header, 0)

    def _identity(self) -> tuple[int, int, int, int]:
        now = os.fstat(self._fd)
        return now.st_ino, now.st_size, now.st_mtime_ns, now.st_ctime_ns

    # --- the map --------------------------------------------------------------------------

    @property
    def _map_bytes(self) -> int:
        return _HEADER_BYTES + self._blocks * _BLOCK.size

    def _run(self, first: int, last: int) -> Run:
        """As :meth:`claim`, in blocks; ``mine`` means nobody's yet."""
        now_s = time.time()
        end, state = first, ""
        for index, block in self._read_map(first, last):
            this = _state(block, now_s)
            if end > first and this != state:
                break
            end, state = index + 1, this
        return Run(first, end, state)

    def _compare(self, data: memoryview, start: int, length: int) -> int:
        """How many bytes of ``data``, which begins with a block, are as they were stored.

        ``length``: how many of them the file has.
        """
        first = start // BLOCK_BYTES
        for index, (state, checksum, _) in self._read_map(
            first, -(-(start + len(data)) // BLOCK_BYTES)
        ):
            offset = (index - first) * BLOCK_BYTES
            block = data[offset : offset + BLOCK_BYTES]
            if state != _VALID:
                return offset
            if offset + len(block) > length or zlib.crc32(block) != checksum:
                log.warning("block %d of %s was torn or altered", index, self.path.name)
                self._folder.on_damage()
                self._set(index, _EMPTY, 0)
                return offset
        return len(data)

    def _read_map(self, first: int, last: int) -> Iterator[tuple[int, tuple[int, int, float]]]:
        """(index, (state, checksum, end of lease)) of the blocks ``[first, last)``."""
        packed = self._read_map_bytes(_offset(first), (last - first) * _BLOCK.size)
        return enumerate(_BLOCK.iter_unpack(packed), first)

    def _read_map_bytes(self, offset: int, size: int) -> bytes:
        data = os.pread(self._map_fd, size, offset)
        if len(data) != size:
            raise OSError(f"{self.path.name}.map was cut")
        return data

    def _set(self, index: int, state: int, checksum: int) -> None:
        os.pwrite(self._map_fd, _BLOCK.pack(state, checksum, 0.0), _offset(index))

    @contextlib.contextmanager
    def _locked_map(self) -> Iterator[None]:
        """For microseconds, while leases are compared and set.

        A lock of the open file (fcntl(2), OFD): it goes with a process that dies.
        """
        with self._lock:
            _lock_bytes(self._map_fd, fcntl.F_WRLCK)
            try:
                yield
            finally:
                _lock_bytes(self._map_fd, fcntl.F_UNLCK)

    @contextlib.contextmanager
    def _locked_data(self) -> Iterator[None]:
        """While blocks are written. Nobody waits for this who only reads."""
        with self._store_lock:
            fcntl.flock(self._fd, fcntl.LOCK_EX)
            try:
                yield
            finally:
                fcntl.flock(self._fd, fcntl.LOCK_UN)


def _lock_alone(descriptor: int) -> bool:
    """Lock a map: exclusively if nobody has it, else shared once whoever makes it is done."""
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        fcntl.flock(descriptor, fcntl.LOCK_SH)
        return False
    return True


def _lock_bytes(descriptor: int, kind: int) -> None:
    fcntl.fcntl(descriptor, fcntl.F_OFD_SETLKW, _FLOCK.pack(kind, os.SEEK_SET, 0, 1, 0))


def _state(block: tuple[int, int, float], now_s: float) -> str:
    state, _, until_s = block
    if state == _VALID:
        return "valid"
    # A term further away than any lease is garbage, or of before the clock was set back.
    return "leased" if state == _LEASED and now_s < until_s <= now_s + LEASE_S else "mine"


def _spans(blocks: list[int], size_bytes: int) -> Iterator[tuple[int, int]]:
    """(offset, length) of each stretch of neighbouring blocks."""
    first = previous = blocks[0]
    for index in [*blocks[1:], -1]:
        if index != previous + 1:
            low = first * BLOCK_BYTES
            yield low, min((previous + 1) * BLOCK_BYTES, size_bytes) - low
            first = index
        previous = index


def _on_disk(size_bytes: int) -> int:
    """What a file of this size occupies."""
    return -(-size_bytes // _PAGE_BYTES) * _PAGE_BYTES


def _offset(index: int) -> int:
    return _HEADER_BYTES + index * _BLOCK.size


def _write(descriptor: int, data: memoryview, offset: int) -> None:
    """All of ``data``: pwrite(2) may write less where a disk is about to be full."""
    while data:
        count = os.pwrite(descriptor, data, offset)
        data, offset = data[count:], offset + count


@functools.cache
def _boot() -> bytes:
    """Identifies the time since the machine was started."""
    text = Path("/proc/sys/kernel/random/boot_id").read_text()
    return hashlib.sha256(text.encode()).digest()[:8]
