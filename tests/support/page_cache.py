"""Which pages of a file the kernel has in its page cache (mincore(2)).

Some machines reclaim pages that nobody has used for a minute. A test that is slow because it lacks
a processor then finds less than it read.
"""

from __future__ import annotations

import ctypes
import mmap

_libc = ctypes.CDLL(None, use_errno=True)
_PAGE_BYTES = mmap.PAGESIZE


def resident_pages(descriptor: int, size_bytes: int) -> bytes:
    """One byte for each page of the file: 1 if the kernel has it."""
    with mmap.mmap(descriptor, size_bytes, mmap.MAP_PRIVATE) as mapped:
        states = (ctypes.c_ubyte * -(-size_bytes // _PAGE_BYTES))()
        start = ctypes.c_char.from_buffer(mapped)
        failed = _libc.mincore(ctypes.byref(start), ctypes.c_size_t(size_bytes), states)
        del start  # the mapping cannot be closed while something refers to it
        assert not failed, ctypes.get_errno()
    return bytes(state & 1 for state in states)
