"""The spool: what programs wrote, on disk or in memory, until the store has confirmed it.

Knows bytes, parts and budgets; sends nothing.
"""

from __future__ import annotations

import contextlib
import os
import threading
from collections.abc import Callable, Collection
from pathlib import Path

from sidecar.errors import StateUnusable
from sidecar.mounter.store.interface import Content, FileSlice, ObjectInfo
from sidecar.mounter.store.ranges import Ranges
from sidecar.mounter.system.state_directory import StateDirectory
from sidecar.mounter.writing import stored_values
from sidecar.mounter.writing.descriptors import DescriptorCache
from sidecar.mounter.writing.file_space import holes_in, punch, taken_bytes
from sidecar.mounter.writing.memory_parts import MemoryParts
from sidecar.mounter.writing.part_layout import PartLayout
from sidecar.mounter.writing.part_memory import PartMemory
from sidecar.mounter.writing.spool_budget import SpoolBudget
from sidecar.mounter.writing.spool_log import Attempt, SpoolLog, log_name

_SUFFIX = ".data"
_MEMORY_SUFFIX = ".memory"
_MOST_HOLES = 2_000_000


class SpoolFile:
    """One file's content. Calls must not overlap: the caller holds a lock.

    It is on local disk. Parts of a new file that is written in order may be in memory instead.
    Parts that the store has may leave either when room is needed; they are missing then.

    Attributes:
        name: in the spool's directory.
        layout: how it is cut into parts.
        in_memory: the parts that are not on disk.
        log: what a successor must know besides the bytes.
        dirty: the store does not have this content yet.
        size_bytes: length.
        base: the object that it began as, or that was last made of it.
        changed: ranges that ``base`` does not have as they are here.
        contiguous_bytes: how much was written from the beginning on without a gap.
        exclusive: made with O_EXCL, and not saved yet.
        failed: the last attempt to save it failed.
        attempts: objects that may have been made of it since it was last saved.
    """

    def __init__(
        self,
        directory: StateDirectory,
        name: str,
        budget: SpoolBudget,
        descriptors: DescriptorCache,
        layout: PartLayout,
        log: SpoolLog,
        memory: PartMemory,
    ) -> None:
        self.name = name
        self.layout = layout
        self.memory = memory
        self.in_memory = MemoryParts(
            memory, name.removesuffix(_SUFFIX) + _MEMORY_SUFFIX, descriptors, layout, log
        )
        self.log = log
        self.dirty = False
        self.base: ObjectInfo | None = None
        self.changed = Ranges()
        self.exclusive = False
        self.failed = False
        self.attempts: list[Attempt] = []
        self._directory = directory
        self._budget = budget
        self._descriptors = descriptors
        self._charged_bytes = 0
        # Zeros that nobody wrote, and that the store has to be sent: they take no space here.
        self._holes = Ranges()
        self._is_discarded = False
        with self.hold() as fd:
            self.size_bytes = self.contiguous_bytes = os.fstat(fd).st_size
        self._charge()

    def take_over(self) -> None:
        """Go on where a process that ended stopped. What only its memory knew counts as changed.

        Raises StateUnusable where more of it is empty than a program may leave empty, or where
        some of it was in memory that is gone.
        """
        self.in_memory.take_over(self.size_bytes)
        self.base = self.log.base
        self.exclusive = self.log.exclusive
        self.attempts = list(self.log.attempts)
        self.missing.intersection_update(self.parts())  # it may have been cut since
        self.changed.add(0, self.size_bytes)
        with self.hold() as fd:
            for count, (start, end) in enumerate(holes_in(fd, self.size_bytes)):
                if count == _MOST_HOLES:
                    raise StateUnusable(f"`{self._directory.path / self.name}` is full of holes")
                self._holes.add(start, end)
        for number in self.parts():
            start, size_bytes = self.span(number)
            if number in self.missing:
                self.changed.remove(start, start + size_bytes)
            if number in self.missing or number in self.in_memory:
                self._holes.remove(start, start + size_bytes)
        if self._holes.size_bytes > self._budget.total_bytes:
            raise StateUnusable(
                f"`{self._directory.path / self.name}` has {self._holes.size_bytes} bytes that "
                f"nobody wrote; the spool takes {self._budget.total_bytes}"
            )
        self._charge()

    def let_go(self) -> None:
        """Close the file and forget it, as if there was none."""
        self.in_memory.let_go()
        self._descriptors.forget(self.name)
        self._budget.charge(-self._charged_bytes)
        self._charged_bytes = 0

    def hold(self) -> contextlib.AbstractContextManager[int]:
        """A block with its descriptor; what :meth:`content` gives is good inside one."""
        return self._descriptors.using(self.name, *self.in_memory.files)

    @property
    def missing(self) -> set[int]:
        """Parts that only the store has."""
        return self.log.missing

    def set_exclusive(self, exclusive: bool) -> None:
        """Whether its first object must replace none, also for a successor."""
        self.exclusive = exclusive
        self.log.note_exclusive(exclusive)

    # --- reading and writing ----------------------------------------------------------------

    def write(self, offset: int, data: bytes | memoryview) -> int:
        """Write all of ``data``; returns its length. Raises SpoolFull, OSError (a full disk).

        No part of :meth:`parts_written_by` may be missing.
        """
        if not data:
            return 0
        self._budget.check(self.needed_bytes(offset, len(data)))
        self.dirty = True
        position, now_bytes = self._write(offset, data)
        self._grow_to(offset)
        self.changed.add(offset, position)
        if self._holes:
            self._holes.remove(offset, position)
        if offset <= self.contiguous_bytes:
            self.contiguous_bytes = max(self.contiguous_bytes, position)
        self.size_bytes = max(self.size_bytes, position)
        self._charge_for(now_bytes)
        return len(data)

    def needed_bytes(self, offset: int, size: int) -> int:
        """What a write takes of the disk, at most."""
        return self.in_memory.on_disk(offset, size) + max(0, offset - self.size_bytes)

    def _grow_to(self, size_bytes: int) -> None:
        """A gap reads as zeros, which no object has there."""
        if size_bytes > self.size_bytes:
            self.changed.add(self.size_bytes, size_bytes)
            self._holes.add(self.size_bytes, size_bytes)

    def _write(self, offset: int, data: bytes | memoryview) -> tuple[int, int]:
        """Returns where it ends, and how much of the disk the file takes now."""
        end = offset + len(data)
        with self.hold() as fd:
            try:
                try:
                    self.in_memory.write(fd, offset, memoryview(data))
                except OSError:  # of the disk, unless it is memory that the kernel does not give
                    if not self.in_memory.move_to(fd, self.size_bytes, offset, len(data)):
                        raise
                    self.in_memory.write(fd, offset, memoryview(data))
                if end > self.size_bytes and self.in_memory:
                    os.ftruncate(fd, end)  # which says how long it is, wherever its end is
                    if offset > self.size_bytes:
                        self.in_memory.resize(end)
            except OSError:
                # A full disk: what was written of it must not show when the file grows later.
                os.ftruncate(fd, self.size_bytes)
                self.in_memory.resize(self.size_bytes)
                raise
            return end, taken_bytes(fd)

    def read(self, offset: int, size: int) -> bytes:
        """Up to ``size`` bytes from ``offset``; fewer only at the end. None of them is missing."""
        with self.hold() as fd:
            if not self.in_memory:
                return os.pread(fd, size, offset)
            size = max(0, min(size, self.size_bytes - offset))
            places = self.in_memory.places(fd, offset, size)
            return b"".join(os.pread(where, length, at) for where, at, length in places)

    def read_through(
        self, offset: int, size: int, fetch: Callable[[int, memoryview], None]
    ) -> memoryview:
        """:meth:`read` where parts are missing: ``fetch`` fills memory from an offset on."""
        size = max(0, min(size, self.size_bytes - offset))
        data = memoryview(bytearray(size))
        for number in self.layout.covering(offset, size):
            start, length = self.span(number)
            first, last = max(start, offset), min(start + length, offset + size)
            here = data[first - offset : last - offset]
            if number in self.missing:
                fetch(first, here)
            else:
                here[:] = self.read(first, last - first)
        return data

    def content(self, offset: int, size_bytes: int) -> Content:
        """A range to be sent, which must be held (:meth:`hold`) meanwhile."""
        with self.hold() as fd:
            places = list(self.in_memory.places(fd, offset, size_bytes))
            return FileSlice(*places[0]) if len(places) == 1 else self.read(offset, size_bytes)

    def truncate(self, size: int) -> None:
        """Set the length; new bytes read as zero and take no space. Raises SpoolFull.

        Where it becomes longer, the part that its end lies in is not missing.
        """
        self._budget.check(max(0, size - self.size_bytes))
        with self.hold() as fd:
            os.ftruncate(fd, size)
        self._grow_to(size)
        if size < self.size_bytes:
            self.changed.remove(size, self.size_bytes)
            self._holes.remove(size, self.size_bytes)
            for number in self.missing.difference(self.layout.covering(0, size)):
                self.log.note_present(number)  # there is no such part any more
        self.in_memory.resize(size)
        self.contiguous_bytes = min(self.contiguous_bytes, size)
        self.size_bytes = size
        self.dirty = True
        self._charge()

    # --- parts -------------------------------------------------------------------------------

    def span(self, number: int) -> tuple[int, int]:
        """Offset and length of a part, as long as the file is."""
        start = self.layout.start(number)
        return start, min(self.layout.size(number), self.size_bytes - start)

    def parts(self) -> range:
        """The numbers of its parts."""
        return self.layout.covering(0, self.size_bytes)

    def parts_written_by(self, offset: int, size: int) -> set[int]:
        """The parts that a write changes."""
        written = set(self.layout.covering(offset, size))
        if self.size_bytes < offset + size:
            # A part at the end that is not full becomes longer than the store's.
            written.add(self.layout.number(self.size_bytes))
        return written

    def is_unchanged(self, number: int) -> bool:
        """Whether ``base`` has a part as it is here."""
        start, size_bytes = self.span(number)
        end = start + size_bytes
        return (
            self.base is not None
            and end <= self.base.size_bytes
            and not self.changed.touches(start, end)
        )

    def unsettled(self, offset: int, size: int) -> range:
        """The parts that a write begins and that may be in memory (:meth:`MemoryParts.add`).

        Those of a new file that is written in order, but for the first: who writes a header last
        finds it on disk, and of a small file memory spares the disk nothing.
        """
        is_in_order = offset <= self.size_bytes == self.contiguous_bytes
        if not self.memory.total_bytes or self.base is not None or not is_in_order:
            return range(0)
        begun = self.layout.number(self.size_bytes - 1) if self.size_bytes else 1
        return range(begun + 1, self.layout.number(offset + size - 1) + 1)

    def lacks(self, offset: int, size: int) -> bool:
        """Whether some of a range is missing."""
        return not self.missing.isdisjoint(self.layout.covering(offset, size))

    def evict(self, numbers: list[int]) -> bool:
        """Give up the bytes of parts that the store has; False where the disk cannot."""
        self.log.note_missing(numbers)
        with self.hold() as fd:
            for number in numbers:
                if number in self.in_memory:
                    self.in_memory.remove(number)
                elif not punch(fd, *self.span(number)):
                    return False
        self._charge()
        return True

    def recall(self, number: int, data: memoryview) -> None:
        """The bytes of a missing part are back. Raises SpoolFull, OSError."""
        self._budget.check(len(data))
        _, now_bytes = self._write(self.layout.start(number), data)
        self.log.note_present(number)
        self._charge_for(now_bytes)

    # --- the version in the store ------------------------------------------------------------

    def begin_as(self, base: ObjectInfo) -> None:
        """Become as long as an object, with all parts missing."""
        with self.hold() as fd:
            os.ftruncate(fd, base.size_bytes)
        self.size_bytes = self.contiguous_bytes = base.size_bytes
        self.rebase(base)
        self.log.note_base(base)
        self.log.note_missing(list(self.parts()))

    def rebase(self, base: ObjectInfo | None) -> None:
        """The store has this content as ``base``."""
        if self.missing and base is not None and base != self.log.base:
            self.log.note_base(base)
        self.base = base
        self.changed.clear()
        self._holes.clear()
        self._charge()

    def begin_change(self, remote: ObjectInfo | None) -> None:
        """From here on the content and the store's version ``remote`` may differ."""
        if not self.dirty:
            self.rebase(remote)

    def update_base(self, base: ObjectInfo) -> None:
        """The object that it began as has another key by now, or other metadata."""
        if base != self.base:
            self.base = base
            if self.missing:
                self.log.note_base(base)

    # --- disk space ----------------------------------------------------------------------------

    def discard(self) -> None:
        """Delete the file, and give its space back."""
        if self._is_discarded:
            return
        self._is_discarded = True
        self.let_go()
        self._directory.remove(self.name)
        self.log.discard()

    def _charge(self) -> None:
        with self.hold() as fd:
            now_bytes = taken_bytes(fd)
        self._charge_for(now_bytes)

    def _charge_for(self, now_bytes: int) -> None:
        # A hole takes no space, but it will be sent: who makes one of a terabyte is told now, and
        # not after the hours that its zeros would take.
        now_bytes += self._holes.size_bytes
        if now_bytes != self._charged_bytes:
            self._budget.charge(now_bytes - self._charged_bytes)
            self._charged_bytes = now_bytes


class Spool:
    """The spool files of one mount.

    Attributes:
        budget: how much disk space they may take together.
        memory: for parts of them.
        layout: how they are cut into parts.
        path: where they are, for messages.
    """

    def __init__(
        self,
        directory: StateDirectory,
        total_bytes: int,
        layout: PartLayout,
        memory: PartMemory | None = None,
    ) -> None:
        self.budget = SpoolBudget(total_bytes)
        self.memory = memory if memory is not None else PartMemory()
        self.layout = layout
        self.path = directory.path
        self._directory = directory
        self._descriptors = DescriptorCache(self._open)
        self._lock = threading.Lock()
        self._next = 0

    def _open(self, name: str) -> int:
        if name.endswith(_MEMORY_SUFFIX):
            return self.memory.open(name)
        return self._directory.open_file(name, os.O_RDWR)

    def create(self) -> SpoolFile:
        """A new, empty spool file."""
        with self._lock:
            while True:
                name = f"{self._next:08d}{_SUFFIX}"
                self._next += 1
                if not self._directory.exists(log_name(name)):
                    with contextlib.suppress(FileExistsError):
                        os.close(self._directory.create_file(name))
                        break
            return self._file(name, SpoolLog(self._directory, log_name(name)))

    def adopt(self, name: str) -> SpoolFile:
        """The file that a predecessor left.

        Raises:
            FileNotFoundError: it is gone.
            StateUnusable: it is no file that a predecessor can have made, or its log is none.
        """
        try:
            stored_values.spool_name(name)
        except ValueError as error:
            raise StateUnusable(str(error)) from None
        size_bytes = self._size(name)
        if size_bytes > self.layout.most_bytes:
            raise StateUnusable(f"`{self.path / name}` has {size_bytes} bytes: more than any file")
        file = self._file(name, SpoolLog.read(self._directory, log_name(name)))
        try:
            file.take_over()
        except StateUnusable:
            file.let_go()
            raise
        return file

    def _size(self, name: str) -> int:
        descriptor = self._directory.open_file(name)
        try:
            return os.fstat(descriptor).st_size
        finally:
            os.close(descriptor)

    def _file(self, name: str, log: SpoolLog) -> SpoolFile:
        return SpoolFile(
            self._directory, name, self.budget, self._descriptors, self.layout, log, self.memory
        )

    def leftovers(self, kept: Collection[str] = ()) -> list[SpoolLog]:
        """Logs of processes before this one, but for those of the spool files ``kept``."""
        logs = {log_name(name) for name in kept}
        return list(SpoolLog.all_in(self._directory, logs))

    def set_aside(self, name: str) -> Path:
        """Keep a file that cannot be used where nothing here touches it; returns its new path.

        Where some of it was in memory, its log stays with the leftovers: with the rest of the file
        alone nobody can complete its upload.
        """
        self._descriptors.forget(name)
        kept, moved = name, [log_name(name), name]
        with contextlib.suppress(StateUnusable):
            if SpoolLog.read(self._directory, moved[0]).in_memory:
                del moved[0]
        for one in moved:
            with contextlib.suppress(FileNotFoundError):
                kept = self._directory.set_aside(one)
        return self.path / kept

    def set_all_aside(self, but: Collection[str] = ()) -> list[Path]:
        """:meth:`set_aside` of every file of runs before this one; returns their new paths."""
        names = self._directory.names(_SUFFIX)
        return [self.set_aside(name) for name in names if name not in but]

    def clear(self) -> None:
        """Delete files of runs before this one that nothing leads to."""
        for name in self._directory.names(_SUFFIX):
            try:
                self._directory.remove(name)
            except IsADirectoryError:
                self.set_aside(name)
