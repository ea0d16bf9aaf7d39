"""Reads and writes that bypass the page cache: O_DIRECT, and AIO by io_submit(2).

The C library has no functions for kernel AIO, so the system calls are made by number, as
libaio does.
"""

from __future__ import annotations

import ctypes
import errno
import mmap
import os
import platform
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import NamedTuple, Self

BLOCK_BYTES = 4096
"""Alignment of offsets, sizes and buffers, as local file systems require (open(2))."""

_PREAD, _PWRITE = 0, 1  # IOCB_CMD_*, linux/aio_abi.h
_MOST_AT_ONCE = 16


class _Numbers(NamedTuple):
    """System calls, from asm/unistd.h."""

    setup: int
    destroy: int
    getevents: int
    submit: int


_NUMBERS = {"x86_64": _Numbers(206, 207, 208, 209), "aarch64": _Numbers(0, 1, 4, 2)}
_libc = ctypes.CDLL(None, use_errno=True)


class _ControlBlock(ctypes.Structure):
    """struct iocb of linux/aio_abi.h, on little-endian machines."""

    _fields_ = (
        ("data", ctypes.c_uint64),
        ("key", ctypes.c_uint32),
        ("rw_flags", ctypes.c_uint32),
        ("opcode", ctypes.c_uint16),
        ("priority", ctypes.c_int16),
        ("descriptor", ctypes.c_uint32),
        ("buffer", ctypes.c_uint64),
        ("size_bytes", ctypes.c_uint64),
        ("offset", ctypes.c_int64),
        ("reserved", ctypes.c_uint64),
        ("flags", ctypes.c_uint32),
        ("eventfd", ctypes.c_uint32),
    )


class _Event(ctypes.Structure):
    """struct io_event of linux/aio_abi.h."""

    _fields_ = (
        ("data", ctypes.c_uint64),
        ("control_block", ctypes.c_uint64),
        ("result", ctypes.c_int64),
        ("second_result", ctypes.c_int64),
    )


class DirectFile:
    """A file opened with O_DIRECT. Offsets and sizes are multiples of :data:`BLOCK_BYTES`.

    A context manager.
    """

    def __init__(self, path: Path) -> None:
        self._descriptor = os.open(path, os.O_RDWR | os.O_DIRECT | os.O_CLOEXEC)
        self._context = ctypes.c_ulong(0)
        self._numbers = _NUMBERS[platform.machine()]
        try:
            self._call(self._numbers.setup, _MOST_AT_ONCE, ctypes.byref(self._context))
        except BaseException:
            os.close(self._descriptor)
            raise

    def read(self, offset: int, size_bytes: int) -> bytes:
        """pread(2): fewer bytes only at the end of the file."""
        with mmap.mmap(-1, size_bytes) as buffer:  # Aligned to a page.
            count = os.preadv(self._descriptor, [buffer], offset)
            return buffer[:count]

    def write(self, offset: int, data: bytes) -> None:
        """pwrite(2) of all bytes."""
        with mmap.mmap(-1, len(data)) as buffer:
            buffer[:] = data
            if os.pwritev(self._descriptor, [buffer], offset) != len(data):
                raise OSError(errno.EIO, "a short write")

    def read_many(self, requests: Sequence[tuple[int, int]]) -> list[bytes]:
        """Read each (offset, size); all requests are submitted at once."""
        buffers = [mmap.mmap(-1, size) for _, size in requests]
        offsets = [offset for offset, _ in requests]
        counts = self._submit(_PREAD, offsets, buffers)
        return [buffer[:count] for buffer, count in zip(buffers, counts, strict=True)]

    def write_many(self, requests: Sequence[tuple[int, bytes]]) -> None:
        """Write data at each offset, submitted at once; they must not overlap."""
        buffers = [mmap.mmap(-1, len(data)) for _, data in requests]
        for buffer, (_, data) in zip(buffers, requests, strict=True):
            buffer[:] = data
        counts = self._submit(_PWRITE, [offset for offset, _ in requests], buffers)
        if counts != [len(data) for _, data in requests]:
            raise OSError(errno.EIO, f"short writes: {counts}")

    def close(self) -> None:
        """Destroy the AIO context, and close(2)."""
        self._call(self._numbers.destroy, self._context)
        os.close(self._descriptor)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def _submit(
        self, opcode: int, offsets: Sequence[int], buffers: Sequence[mmap.mmap]
    ) -> list[int]:
        """The byte count of each request, in order. Raises the first error."""
        count = len(buffers)
        blocks = (_ControlBlock * count)()
        pointers = (ctypes.POINTER(_ControlBlock) * count)()
        for place, (offset, buffer) in enumerate(zip(offsets, buffers, strict=True)):
            address = ctypes.addressof(ctypes.c_char.from_buffer(buffer))
            blocks[place] = _ControlBlock(
                data=place,
                opcode=opcode,
                descriptor=self._descriptor,
                buffer=address,
                size_bytes=len(buffer),
                offset=offset,
            )
            pointers[place] = ctypes.pointer(blocks[place])
        taken = 0
        results = [0] * count
        while taken < count:
            first = ctypes.byref(pointers, taken * ctypes.sizeof(ctypes.c_void_p))
            new = self._call(self._numbers.submit, self._context, count - taken, first)
            events = (_Event * new)()
            self._call(self._numbers.getevents, self._context, new, new, events, None)
            for event in events:
                results[event.data] = event.result
            taken += new
        for result in results:
            if result < 0:
                raise OSError(-result, os.strerror(-result))
        return results

    @staticmethod
    def _call(number: int, *arguments: object) -> int:
        converted = [ctypes.c_long(a) if isinstance(a, int) else a for a in arguments]
        result = int(_libc.syscall(ctypes.c_long(number), *converted))
        if result < 0:
            code = ctypes.get_errno()
            raise OSError(code, os.strerror(code))
        return result
