"""The disk cache: blocks of object versions in local files, shared by whoever sees the folder.

Several processes use one folder at once: the reader processes of a worker, several workers,
and the sidecars of several pods where the folder is a hostPath. Nothing but the folder
connects them:

- For each object version a sparse data file of the object's length, and a map with, for each
  block, its state and checksum. The map is a shared mapping, so all see a change at once. Two
  processes that store the same block write the same bytes.
- A block is valid once its map entry says so, which is written after the data; and a reader
  still compares the checksum, so a block that a crash tore or somebody altered is fetched
  again.
- Who is about to fetch a block leaves a lease with a short term in the map; others wait for
  the block instead of fetching it too, and fetch it themselves when the term has passed. No
  lock is held meanwhile.
- The budget is the folder's: a counter in a file, changed under a lock for microseconds.
  Beyond it the object that was used least recently, and is in nobody's use, goes first. If
  nothing can go, nothing is stored.
- A file whose every block is valid is sealed: its inode, length and times are noted. While
  they are the same, and the machine was not started anew (a crash may lose pages that no
  time stamp tells of), the kernel may serve the file itself (passthrough). After a restart
  of the machine the blocks are compared once more first.
"""

from __future__ import annotations

import contextlib
import fcntl
import functools
import hashlib
import logging
import mmap
import os
import queue
import struct
import threading
import time
import zlib
from collections import OrderedDict
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

from sidecar.mounter.store.base import ObjectInfo

log = logging.getLogger(__name__)

BLOCK_BYTES = 128 * 1024
LEASE_S = 2.0
"""How long others wait for a block that somebody said to be fetching."""
_USE_STAMP_S = 5.0
_COMPARE_BYTES = 8 * 1024 * 1024
_OPEN_ENTRIES = 512
_QUEUED = 16

_MAGIC = b"mscache1"
_HEADER = struct.Struct("<8sQ8s4q")  # magic, length, seal: boot ino size mtime_ns ctime_ns
_HEADER_BYTES = 64
_NO_SEAL = (bytes(8), 0, 0, 0, 0)
_BLOCK = struct.Struct("<IId")  # state, crc32, end of the lease (seconds since the epoch)
_EMPTY, _LEASED, _VALID = 0, 1, 2
_USED = struct.Struct("<q")


class Run(NamedTuple):
    """Blocks next to each other in one state, as bytes of the object."""

    start: int
    end: int
    state: str  # valid, leased, missing


class Entry:
    """One object version in the cache. Safe to use from any thread and process.

    Attributes:
        users: readers of this process; the cache counts them.
        comparing: a thread is reading it whole, to seal it.
    """

    def __init__(self, cache: DiskCache, path: Path, info: ObjectInfo) -> None:
        self._cache = cache
        self.path = path
        self.size_bytes = info.size_bytes
        self.users = 0
        self.comparing = False
        self._stamped_s = 0.0
        self._blocks = -(-info.size_bytes // BLOCK_BYTES)
        map_bytes = _HEADER_BYTES + self._blocks * _BLOCK.size
        flags = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW
        with contextlib.ExitStack() as on_failure:
            self._map_fd = os.open(path.with_suffix(".map"), flags, 0o600)
            on_failure.callback(os.close, self._map_fd)
            self._fd = os.open(path, flags, 0o600)
            on_failure.callback(os.close, self._fd)
            fcntl.flock(self._map_fd, fcntl.LOCK_SH)
            if os.fstat(self._map_fd).st_size != map_bytes:
                os.ftruncate(self._map_fd, map_bytes)
            self._map = mmap.mmap(self._map_fd, map_bytes)
            magic, size, *_ = _HEADER.unpack_from(self._map)
            if magic != _MAGIC or size != self.size_bytes:
                self._map[:] = bytes(map_bytes)
                _HEADER.pack_into(self._map, 0, _MAGIC, self.size_bytes, *_NO_SEAL)
            if os.fstat(self._fd).st_size != self.size_bytes:
                os.ftruncate(self._fd, self.size_bytes)
            on_failure.pop_all()

    def close(self) -> None:
        """Close the files. Nobody uses the entry afterwards."""
        self._map.close()
        os.close(self._fd)
        os.close(self._map_fd)

    def use(self) -> bool:
        """Keep the entry from eviction; False if it was evicted already."""
        fcntl.flock(self._map_fd, fcntl.LOCK_SH)
        now_s = time.monotonic()
        if now_s - self._stamped_s > _USE_STAMP_S:
            self._stamped_s = now_s
            os.utime(self._map_fd)  # the order of eviction
        return not self.evicted

    def leave(self) -> None:
        """Whoever evicts may take it from now on (who evicts asks for LOCK_EX)."""
        fcntl.flock(self._map_fd, fcntl.LOCK_UN)

    def stay(self) -> None:
        """One user more, who has it from a user."""
        self._cache.stay(self)

    def done(self) -> None:
        """One user less."""
        self._cache.leave(self)

    @property
    def evicted(self) -> bool:
        """Whether the files are no longer in the folder."""
        return os.fstat(self._map_fd).st_nlink == 0

    def run(self, start: int, end: int) -> Run:
        """The longest run of blocks in one state from ``start``, up to ``end``."""
        now_s = time.time()
        index = start // BLOCK_BYTES
        state = self._state(index, now_s)
        index += 1
        while index * BLOCK_BYTES < end and self._state(index, now_s) == state:
            index += 1
        return Run(start, min(index * BLOCK_BYTES, end), state)

    def lease(self, start: int, end: int) -> None:
        """Tell others that the blocks of a range are being fetched."""
        until_s = time.time() + LEASE_S
        for index in self._whole(start, end):
            if self._entry(index)[0] != _VALID:
                _BLOCK.pack_into(self._map, self._offset(index), _LEASED, 0, until_s)

    def release(self, start: int, end: int) -> None:
        """The fetch of a range failed: others need not wait for it."""
        for index in self._whole(start, end):
            if self._entry(index)[0] == _LEASED:
                _BLOCK.pack_into(self._map, self._offset(index), _EMPTY, 0, 0.0)

    def read(self, start: int, buffer: memoryview) -> int:
        """Fill ``buffer`` from ``start``; the bytes up to the first block that is not right.

        ``start`` need not be a block's beginning; whole blocks are read and compared.
        """
        first = start - start % BLOCK_BYTES
        end = start + len(buffer)
        if first == start and (end % BLOCK_BYTES == 0 or end == self.size_bytes):
            os.preadv(self._fd, [buffer], start)
            return self._compare(buffer, start)
        last = min(-(-end // BLOCK_BYTES) * BLOCK_BYTES, self.size_bytes)
        whole = bytearray(last - first)
        os.preadv(self._fd, [whole], first)
        with memoryview(whole) as view:
            right = self._compare(view, first) - (start - first)
            count = max(0, min(right, len(buffer)))
            buffer[:count] = view[start - first : start - first + count]
        return count

    def store(self, start: int, data: memoryview) -> None:
        """Keep the blocks that lie whole in ``data``, if the budget has room for them."""
        end = start + len(data)
        missing = [i for i in self._whole(start, end) if self._entry(i)[0] != _VALID]
        if not missing or self.evicted:
            return
        if not self._cache.reserve(len(missing) * BLOCK_BYTES):
            self.release(start, end)
            return
        for index in missing:
            low = index * BLOCK_BYTES
            block = data[low - start : min(low + BLOCK_BYTES, self.size_bytes) - start]
            os.pwrite(self._fd, block, low)
            _BLOCK.pack_into(self._map, self._offset(index), _VALID, zlib.crc32(block), 0.0)
        self._seal_if_whole()

    def open_sealed(self) -> int | None:
        """A descriptor of the whole, unaltered file; None if it is not known to be that."""
        _, _, boot, *identity = _HEADER.unpack_from(self._map)
        if boot != _boot() or tuple(identity) != self._identity():
            return None
        return os.open(f"/proc/self/fd/{self._fd}", os.O_RDONLY | os.O_CLOEXEC)

    @property
    def whole(self) -> bool:
        """Whether every block is valid."""
        return self._map[_HEADER_BYTES :: _BLOCK.size].count(_VALID) == self._blocks

    def compare_and_seal(self) -> None:
        """Read a whole file once and seal it, or find what is not right in it."""
        buffer = bytearray(min(_COMPARE_BYTES, self.size_bytes))
        for start in range(0, self.size_bytes, _COMPARE_BYTES):
            size = min(_COMPARE_BYTES, self.size_bytes - start)
            with memoryview(buffer)[:size] as view:
                if self.read(start, view) != size:
                    return
        self._seal_if_whole()

    def _seal_if_whole(self) -> None:
        if self.whole:
            _HEADER.pack_into(self._map, 0, _MAGIC, self.size_bytes, _boot(), *self._identity())

    def _identity(self) -> tuple[int, int, int, int]:
        now = os.fstat(self._fd)
        return now.st_ino, now.st_size, now.st_mtime_ns, now.st_ctime_ns

    def _compare(self, data: memoryview, start: int) -> int:
        """How many bytes of ``data``, which begins with a block, are as they were stored."""
        for offset in range(0, len(data), BLOCK_BYTES):
            index = (start + offset) // BLOCK_BYTES
            state, checksum, _ = self._entry(index)
            if state != _VALID or zlib.crc32(data[offset : offset + BLOCK_BYTES]) != checksum:
                if state == _VALID:
                    log.warning("block %d of %s was torn or altered", index, self.path.name)
                    self._cache.on_damage()
                    _BLOCK.pack_into(self._map, self._offset(index), _EMPTY, 0, 0.0)
                return offset
        return len(data)

    def _whole(self, start: int, end: int) -> range:
        """The blocks that a range covers entirely."""
        last = self._blocks if end == self.size_bytes else end // BLOCK_BYTES
        return range(-(-start // BLOCK_BYTES), last)

    def _state(self, index: int, now_s: float) -> str:
        state, _, until_s = self._entry(index)
        if state == _VALID:
            return "valid"
        return "leased" if state == _LEASED and until_s > now_s else "missing"

    def _entry(self, index: int) -> tuple[int, int, float]:
        state, checksum, until_s = _BLOCK.unpack_from(self._map, self._offset(index))
        return state, checksum, until_s

    def _offset(self, index: int) -> int:
        return _HEADER_BYTES + index * _BLOCK.size


class Copy:
    """A whole object as a local file that stays while this is open."""

    def __init__(self, descriptor: int, cache: DiskCache, entry: Entry) -> None:
        self.descriptor = descriptor
        self._cache = cache
        self._entry = entry

    def close(self) -> None:
        """The file may be evicted from now on."""
        os.close(self.descriptor)
        self._cache.leave(self._entry)


class DiskCache:
    """The folder.

    Not to be shared over a fork: locks of flock(2) belong to the open file, which a child
    shares. Each process makes its own.

    Args:
        store_url: tells equal keys of different buckets apart.
        budget_bytes: what the folder's data files may occupy together.
        on_damage: called for each block that is not as it was stored.
    """

    def __init__(
        self,
        directory: Path,
        store_url: str,
        budget_bytes: int,
        on_damage: Callable[[], None],
    ) -> None:
        self.on_damage = on_damage
        self._directory = directory
        self._store_url = store_url
        self._budget_bytes = budget_bytes
        self._lock = threading.Lock()
        self._usage_lock = threading.Lock()  # flock(2) does not tell threads apart
        self._entries: OrderedDict[str, Entry] = OrderedDict()
        directory.mkdir(parents=True, exist_ok=True)
        self._usage_fd = os.open(
            directory / "usage", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600
        )
        with self._locked_usage():
            self._write_used(sum(size for size, _, _ in self._scan()))

    def enter(self, info: ObjectInfo) -> Entry | None:
        """The entry of a version, for a reader who calls :meth:`leave` in the end.

        None where the folder cannot hold it.
        """
        if not 0 < info.size_bytes <= self._budget_bytes:
            return None
        name = self._name(info)
        with self._lock:
            entry = self._entries.pop(name, None)
            if entry is not None and not entry.users and not entry.use():
                entry.close()
                entry = None
            if entry is None:
                path = self._directory / name[:2] / name
                try:
                    path.parent.mkdir(exist_ok=True)
                    entry = Entry(self, path, info)
                    entry.use()
                except OSError as error:
                    log.warning("an object cannot be cached: %s", error)
                    return None
            entry.users += 1
            self._entries[name] = entry  # most recently used last
            if len(self._entries) > _OPEN_ENTRIES:
                self._close_one_idle()
            return entry

    def stay(self, entry: Entry) -> None:
        """A user of an entry more, beside the one it comes from."""
        with self._lock:
            entry.users += 1

    def leave(self, entry: Entry) -> None:
        """A user of an entry less."""
        with self._lock:
            entry.users -= 1
            if not entry.users:
                entry.leave()

    def open_whole(self, info: ObjectInfo) -> Copy | None:
        """The version as a local file, if it is there whole and unaltered."""
        name = self._name(info)
        if not (self._directory / name[:2] / name).exists():
            return None
        entry = self.enter(info)
        if entry is None:
            return None
        descriptor = entry.open_sealed()
        if descriptor is not None:
            return Copy(descriptor, self, entry)
        if entry.whole and not entry.comparing:
            # Takes a second for a gigabyte, which this open does not wait for.
            entry.comparing = True
            threading.Thread(target=self._compare, args=(entry,), daemon=True).start()
        else:
            self.leave(entry)
        return None

    def _compare(self, entry: Entry) -> None:
        try:
            entry.compare_and_seal()
        except OSError as error:
            log.warning("a cached object cannot be read: %s", error)
        finally:
            entry.comparing = False
            self.leave(entry)

    def reserve(self, size: int) -> bool:
        """Make room for ``size`` more bytes; False if what is there is all in use."""
        with self._usage_lock, self._locked_usage():
            used = self._read_used()
            if used + size > self._budget_bytes:
                used = self._evict(self._budget_bytes - size)
            if used + size > self._budget_bytes:
                self._write_used(used)
                return False
            self._write_used(used + size)
            return True

    @property
    def used_bytes(self) -> int:
        """What the folder's data files occupy, as it is accounted."""
        return self._read_used()

    def _name(self, info: ObjectInfo) -> str:
        identity = "\0".join((self._store_url, info.key, info.version))
        return hashlib.sha256(identity.encode()).hexdigest()

    def _scan(self) -> Iterator[tuple[int, float, Path]]:
        """(bytes on disk, last use, path) of every data file."""
        for folder in self._directory.iterdir():
            if len(folder.name) != 2:
                continue
            for path in folder.iterdir():
                if path.suffix:
                    continue
                with contextlib.suppress(FileNotFoundError):
                    used = path.stat().st_blocks * 512
                    stamp = path.with_suffix(".map").stat().st_mtime
                    yield used, stamp, path

    def _close_one_idle(self) -> None:
        for name, entry in self._entries.items():
            if not entry.users:
                del self._entries[name]
                entry.close()
                return

    def _evict(self, target_bytes: int) -> int:
        """Delete what was used least recently until ``target_bytes``; the bytes that are left."""
        found = sorted(self._scan(), key=lambda item: item[1])
        used = sum(size for size, _, _ in found)
        for size, _, path in found:
            if used <= target_bytes:
                break
            if self._delete(path):
                used -= size
        return used

    def _delete(self, path: Path) -> bool:
        """Delete one entry unless somebody uses it, this process's idle ones excepted."""
        with self._lock:
            mine = self._entries.get(path.name)
            if mine is not None and mine.users:
                return False
        map_path = path.with_suffix(".map")
        try:
            descriptor = os.open(map_path, os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW)
        except FileNotFoundError:
            path.unlink(missing_ok=True)
            return True
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        else:
            path.unlink(missing_ok=True)
            map_path.unlink(missing_ok=True)
            return True
        finally:
            os.close(descriptor)

    @contextlib.contextmanager
    def _locked_usage(self) -> Iterator[None]:
        fcntl.flock(self._usage_fd, fcntl.LOCK_EX)
        try:
            yield
        finally:
            fcntl.flock(self._usage_fd, fcntl.LOCK_UN)

    def _read_used(self) -> int:
        data = os.pread(self._usage_fd, _USED.size, 0)
        return int(_USED.unpack(data)[0]) if len(data) == _USED.size else 0

    def _write_used(self, used: int) -> None:
        os.pwrite(self._usage_fd, _USED.pack(used), 0)


class Keeper:
    """Stores fetched ranges behind the readers' backs: one thread, a short queue.

    When the disk is slower than the store, ranges are not kept rather than waited for.
    """

    def __init__(self) -> None:
        self._queue: queue.Queue[_Kept] = queue.Queue(_QUEUED)
        self._thread: threading.Thread | None = None
        self._lock = threading.Lock()

    def keep(self, entry: Entry, start: int, data: memoryview, release: Callable[[], None]) -> None:
        """Store ``data`` some time soon; ``release`` is called when it is no longer needed."""
        entry.stay()
        with self._lock:
            if self._thread is None:
                self._thread = threading.Thread(target=self._run, name="keep", daemon=True)
                self._thread.start()
        try:
            self._queue.put_nowait(_Kept(entry, start, data, release))
        except queue.Full:
            entry.release(start, start + len(data))
            release()
            entry.done()

    def _run(self) -> None:
        while True:
            entry, start, data, release = self._queue.get()
            try:
                entry.store(start, data)
            except OSError as error:
                # A full disk, say: nothing is lost but speed.
                log.warning("a range was not cached: %s", error)
                entry.release(start, start + len(data))
            finally:
                release()
                entry.done()


class _Kept(NamedTuple):
    entry: Entry
    start: int
    data: memoryview
    release: Callable[[], None]


@functools.cache
def _boot() -> bytes:
    """Identifies the time since the machine was started."""
    text = Path("/proc/sys/kernel/random/boot_id").read_text()
    return hashlib.sha256(text.encode()).digest()[:8]
