"""The parts of one spool file that are in memory, and not on disk. Knows bytes and their places."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator

from sidecar.errors import StateUnusable
from sidecar.mounter.writing.part_layout import PartLayout
from sidecar.mounter.writing.part_memory import REGION_BYTES, PartMemory
from sidecar.mounter.writing.spool_log import SpoolLog

_COPY_BYTES = 1024 * 1024


class MemoryParts:
    """The parts of one spool file that are in memory. Calls must not overlap.

    A part is in memory as a whole or not at all. The log says which are, so that what is left
    of the file without this memory is never taken for the file.

    Args:
        number: of the spool file.
    """

    def __init__(self, memory: PartMemory, number: int, layout: PartLayout, log: SpoolLog) -> None:
        self._memory = memory
        self._number = number
        self._layout = layout
        self._log = log
        self._region: int | None = None  # where it begins
        self._parts: dict[int, int] = {}  # bytes reserved, by part

    def __contains__(self, number: int) -> bool:
        return number in self._parts

    def __len__(self) -> int:
        return len(self._parts)

    def take_over(self, size_bytes: int) -> None:
        """Go on with what a predecessor had in memory of a file of this length.

        Raises StateUnusable where the memory is gone.
        """
        if not self._log.in_memory:
            return
        region = self._claim()
        end = 0
        for number in sorted(self._log.in_memory):
            start, size = self._layout.start(number), self._layout.size(number)
            if start >= size_bytes:  # killed before its first byte
                self._log.note_present(number)
                continue
            end_of_it = start + size
            if region is None or end_of_it > REGION_BYTES or not self._memory.has(region + start):
                raise StateUnusable("a part of it was in memory only, which is gone")
            self._memory.empty(region + end, start - end)
            end = end_of_it
            self._parts[number] = size
            self._memory.take(size)
        if region is not None:
            self._memory.empty(region + end, REGION_BYTES - end)
            self.cut(size_bytes)

    def add(self, number: int) -> bool:
        """Have an empty part in memory, or on disk where it has no place in memory.

        False if there is no room in memory now.
        """
        start, size = self._layout.start(number), self._layout.size(number)
        region = self._claim()
        if region is None or start + size > REGION_BYTES or size > self._memory.total_bytes:
            return True
        if not self._memory.reserve(size):
            return False
        try:
            self._log.note_in_memory(number)
        except OSError:  # the disk is full, and the write to it says so
            self._memory.release(size)
        else:
            self._parts[number] = size
        return True

    def remove(self, number: int) -> None:
        """Give up the bytes of a part, if it is here. The log says first what becomes of it."""
        size = self._parts.pop(number, None)
        if size is not None:
            assert self._region is not None
            self._memory.empty(self._region + self._layout.start(number), size)
            self._memory.release(size)

    def cut(self, size_bytes: int) -> None:
        """The file is so long, and what comes behind that reads as zeros."""
        for number in [one for one in self._parts if one >= self._layout.number(size_bytes)]:
            start = self._layout.start(number)
            if start >= size_bytes:
                self._log.note_present(number)  # there is no such part any more
                self.remove(number)
            elif self._region is not None:
                left = start + self._parts[number] - size_bytes
                self._memory.empty(self._region + size_bytes, left)

    def places(self, fd: int, offset: int, size: int) -> Iterator[tuple[int, int, int]]:
        """Where a range is: pieces of it, as descriptor, offset there, and length.

        Args:
            fd: of the file on disk.
        """
        if not self._parts:
            yield fd, offset, size
            return
        end = offset + size
        while offset < end:
            number = self._layout.number(offset)
            size = min(end, self._layout.start(number + 1)) - offset
            if number in self._parts:
                assert self._region is not None
                yield self._memory.descriptor, self._region + offset, size
            else:
                yield fd, offset, size
            offset += size

    def write(self, fd: int, offset: int, view: memoryview) -> None:
        """Write a range where it is. Raises OSError; some of it may be written then."""
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
        return sum(length for fd, _, length in self.places(-2, offset, size) if fd == -2)

    def copy_to(self, fd: int, size_bytes: int) -> None:
        """Have them on disk too, for who goes on without this memory. Raises OSError.

        They stay here for who is just sending them. May overlap with other calls.
        """
        assert self._region is not None or not self._parts
        for number, length in list(self._parts.items()):
            self._copy(number, length, fd, size_bytes)
            self._log.note_copied(number)

    def move_to(self, fd: int, size_bytes: int, offset: int, size: int) -> bool:
        """Have on disk what is here of a range that is being changed. False if nothing is.

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
            data = os.pread(self._memory.descriptor, size, (self._region or 0) + at)
            if os.pwrite(fd, data, at) < size:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    def let_go(self) -> None:
        """Nobody needs them any more."""
        if self._region is not None:
            self._memory.give_back(self._region)
            for size in self._parts.values():
                self._memory.release(size)
        self._parts.clear()
        self._region = None

    def _claim(self) -> int | None:
        if self._region is None:
            self._region = self._memory.claim(self._number)
        return self._region
