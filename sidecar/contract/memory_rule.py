"""How much memory a sidecar needs, by its number of buckets: one rule for both halves.

Measured (docs/sizing.md): what is used idle by tests/reporting/test_footprint.py, what is enough to
work by tests/mount/test_many_names.py and test_memory_limit.py. Bytes everywhere. Standard library
only.
"""

from __future__ import annotations

from sidecar.units import MIB


def idle_bytes(buckets: int) -> int:
    """What all idle processes take together, page cache of their own files included."""
    return (40 + 32 * buckets) * MIB


def least_limit_bytes(buckets: int) -> int:
    """The limit below which no sidecar starts: a large directory would end a worker."""
    return idle_bytes(buckets) + (40 + 48 * buckets) * MIB


def request_bytes(buckets: int) -> int:
    """A pod's default request: half more than the idle size."""
    return idle_bytes(buckets) * 3 // 2


def limit_bytes(buckets: int) -> int:
    """The default limit: enough for everything to be fast."""
    return (256 + 768 * buckets) * MIB


def work_bytes(limit_bytes: int, buckets: int) -> int:
    """What each bucket may use for content, and again for names. The same again is a reserve.

    The reserve is for the page cache, sockets, and holes in Python's memory.
    """
    buckets = max(1, buckets)
    return max(0, limit_bytes - idle_bytes(buckets)) // 3 // buckets
