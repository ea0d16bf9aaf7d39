"""The parts of one spool file that are in memory and not on disk."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator

from sidecar.errors import StateUnusable
from sidecar.mounter.writing.descriptors import DescriptorCache
from sidecar.mounter.writing.file_space import next_data, punch
from sidecar.mounter.writing.part_layout import PartLayout
from sidecar.mounter.writing.part_memory import PartMemory
from sidecar.mounter.writing.spool_log import SpoolLog

_COPY_BYTES = 1024 * 1024


class MemoryParts:
    """The parts of one spool file that are in memory. Calls must not overlap.

    A part is in memory as a whole or not at all. The log says which parts are, so that the rest of
    the file without this memory is never taken for the whole file.

    Args:
        name: of the file with these parts, in the directory in memory.
        descriptors: of files in that directory, too.
    """

    def __init__(
        self,
        memory: PartMemory,
        name: str,
        descriptors: DescriptorCache,
        layout: PartLayout,
        log: SpoolLog,
    ) -> None:
        self._memory = memory
        self._name = name
        self._descriptors = descriptors
        self._layout = layout
        self._log = log
        self._exists = False
        self._parts: dict[int, int] = {}  # bytes reserved, by part

    @property
    def files(self) -> tuple[str, ...]:
        """Names of the files with parts of this one. Readers and writers hold them."""
        return (self._name,) if self._exists else ()

    def __contains__(self, number: int) -> bool:
        return number in self._parts

    def __len__(self) -> int:
        return len(self._parts)

    def take_over(self, size_bytes: int) -> None:
        """Go on with a predecessor's parts of a file of this length.

        Raises StateUnusable if the memory is gone.
        """
        if not self._log.in_memory:
            return
        self._exists = self._memory.adopt(self._name)
        end = 0
        for number in sorted(self._log.in_memory):
            start, size = self._layout.start(number), self._layout.size(number)
            if start >= size_bytes:  # killed before its first byte
                self._log.note_present(number)
                continue
            if not self._has(start):
                raise StateUnusable("a part of it was in memory only, which is gone")
            self._empty(end, start)
            end = start + size
            self._parts[number] = size
            self._memory.take(size)
        self.resize(min(end, size_bytes))
        self.resize(size_bytes)

    def add(self, number: int) -> bool:
        """Make an empty part in memory, or on disk if memory does not take it.

        False if there is no room in memory now.
        """
        size = self._layout.size(number)
        if size > self._memory.total_bytes:
            return True
        if not self._memory.reserve(size):
            return False
        try:
            if not self._exists:
                self._memory.create(self._name)
                self._exists = True
            self._log.note_in_memory(number)
        except OSError:  # the disk is full; the write to it will say so
            self._memory.release(size)
        else:
            self._parts[number] = size
        return True

    def remove(self, number: int) -> None:
        """Give up the bytes of a part, if it is here. The log must have noted it before."""
        size = self._parts.pop(number, None)
        if size is not None:
            start = self._layout.start(number)
            self._empty(start, start + size)
            self._memory.release(size)

    def resize(self, size_bytes: int) -> None:
        """Set the file's length. Bytes after it will read as zeros."""
        for number in [one for one in self._parts if one >= self._layout.number(size_bytes)]:
            if self._layout.start(number) >= size_bytes:
                self._log.note_present(number)  # the part is gone
                self.remove(number)
        if self._exists:
            with self._descriptors.using(self._name) as fd:
                os.ftruncate(fd, size_bytes)

    def places(self, fd: int, offset: int, size: int) -> Iterator[tuple[int, int, int]]:
        """The places of a range's pieces: descriptor, offset in its file, and length.

        Args:
            fd: of the file on disk. The caller holds it, and :attr:`files`.
        """
        if not self._parts:
            yield fd, offset, size
            return
        for number, start, length in self._pieces(offset, size):
            where = self._descriptors.held(self._name) if number in self._parts else fd
            yield where, start, length

    def _pieces(self, offset: int, size: int) -> Iterator[tuple[int, int, int]]:
        """The parts that a range overlaps: number, offset and length of the overlap."""
        end = offset + size
        for number in self._layout.covering(offset, size):
            stop = min(end, self._layout.start(number + 1))
            yield number, offset, stop - offset
            offset = stop

    def write(self, fd: int, offset: int, view: memoryview) -> None:
        """Write a range where its pieces are. Raises OSError; some may be written then."""
        for where, start, size in self.places(fd, offset, len(view)):
            done = 0
            while done < size:
                written = os.pwrite(where, view[: size - done], start + done)
                view = view[written:]
                done += written

    def on_disk(self, offset: int, size: int) -> int:
        """How many bytes of a range are not in memory."""
        if not self._parts:
            return size
        pieces = self._pieces(offset, size)
        return sum(length for number, _, length in pieces if number not in self._parts)

    def copy_to(self, fd: int, size_bytes: int) -> None:
        """Copy the parts to disk, for a successor without this memory. Raises OSError.

        They stay here for threads that are sending them. May overlap with other calls.
        """
        for number, length in list(self._parts.items()):
            if number in self._log.in_memory:
                self._copy(number, length, fd, size_bytes)
                self._log.note_copied(number)

    def move_to(self, fd: int, size_bytes: int, offset: int, size: int) -> bool:
        """Move parts of a range that is being changed to disk. False if none was here.

        Raises OSError.
        """
        numbers = [one for one in self._layout.covering(offset, size) if one in self._parts]
        for number in numbers:
            self._copy(number, self._parts[number], fd, size_bytes)
            self._log.note_present(number)
            self.remove(number)
        return bool(numbers)

    def _copy(self, number: int, length: int, fd: int, size_bytes: int) -> None:
        start = self._layout.start(number)
        for at in range(start, min(start + length, size_bytes), _COPY_BYTES):
            size = min(_COPY_BYTES, start + length - at, size_bytes - at)
            data = os.pread(self._descriptors.held(self._name), size, at)
            if os.pwrite(fd, data, at) < size:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    def let_go(self) -> None:
        """Free everything: nobody needs the parts any more."""
        if self._exists:
            self._descriptors.forget(self._name)
            self._memory.remove(self._name)
            for size in self._parts.values():
                self._memory.release(size)
        self._parts.clear()
        self._exists = False

    def _has(self, offset: int) -> bool:
        """Whether something was written at an offset."""
        if not self._exists:
            return False
        with self._descriptors.using(self._name) as fd:
            return next_data(fd, offset, offset + 1) == offset

    def _empty(self, start: int, end: int) -> None:
        """Give pages back; the range then reads as zeros."""
        if start < end:
            with self._descriptors.using(self._name) as fd:
                punch(fd, start, end - start)
