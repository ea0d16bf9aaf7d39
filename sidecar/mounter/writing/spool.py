"""The spool: what programs wrote, on disk or in memory, until the store has confirmed it.

:mod:`.uploader` sends it.
"""

from __future__ import annotations

import contextlib
import os
import threading
from collections.abc import Callable, Collection
from pathlib import Path

import msgspec

from sidecar.errors import StateUnusable
from sidecar.mounter.store.interface import Content, FileSlice, ObjectInfo
from sidecar.mounter.store.ranges import Ranges
from sidecar.mounter.system.state_directory import StateDirectory
from sidecar.mounter.writing.descriptors import DescriptorCache
from sidecar.mounter.writing.file_space import holes_in, punch, taken_bytes
from sidecar.mounter.writing.memory_parts import MemoryParts
from sidecar.mounter.writing.part_layout import PartLayout
from sidecar.mounter.writing.part_memory import PartMemory
from sidecar.mounter.writing.spool_budget import SpoolBudget
from sidecar.mounter.writing.spool_log import Attempt, SpoolLog, log_name
from sidecar.mounter.writing.stored_values import SpoolName

_SUFFIX = ".data"
_MEMORY_SUFFIX = ".memory"
_MOST_HOLES = 2_000_000


class SpoolFile:
    """One file's content. Calls must not overlap: the caller holds a lock.

    It is on local disk. Parts of a new file that is written in order may be in memory instead. When
    room is needed, parts that the store has may leave both; they are missing then.

    Attributes:
        name: in the spool's directory.
        layout: how the file is cut into parts.
        in_memory: the parts that are not on disk.
        log: what a successor must know beside the bytes.
        dirty: the store does not have this content yet.
        size_bytes: length.
        base: the object that the file began as, or that was last made of it.
        changed: ranges that differ from ``base``.
        contiguous_bytes: how much was written without a gap, from the beginning on.
        exclusive: made with O_EXCL, and not saved yet.
        failed: the last attempt to save the file failed.
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
        # Zeros that nobody wrote. They take no space here, but must be sent to the store.
        self._holes = Ranges()
        self._is_discarded = False
        with self.hold() as fd:
            self.size_bytes = self.contiguous_bytes = os.fstat(fd).st_size
        self._charge()

    def take_over(self) -> None:
        """Go on with a file of a process that ended. What only its memory knew counts as changed.

        Raises StateUnusable if more of the file is empty than a program may leave empty, or if
        some of it was in memory that is gone.
        """
        self.in_memory.take_over(self.size_bytes)
        self.base = self.log.base
        self.exclusive = self.log.exclusive
        self.attempts = list(self.log.attempts)
        self.missing.intersection_update(self.parts())  # the file may have been cut since
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
        """Close the file and forget it, as if it did not exist."""
        self.in_memory.let_go()
        self._descriptors.forget(self.name)
        self._budget.charge(-self._charged_bytes)
        self._charged_bytes = 0

    def hold(self) -> contextlib.AbstractContextManager[int]:
        """A block with its descriptor. The result of :meth:`content` is valid inside one."""
        return self._descriptors.using(self.name, *self.in_memory.files)

    @property
    def missing(self) -> set[int]:
        """Parts that only the store has."""
        return self.log.missing

    def set_exclusive(self, exclusive: bool) -> None:
        """Set whether its first object must replace none, for this process and a successor."""
        self.exclusive = exclusive
        self.log.note_exclusive(exclusive)

    # --- reading and writing ----------------------------------------------------------------

    def write(self, offset: int, data: bytes | memoryview) -> int:
        """Write all of ``data``; returns its length. Raises SpoolFull, OSError (a full disk).

        None of :meth:`parts_written_by` may be missing.
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
        """The most disk space that a write takes."""
        return self.in_memory.on_disk(offset, size) + max(0, offset - self.size_bytes)

    def _grow_to(self, size_bytes: int) -> None:
        """Extend the file. The gap reads as zeros, which ``base`` does not have there."""
        if size_bytes > self.size_bytes:
            self.changed.add(self.size_bytes, size_bytes)
            self._holes.add(self.size_bytes, size_bytes)

    def _write(self, offset: int, data: bytes | memoryview) -> tuple[int, int]:
        """Write; returns the end of the range, and the space that the file takes now on disk."""
        end = offset + len(data)
        with self.hold() as fd:
            try:
                try:
                    self.in_memory.write(fd, offset, memoryview(data))
                except OSError:  # the disk is full, or the kernel gives no memory
                    if not self.in_memory.move_to(fd, self.size_bytes, offset, len(data)):
                        raise
                    self.in_memory.write(fd, offset, memoryview(data))
                if end > self.size_bytes and self.in_memory:
                    os.ftruncate(fd, end)  # the file on disk has the length, wherever the end is
                    if offset > self.size_bytes:
                        self.in_memory.resize(end)
            except OSError:
                # A full disk: bytes of this write must not show when the file grows later.
                os.ftruncate(fd, self.size_bytes)
                self.in_memory.resize(self.size_bytes)
                raise
            return end, taken_bytes(fd)

    def read(self, offset: int, size: int) -> bytes:
        """Up to ``size`` bytes from ``offset``; fewer only at the end. No part may be missing."""
        with self.hold() as fd:
            if not self.in_memory:
                return os.pread(fd, size, offset)
            size = max(0, min(size, self.size_bytes - offset))
            places = self.in_memory.places(fd, offset, size)
            return b"".join(os.pread(where, length, at) for where, at, length in places)

    def read_through(
        self, offset: int, size: int, fetch: Callable[[int, memoryview], None]
    ) -> memoryview:
        """As :meth:`read`, with missing parts: ``fetch`` fills memory from an offset on."""
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
        """A range to send. The file must be held (:meth:`hold`) meanwhile."""
        with self.hold() as fd:
            places = list(self.in_memory.places(fd, offset, size_bytes))
            return FileSlice(*places[0]) if len(places) == 1 else self.read(offset, size_bytes)

    def truncate(self, size: int) -> None:
        """Set the length; new bytes read as zero and take no space. Raises SpoolFull.

        If the file becomes longer, the part with its old end must not be missing.
        """
        self._budget.check(max(0, size - self.size_bytes))
        with self.hold() as fd:
            os.ftruncate(fd, size)
        self._grow_to(size)
        if size < self.size_bytes:
            self.changed.remove(size, self.size_bytes)
            self._holes.remove(size, self.size_bytes)
            for number in self.missing.difference(self.layout.covering(0, size)):
                self.log.note_present(number)  # the part is gone
        self.in_memory.resize(size)
        self.contiguous_bytes = min(self.contiguous_bytes, size)
        self.size_bytes = size
        self.dirty = True
        self._charge()

    # --- parts -------------------------------------------------------------------------------

    def span(self, number: int) -> tuple[int, int]:
        """Offset and length of a part, by the file's present length."""
        start = self.layout.start(number)
        return start, min(self.layout.size(number), self.size_bytes - start)

    def parts(self) -> range:
        """The numbers of its parts."""
        return self.layout.covering(0, self.size_bytes)

    def parts_written_by(self, offset: int, size: int) -> set[int]:
        """The parts that a write changes."""
        written = set(self.layout.covering(offset, size))
        if self.size_bytes < offset + size:
            # A last part that is not full becomes longer than the store's copy.
            written.add(self.layout.number(self.size_bytes))
        return written

    def is_unchanged(self, number: int) -> bool:
        """Whether a part is the same in ``base``."""
        start, size_bytes = self.span(number)
        end = start + size_bytes
        return (
            self.base is not None
            and end <= self.base.size_bytes
            and not self.changed.touches(start, end)
        )

    def unsettled(self, offset: int, size: int) -> range:
        """The parts that a write begins and that may be in memory (:meth:`MemoryParts.add`).

        Those are parts of a new file that is written in order, except the first: a program that
        writes the header last finds it on disk, and memory would spare the disk nothing of a small
        file.
        """
        is_in_order = offset <= self.size_bytes == self.contiguous_bytes
        if not self.memory.total_bytes or self.base is not None or not is_in_order:
            return range(0)
        begun = self.layout.number(self.size_bytes - 1) if self.size_bytes else 1
        return range(begun + 1, self.layout.number(offset + size - 1) + 1)

    def lacks(self, offset: int, size: int) -> bool:
        """Whether a part of a range is missing."""
        return not self.missing.isdisjoint(self.layout.covering(offset, size))

    def evict(self, numbers: list[int]) -> bool:
        """Give up the bytes of parts that the store has; False if the disk cannot do that."""
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
        """Put the bytes of a missing part back. Raises SpoolFull, OSError."""
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
        """Note that the store has this content as ``base``."""
        if self.missing and base is not None and base != self.log.base:
            self.log.note_base(base)
        self.base = base
        self.changed.clear()
        self._holes.clear()
        self._charge()

    def begin_change(self, remote: ObjectInfo | None) -> None:
        """Note that the content and the store's version ``remote`` may differ from now on."""
        if not self.dirty:
            self.rebase(remote)

    def update_base(self, base: ObjectInfo) -> None:
        """Note that ``base`` has another key or other metadata by now."""
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
        # A hole takes no space, but it will be sent. A program that makes one of a terabyte is told
        # now, and not after the hours that its zeros would take.
        now_bytes += self._holes.size_bytes
        if now_bytes != self._charged_bytes:
            self._budget.charge(now_bytes - self._charged_bytes)
            self._charged_bytes = now_bytes


class Spool:
    """The spool files of one mount.

    Attributes:
        budget: how much disk space the files may take together.
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
        """A predecessor's file.

        Raises:
            FileNotFoundError: it is gone.
            StateUnusable: no predecessor can have made this file or its log.
        """
        try:
            msgspec.convert(name, SpoolName)
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
        """Logs of earlier processes, except those of the spool files ``kept``."""
        logs = {log_name(name) for name in kept}
        return list(SpoolLog.all_in(self._directory, logs))

    def set_aside(self, name: str) -> Path:
        """Move a file that cannot be used to where nothing touches it; returns its new path.

        If some of it was in memory, its log stays with the leftovers: the rest of the file alone is
        not enough to complete its upload.
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
        """:meth:`set_aside` for every file of earlier runs; returns their new paths."""
        names = self._directory.names(_SUFFIX)
        return [self.set_aside(name) for name in names if name not in but]

    def clear(self) -> None:
        """Delete files of earlier runs that nothing refers to."""
        for name in self._directory.names(_SUFFIX):
            try:
                self._directory.remove(name)
            except IsADirectoryError:
                self.set_aside(name)
