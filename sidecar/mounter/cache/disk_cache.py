"""The disk cache: a folder of object versions within one budget, shared by all who see it.

:mod:`.cache_entry` keeps one object, :mod:`.small_objects` the small ones. Reader processes of one
worker, several workers, and the sidecars of several pods (if the folder is a hostPath) use one
folder at once. They share nothing but the folder.

- The budget is the folder's. A file in it counts the used bytes. The counter is changed under a
  lock, and disk space is allocated (fallocate(2)) under the same lock, so that the counter agrees
  with the disk.
- Beyond the budget, the least recently used objects are evicted, except those in use. If nothing
  can be evicted, nothing is stored.
- If somebody deletes the folder under a running process, it is made again.
- The folder belongs to this user alone (:mod:`.cache_folder`), and no lock in it is waited for
  without limit (:mod:`.file_locks`).
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
from collections import OrderedDict
from collections.abc import Callable, Iterator
from pathlib import Path

from sidecar.mounter.cache.cache_entry import CacheEntry
from sidecar.mounter.cache.cache_folder import (
    MAP_SUFFIX,
    EntryGone,
    FoundEntry,
    files_of,
    open_folder,
    open_own_file,
    open_subfolder,
    scan,
)
from sidecar.mounter.cache.file_locks import LockBusy, Patience
from sidecar.mounter.cache.small_objects import SmallObjects
from sidecar.mounter.cache.write_behind import WriteBehind
from sidecar.mounter.store.interface import ObjectInfo
from sidecar.mounter.system.directories import PathBlocked, open_file
from sidecar.units import MIB

log = logging.getLogger(__name__)

_OPEN_ENTRIES = 128
"""Above this number, unused entries are closed. Each has two descriptors."""
_SLACK_DIVISOR = 32
"""1/32 of the budget is for what file systems add to files, such as extent blocks."""
_EVICTION_DIVISOR = 16
"""1/16 of the budget is evicted beyond need, so that not every store has to scan the folder."""
_OPEN_ATTEMPTS = 5
_MOST_QUEUED_BYTES = 64 * MIB
_USAGE = "usage"
_USED = struct.Struct("<q")  # bytes


class LocalCopy:
    """A whole object as a local file, which is not evicted until :meth:`close`.

    Attributes:
        descriptor: of the file, read only.
    """

    def __init__(self, descriptor: int, cache: DiskCache, entry: CacheEntry) -> None:
        self.descriptor = descriptor
        self._cache = cache
        self._entry = entry

    def close(self) -> None:
        """Close the descriptor, and let the file be evicted."""
        os.close(self.descriptor)
        self._cache.release(self._entry)


class DiskCache:
    """The folder, as one process uses it. Safe to use from several threads.

    Must not be used across a fork: flock(2) locks belong to the open file description, which
    a child shares. Each process makes its own.

    Args:
        origin: tells equal keys apart: where they come from, and who shares its objects.
        budget_bytes: the most bytes on disk of the folder's files together.
        on_damage: called for each block that is not as it was stored.

    Raises:
        OSError: the folder cannot be made or written.
    """

    def __init__(
        self,
        directory: Path,
        origin: str,
        budget_bytes: int,
        on_damage: Callable[[], None],
    ) -> None:
        self._on_damage = on_damage
        self._directory = directory
        self._origin = origin
        self._budget_bytes = budget_bytes - budget_bytes // _SLACK_DIVISOR
        self._lock = threading.Lock()
        self._usage_lock = threading.Lock()  # flock(2) does not tell threads apart
        self._entries: OrderedDict[str, CacheEntry] = OrderedDict()
        self._patience = Patience()
        self._writes = WriteBehind("cache", _MOST_QUEUED_BYTES)
        self._folder = open_folder(directory)
        self._usage_fd = self._open_usage()
        open_subfolder = functools.partial(self._open_subfolder, make=True)
        self._small = SmallObjects(open_subfolder, self, self._budget_bytes, on_damage)
        # A process that was killed may have left the counter wrong.
        with contextlib.suppress(LockBusy), self._locked_usage():
            self._write_used(self._count())

    # --- entries --------------------------------------------------------------------------

    def acquire(self, info: ObjectInfo, *, create: bool = True) -> CacheEntry | None:
        """The entry of a version, protected from eviction until :meth:`release`.

        None if the folder cannot hold it, or if it has no entry and ``create`` is False.
        """
        if not 0 < info.size_bytes <= self._budget_bytes:
            return None
        name = self._name(info)
        with self._lock:
            entry = self._acquire_open(name)
        if entry is not None:
            return entry
        if not create and not self._has(name):
            return None
        try:
            made = self._open(name, info.size_bytes)  # may evict, which takes the lock
        except OSError as error:
            log.warning("an object cannot be cached: %s", error)
            return None
        with self._lock:
            entry = self._acquire_open(name)
            if entry is not None:  # another thread was faster
                made.close()
                return entry
            made.users = 1
            self._entries[name] = made
            if len(self._entries) > _OPEN_ENTRIES:
                self._close_one_idle()
        return made

    def retain(self, entry: CacheEntry) -> None:
        """Count one more user of an acquired entry. That user calls :meth:`release`, too."""
        with self._lock:
            entry.users += 1

    def release(self, entry: CacheEntry) -> None:
        """Count one user less. After the last one the entry may be evicted."""
        with self._lock:
            entry.users -= 1
            if not entry.users:
                entry.mark_unused()

    def open_whole(self, info: ObjectInfo) -> LocalCopy | None:
        """The version as a local file, if it is known to be whole and unaltered.

        If it is whole but not known to be unaltered, a thread compares it for the next open. Small
        objects have no such copy: reading one costs less than opening a copy.
        """
        entry = self.acquire(info, create=False)
        if entry is None:
            return None
        try:
            descriptor = entry.open_sealed()
            compare = descriptor is None and entry.whole and entry.is_private
        except OSError as error:
            log.warning("a cached object cannot be opened: %s", error)
            descriptor, compare = None, False
        if descriptor is not None:
            return LocalCopy(descriptor, self, entry)
        with self._lock:
            compare = compare and not entry.comparing
            entry.comparing = entry.comparing or compare
        if compare:
            # A gigabyte takes a second. This open does not wait for that.
            threading.Thread(target=self._compare, args=(entry,), daemon=True).start()
        else:
            self.release(entry)
        return None

    def _compare(self, entry: CacheEntry) -> None:
        try:
            entry.compare_and_seal()
        except OSError as error:
            log.warning("a cached object cannot be read: %s", error)
        finally:
            entry.comparing = False
            self.release(entry)

    def store_later(
        self,
        info: ObjectInfo,
        entry: CacheEntry | None,
        start: int,
        data: memoryview,
        release: Callable[[], None],
    ) -> None:
        """Store ``data`` of a version, from ``start``, in the background: at once if much waits.

        Then the disk is slower than the store, and the caller waits for the disk. A cache that kept
        only a part would make the next pod fetch the rest again.

        Args:
            entry: the version's entry, acquired by the caller; None for a small object.
            release: called when ``data`` is no longer needed, whether it was stored or not.
        """
        if entry is not None:
            self.retain(entry)
        write = functools.partial(self._store, info, entry, start, data, release)
        if not self._writes.later(len(data), write):
            write()

    def _store(
        self,
        info: ObjectInfo,
        entry: CacheEntry | None,
        start: int,
        data: memoryview,
        release: Callable[[], None],
    ) -> None:
        try:
            if entry is None:
                self.store_small(info, data)
            else:
                entry.store(start, data)
        except OSError as error:
            # A full disk, for example. Only speed is lost.
            log.warning("a range was not cached: %s", error)
            if entry is not None:
                with contextlib.suppress(OSError):
                    entry.unclaim(start, start + len(data))
        finally:
            release()
            if entry is not None:
                self.release(entry)

    # --- small objects --------------------------------------------------------------------

    def read_small(self, info: ObjectInfo, offset: int, buffer: memoryview) -> bool:
        """Fill ``buffer`` from ``offset`` of a small object; False if it is not here."""
        return self._small.read(self._name(info), info.size_bytes, offset, buffer)

    def store_small(self, info: ObjectInfo, content: memoryview) -> None:
        """Store a small object, if that is possible."""
        self._small.store(self._name(info), content)

    # --- files ----------------------------------------------------------------------------

    def _acquire_open(self, name: str) -> CacheEntry | None:
        """One more user of an entry that this process has open; None if it has none. Locked."""
        entry = self._entries.get(name)
        if entry is None:
            return None
        if not entry.users and not entry.mark_used():
            del self._entries[name]
            entry.close()
            return None
        entry.users += 1
        self._entries.move_to_end(name)  # the most recently used is last
        return entry

    def _open(self, name: str, size_bytes: int) -> CacheEntry:
        path = self._directory / name[:2] / name
        for _ in range(_OPEN_ATTEMPTS):
            with contextlib.suppress(EntryGone), self._subfolder(name[:2], make=True) as directory:
                return CacheEntry(
                    directory, path, size_bytes, self, self._patience, self._on_damage
                )
        raise OSError(f"{name} is broken, or is deleted again and again")

    def _has(self, name: str) -> bool:
        try:
            with self._subfolder(name[:2]) as directory:
                os.stat(name, dir_fd=directory, follow_symlinks=False)
        except OSError:
            return False
        return True

    @contextlib.contextmanager
    def _subfolder(self, name: str, *, make: bool = False) -> Iterator[int]:
        """A descriptor of a subfolder, for the block. Raises OSError."""
        descriptor = self._open_subfolder(name, make=make)
        try:
            yield descriptor
        finally:
            os.close(descriptor)

    def _open_subfolder(self, name: str, *, make: bool) -> int:
        try:
            return open_subfolder(self._folder, name, make=make)
        except FileNotFoundError:
            if not make:
                raise
            self._reopen_folder()
            return open_subfolder(self._folder, name, make=True)

    def _reopen_folder(self) -> None:
        """Make a deleted folder again, under the same descriptor, which other threads use."""
        made = open_folder(self._directory)
        os.dup2(made, self._folder, inheritable=False)
        os.close(made)

    def _close_one_idle(self) -> None:
        for name, entry in self._entries.items():
            if not entry.users:
                del self._entries[name]
                entry.close()
                return

    def _name(self, info: ObjectInfo) -> str:
        identity = "\0".join((self._origin, info.key, info.version))
        return hashlib.sha256(identity.encode()).hexdigest()

    # --- the budget -----------------------------------------------------------------------

    def reserve(self, size_bytes: int, allocate: Callable[[], None]) -> bool:
        """Make room for ``size_bytes`` more, and take it by ``allocate``.

        Returns False if everything that could make room is in use. Raises OSError if the disk is
        full.
        """
        with self._locked_usage():
            used = self._read_used()
            if used + size_bytes > self._budget_bytes:
                target = self._budget_bytes - size_bytes - self._budget_bytes // _EVICTION_DIVISOR
                used = self._evict(target)
            if used + size_bytes > self._budget_bytes:
                self._write_used(used)
                return False
            # Before the allocation: a process that dies in between leaves the count too high.
            self._write_used(used + size_bytes)
            try:
                allocate()
            except OSError:
                self._write_used(self._count())
                raise
            return True

    def trim(self) -> int:
        """Evict down to the budget, which may have been larger; the bytes evicted.

        Raises OSError.
        """
        with self._locked_usage():
            used = self._count()
            left = self._evict(self._budget_bytes) if used > self._budget_bytes else used
            self._write_used(left)
            return used - left

    def close(self) -> None:
        """Close the folder. None of its entries may be in use."""
        with contextlib.suppress(OSError), self._locked_usage():
            self._write_used(self._read_used() - self._small.room_bytes)
        for entry in self._entries.values():
            entry.close()
        self._small.close()
        os.close(self._usage_fd)
        os.close(self._folder)

    @property
    def used_bytes(self) -> int:
        """The counted bytes of the folder's files."""
        return self._read_used()

    def _evict(self, target_bytes: int) -> int:
        """Evict the least recently used, down to ``target_bytes``; the bytes left."""
        found = sorted(scan(self._folder), key=lambda entry: entry.used_s)
        used = sum(entry.occupied_bytes for entry in found)
        for entry in found:
            if used <= target_bytes:
                break
            try:
                deleted = self._delete(entry)
            except OSError:  # somebody put a directory there, for example
                continue
            if deleted:
                used -= entry.occupied_bytes
        return used

    def _delete(self, found: FoundEntry) -> bool:
        """Delete one entry unless somebody uses it. The usage lock is held. Raises OSError."""
        with self._lock:
            entry = self._entries.get(found.name)
            if entry is not None and entry.users:
                return False
        map_name = found.name + MAP_SUFFIX
        with contextlib.ExitStack() as stack:
            directory = stack.enter_context(self._subfolder(found.subfolder))
            # The map is not ours, or missing: then nobody's lock counts.
            with contextlib.suppress(FileNotFoundError, PathBlocked):
                descriptor = open_file(directory, map_name, os.O_RDWR)
                stack.callback(os.close, descriptor)
                try:
                    fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                except BlockingIOError:
                    return False
            for name in files_of(found.name):
                with contextlib.suppress(FileNotFoundError):
                    os.unlink(name, dir_fd=directory)
            return True

    def _count(self) -> int:
        """Count the bytes of the files."""
        return sum(found.occupied_bytes for found in scan(self._folder))

    def _open_usage(self) -> int:
        for _ in range(_OPEN_ATTEMPTS):
            with contextlib.suppress(EntryGone):
                return open_own_file(self._folder, _USAGE)
        raise OSError(f"{_USAGE} is replaced again and again")

    @contextlib.contextmanager
    def _locked_usage(self) -> Iterator[None]:
        with self._usage_lock:
            self._lock_usage()
            while os.fstat(self._usage_fd).st_nlink == 0:  # somebody deleted the folder
                self._reopen_folder()
                made = self._open_usage()
                os.close(self._usage_fd)
                self._usage_fd = made
                self._lock_usage()
            try:
                yield
            finally:
                fcntl.flock(self._usage_fd, fcntl.LOCK_UN)

    def _lock_usage(self) -> None:
        descriptor = self._usage_fd
        self._patience.take(lambda: fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB))

    def _read_used(self) -> int:
        data = os.pread(self._usage_fd, _USED.size, 0)
        return int(_USED.unpack(data)[0]) if len(data) == _USED.size else self._count()

    def _write_used(self, used: int) -> None:
        os.pwrite(self._usage_fd, _USED.pack(used), 0)
