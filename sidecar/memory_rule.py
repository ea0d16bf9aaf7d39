"""How much memory a sidecar needs, by its number of buckets: the one rule, of both halves.

Measured (docs/sizing.md): tests/reporting/test_footprint.py what an idle one takes,
tests/mount/test_many_names.py and test_memory_limit.py what is enough to work. Bytes everywhere.
Standard library only.
"""

from __future__ import annotations

from sidecar.units import MIB


def idle_bytes(buckets: int) -> int:
    """What all processes take that have nothing to do, page cache of their own files included."""
    return (40 + 32 * buckets) * MIB


def least_limit_bytes(buckets: int) -> int:
    """The limit below which no sidecar starts: a worker would be ended by a large directory."""
    return idle_bytes(buckets) + (40 + 48 * buckets) * MIB


def request_bytes(buckets: int) -> int:
    """What a pod asks for, by default: half more than when idle."""
    return idle_bytes(buckets) * 3 // 2


def limit_bytes(buckets: int) -> int:
    """The default limit: enough for everything to be fast."""
    return (256 + 768 * buckets) * MIB


def work_bytes(limit_bytes: int, buckets: int) -> int:
    """What each bucket may take for content, and again for names; as much is in reserve.

    The reserve is for the page cache, sockets, and holes in Python's memory.
    """
    buckets = max(1, buckets)
    return max(0, limit_bytes - idle_bytes(buckets)) // 3 // buckets
