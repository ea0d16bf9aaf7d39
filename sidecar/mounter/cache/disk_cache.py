"""The disk cache: a folder of object versions, shared by whoever sees it, within one budget.

Several processes use one folder at once: the reader processes of a worker, several workers,
and the sidecars of several pods where the folder is a hostPath. Nothing but the folder
connects them. ``cache_entry`` says how one object is kept; here is what they share beside it:

- The budget is the folder's: a counter in a file, changed under a lock, and disk space is
  taken (fallocate(2)) under that lock too, so that the counter is what the disk counts.
- Beyond the budget the objects that were used least recently, and are in nobody's use, go
  first. If nothing can go, nothing is stored.
- Somebody may delete the folder under a running process: it is made anew.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import logging
import os
import queue
import struct
import threading
from collections import OrderedDict
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

from sidecar.mounter.cache.cache_entry import BLOCK_BYTES, CacheEntry, Gone
from sidecar.mounter.store.interface import ObjectInfo

__all__ = ["BLOCK_BYTES", "CacheEntry", "CacheWriter", "Copy", "DiskCache"]

log = logging.getLogger(__name__)

_OPEN_ENTRIES = 128
"""Entries that stay open though nobody uses them: two descriptors each."""
_QUEUED_BYTES = 64 * 1024 * 1024
_SLACK = 32
"""A part of the budget left for what file systems add to files, such as extent blocks."""
_EVICT_MORE = 16
"""A part of the budget evicted beyond need, so that not every store looks at every file."""
_ATTEMPTS = 5
_USED = struct.Struct("<q")


class Copy:
    """A whole object as a local file that stays while this is open."""

    def __init__(self, descriptor: int, cache: DiskCache, entry: CacheEntry) -> None:
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
        budget_bytes: what the folder's files may occupy together.
        on_damage: called for each block that is not as it was stored.

    Raises:
        OSError: the folder cannot be made or written.
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
        self._budget_bytes = budget_bytes - budget_bytes // _SLACK
        self._lock = threading.Lock()
        self._usage_lock = threading.Lock()  # flock(2) does not tell threads apart
        self._entries: OrderedDict[str, CacheEntry] = OrderedDict()
        self._usage_fd = self._open_usage()
        with self._locked_usage():
            # What a process that was killed counted and did not write, or the reverse.
            self._write_used(occupied_bytes(self._directory))

    # --- entries --------------------------------------------------------------------------

    def enter(self, info: ObjectInfo, *, create: bool = True) -> CacheEntry | None:
        """The entry of a version, for a reader who calls :meth:`leave` in the end.

        None where the folder cannot hold it, and where it has none and shall not
        ``create`` one.
        """
        if not 0 < info.size_bytes <= self._budget_bytes:
            return None
        name = self._name(info)
        with self._lock:
            entry = self._take(name)
        if entry is not None:
            return entry
        if not create and not (self._directory / name[:2] / name).exists():
            return None
        try:
            made = self._open(name, info.size_bytes)  # may evict, so without the lock
        except OSError as error:
            log.warning("an object cannot be cached: %s", error)
            return None
        with self._lock:
            entry = self._take(name)
            if entry is not None:  # another thread was quicker
                made.close()
                return entry
            made.users = 1
            self._entries[name] = made
            if len(self._entries) > _OPEN_ENTRIES:
                self._close_one_idle()
        return made

    def stay(self, entry: CacheEntry) -> None:
        """A user of an entry more, beside the one it comes from."""
        with self._lock:
            entry.users += 1

    def leave(self, entry: CacheEntry) -> None:
        """A user of an entry less."""
        with self._lock:
            entry.users -= 1
            if not entry.users:
                entry.leave()

    def open_whole(self, info: ObjectInfo) -> Copy | None:
        """The version as a local file, if it is there whole and unaltered."""
        entry = self.enter(info, create=False)
        if entry is None:
            return None
        try:
            descriptor = entry.open_sealed()
            compare = descriptor is None and entry.whole
        except OSError as error:
            log.warning("a cached object cannot be opened: %s", error)
            descriptor, compare = None, False
        if descriptor is not None:
            return Copy(descriptor, self, entry)
        with self._lock:
            compare = compare and not entry.comparing
            entry.comparing = entry.comparing or compare
        if compare:
            # Takes a second for a gigabyte, which this open does not wait for.
            threading.Thread(target=self._compare, args=(entry,), daemon=True).start()
        else:
            self.leave(entry)
        return None

    def _compare(self, entry: CacheEntry) -> None:
        try:
            entry.compare_and_seal()
        except OSError as error:
            log.warning("a cached object cannot be read: %s", error)
        finally:
            entry.comparing = False
            self.leave(entry)

    def _take(self, name: str) -> CacheEntry | None:
        """One user more of an entry that is open; the lock is held."""
        entry = self._entries.get(name)
        if entry is None:
            return None
        if not entry.users and not entry.use():
            del self._entries[name]
            entry.close()
            return None
        entry.users += 1
        self._entries.move_to_end(name)  # most recently used last
        return entry

    def _open(self, name: str, size_bytes: int) -> CacheEntry:
        path = self._directory / name[:2] / name
        for _ in range(_ATTEMPTS):
            path.parent.mkdir(parents=True, exist_ok=True)
            with contextlib.suppress(Gone):
                return CacheEntry(self, path, size_bytes)
        raise OSError(f"{name} is broken, or deleted again and again")

    def _close_one_idle(self) -> None:
        for name, entry in self._entries.items():
            if not entry.users:
                del self._entries[name]
                entry.close()
                return

    def _name(self, info: ObjectInfo) -> str:
        identity = "\0".join((self._store_url, info.key, info.version))
        return hashlib.sha256(identity.encode()).hexdigest()

    # --- the budget -----------------------------------------------------------------------

    def reserve(self, size_bytes: int, allocate: Callable[[], None]) -> bool:
        """Make room for ``size_bytes`` more and take it by ``allocate``.

        False if what is there is all in use. Raises OSError where the disk has no room.
        """
        with self._locked_usage():
            used = self._read_used()
            if used + size_bytes > self._budget_bytes:
                target = self._budget_bytes - size_bytes - self._budget_bytes // _EVICT_MORE
                used = self._evict(target)
            if used + size_bytes > self._budget_bytes:
                self._write_used(used)
                return False
            self._write_used(used + size_bytes)  # first: a process that dies counts too much
            try:
                allocate()
            except OSError:
                self._write_used(occupied_bytes(self._directory))
                raise
            return True

    @property
    def used_bytes(self) -> int:
        """What the folder's files occupy, as it is accounted."""
        return self._read_used()

    def _evict(self, target_bytes: int) -> int:
        """Delete what was used least recently until ``target_bytes``; the bytes that are left."""
        found = sorted(_scan(self._directory), key=lambda item: item[1])
        used = sum(size for size, _, _ in found)
        for size, _, path in found:
            if used <= target_bytes:
                break
            if self._delete(path):
                used -= size
        return used

    def _delete(self, path: Path) -> bool:
        """Delete one entry unless somebody uses it. Only whoever has the folder's lock does."""
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

    def _open_usage(self) -> int:
        self._directory.mkdir(parents=True, exist_ok=True)
        flags = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW
        return os.open(self._directory / "usage", flags, 0o600)

    @contextlib.contextmanager
    def _locked_usage(self) -> Iterator[None]:
        with self._usage_lock:
            fcntl.flock(self._usage_fd, fcntl.LOCK_EX)
            while os.fstat(self._usage_fd).st_nlink == 0:  # somebody deleted the folder
                anew = self._open_usage()
                os.close(self._usage_fd)
                self._usage_fd = anew
                fcntl.flock(anew, fcntl.LOCK_EX)
            try:
                yield
            finally:
                fcntl.flock(self._usage_fd, fcntl.LOCK_UN)

    def _read_used(self) -> int:
        data = os.pread(self._usage_fd, _USED.size, 0)
        return (
            int(_USED.unpack(data)[0])
            if len(data) == _USED.size
            else occupied_bytes(self._directory)
        )

    def _write_used(self, used: int) -> None:
        os.pwrite(self._usage_fd, _USED.pack(used), 0)


def occupied_bytes(directory: Path) -> int:
    """What the files of a cache folder occupy; 0 where there is no folder."""
    return sum(size for size, _, _ in _scan(directory)) if directory.exists() else 0


def _scan(directory: Path) -> Iterator[tuple[int, float, Path]]:
    """(bytes on disk, last use, path of the data file) of every object."""
    for folder in directory.iterdir():
        if len(folder.name) != 2:
            continue
        for name in {found.partition(".")[0] for found in os.listdir(folder)}:
            path = f"{folder}/{name}"
            used, stamp = 0, 0.0
            for file in (path, f"{path}.map"):
                with contextlib.suppress(FileNotFoundError):
                    status = os.stat(file)  # pathlib takes as long as the system call
                    used += status.st_blocks * 512
                    stamp = status.st_mtime
            yield used, stamp, Path(path)


class CacheWriter:
    """Stores fetched ranges behind the readers' backs: one thread, a short queue.

    When the disk is slower than the store, ranges are not kept rather than waited for.
    """

    def __init__(self) -> None:
        self._queue: queue.SimpleQueue[_Kept] = queue.SimpleQueue()
        self._queued_bytes = 0
        self._thread: threading.Thread | None = None
        self._lock = threading.Lock()

    def keep(
        self,
        cache: DiskCache,
        info: ObjectInfo,
        entry: CacheEntry | None,
        start: int,
        data: memoryview,
        release: Callable[[], None],
    ) -> None:
        """Store ``data`` some time soon; ``release`` is called when it is no longer needed.

        Without an entry one is made then: to make two files takes longer than to fetch a
        small object.
        """
        with self._lock:
            if self._thread is None:
                self._thread = threading.Thread(target=self._run, name="keep", daemon=True)
                self._thread.start()
            fits = self._queued_bytes + len(data) <= _QUEUED_BYTES
            if fits:
                self._queued_bytes += len(data)
        if fits:
            if entry is not None:
                cache.stay(entry)
            self._queue.put(_Kept(cache, info, entry, start, data, release))
            return
        try:
            if entry is not None:
                entry.release(start, start + len(data))
        finally:
            release()

    def _run(self) -> None:
        while True:
            cache, info, entry, start, data, release = self._queue.get()
            try:
                entry = entry or cache.enter(info)
                if entry is not None:
                    self._store(entry, start, data)
            finally:
                with self._lock:
                    self._queued_bytes -= len(data)
                release()
                if entry is not None:
                    cache.leave(entry)

    def _store(self, entry: CacheEntry, start: int, data: memoryview) -> None:
        try:
            entry.store(start, data)
        except OSError as error:
            # A full disk, say: nothing is lost but speed.
            log.warning("a range was not cached: %s", error)
            with contextlib.suppress(OSError):
                entry.release(start, start + len(data))


class _Kept(NamedTuple):
    cache: DiskCache
    info: ObjectInfo
    entry: CacheEntry | None
    start: int
    data: memoryview
    release: Callable[[], None]
