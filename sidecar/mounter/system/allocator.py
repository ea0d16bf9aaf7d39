"""The C library's allocator, told to give memory back to the machine (mallopt(3))."""

from __future__ import annotations

import ctypes

_M_MMAP_THRESHOLD = -3
_M_ARENA_MAX = -8
_LARGE_BYTES = 1024 * 1024
_ARENAS = 2


def give_back_large_blocks() -> None:
    """Blocks of 1 MiB or more are mappings of their own, and few threads have heaps of their own.

    By default glibc learns from the first large block that is freed to keep others of its size in
    its heap, with small ones behind them that hold them there; and each thread has such a heap. A
    reader process with windows of 22 MiB had grown to 108 MiB in 15 s, and has 48 MiB so. fork(2)
    hands this down.

    Does nothing where the C library is another one.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(_M_MMAP_THRESHOLD, _LARGE_BYTES)
        mallopt(_M_ARENA_MAX, _ARENAS)
