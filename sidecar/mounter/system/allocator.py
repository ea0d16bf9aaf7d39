"""The C library's allocator, told to give memory back to the machine (mallopt(3))."""

from __future__ import annotations

import ctypes

_M_MMAP_THRESHOLD = -3
_M_ARENA_MAX = -8
_LARGE_BYTES = 2 * 1024 * 1024
_ARENAS = 2


def give_back_large_blocks() -> None:
    """Blocks of 2 MiB or more are mappings of their own, and few threads have heaps of their own.

    By default glibc learns from the first large block that is freed to keep others of its size in
    its heap, with small ones behind them that hold them there; and each thread has such a heap.
    Does nothing where the C library is another one.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(_M_MMAP_THRESHOLD, _LARGE_BYTES)
        mallopt(_M_ARENA_MAX, _ARENAS)
