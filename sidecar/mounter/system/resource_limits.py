"""What a mount may use of memory and disk when the spec does not say: from what there is.

Sources: cgroups(7); the kernel's Documentation/admin-guide/cgroup-v2.rst and
cgroup-v1/memory.rst; kubelet eviction (it begins at 10 % free of the node's file system, and
at 15 % of the images').
"""

from __future__ import annotations

import os
from pathlib import Path

MIB = 1024 * 1024

PAGE_CACHE_PART = 2
MEMORY_PART = 4
"""A quarter of the limit is for content; the rest is Python, the page cache, and room."""
LEAST_MEMORY_BYTES = 16 * MIB
MOST_MEMORY_BYTES = 256 * MIB
"""More makes nothing faster: the windows of four fast readers."""
KEPT_FREE = 5
"""A fifth of the file system stays free, so that the kubelet evicts nobody for the cache."""
LEAST_CACHE_BYTES = 64 * MIB
"""Less is not worth its files: no cache."""


def memory_budget_bytes(
    mounts: int, cgroups: Path = Path("/sys/fs/cgroup"), proc: Path = Path("/proc")
) -> int:
    """Memory for one of ``mounts`` mounts, from the container's limit or the machine's size."""
    share = _available_bytes(cgroups, proc) // MEMORY_PART // max(1, mounts)
    return max(LEAST_MEMORY_BYTES, min(MOST_MEMORY_BYTES, share))


def page_cache_bytes(
    mounts: int, cgroups: Path = Path("/sys/fs/cgroup"), proc: Path = Path("/proc")
) -> int:
    """What one of ``mounts`` mounts may have the kernel keep that nobody asked for yet.

    It is charged to this container, and is given back under pressure.
    """
    return _available_bytes(cgroups, proc) // PAGE_CACHE_PART // max(1, mounts)


def cache_budget_bytes(mounts: int, total_bytes: int, free_bytes: int, occupied_bytes: int) -> int:
    """Disk space for the cache of one of ``mounts`` mounts; 0 where there is too little.

    Args:
        total_bytes, free_bytes: of the file system (:func:`disk_bytes`).
        occupied_bytes: what the caches there have already, so that a restart comes to the same.
    """
    usable = free_bytes + occupied_bytes - total_bytes // KEPT_FREE
    share = usable // max(1, mounts)
    return share if share >= LEAST_CACHE_BYTES else 0


def disk_bytes(path: Path) -> tuple[int, int]:
    """(size, free for everybody) of the file system of the nearest parent that exists."""
    while not path.exists():
        path = path.parent
    status = os.statvfs(path)
    return status.f_blocks * status.f_frsize, status.f_bavail * status.f_frsize


def _available_bytes(cgroups: Path, proc: Path) -> int:
    """The container's limit, or the machine's size."""
    return min([*_cgroup_limits(cgroups, proc), _machine_bytes(proc)])


def _cgroup_limits(cgroups: Path, proc: Path) -> list[int]:
    """Every limit from this process's group up to what is visible of the hierarchy."""
    limits: list[int] = []
    for line in (proc / "self" / "cgroup").read_text().splitlines():
        number, controllers, group = line.split(":", 2)
        if number == "0":
            root, name = cgroups, "memory.max"
        elif "memory" in controllers.split(","):
            root, name = cgroups / "memory", "memory.limit_in_bytes"
        else:
            continue
        # A container sees its own group at the root, whatever path its process has.
        below = Path(group.lstrip("/"))
        for folder in (below, *below.parents):
            limits += _limit(root / folder / name)
    return limits


def _limit(file: Path) -> list[int]:
    try:
        text = file.read_text().strip()
    except (FileNotFoundError, NotADirectoryError):
        return []
    return [int(text)] if text.isdigit() else []  # `max`


def _machine_bytes(proc: Path) -> int:
    for line in (proc / "meminfo").read_text().splitlines():
        if line.startswith("MemTotal:"):
            return int(line.split()[1]) * 1024
    raise OSError(f"{proc}/meminfo does not say how much memory there is")
