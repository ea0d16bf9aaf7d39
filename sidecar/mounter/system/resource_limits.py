"""Measures the memory and disk that a container may use, and gives each mount its share.

Sources: cgroups(7); the kernel's Documentation/admin-guide/cgroup-v2.rst and
cgroup-v1/memory.rst; kubelet eviction, which begins when 10 % of the node's file system is free, or
15 % of that of images.
"""

from __future__ import annotations

import os
import resource
from pathlib import Path
from typing import NamedTuple

from sidecar.contract.memory_rule import work_bytes
from sidecar.units import MIB

CGROUPS = Path("/sys/fs/cgroup")
PROC = Path("/proc")

PAGE_CACHE_DIVISOR = 2
MEMORY_DIVISOR = 4
"""A quarter of the limit is for content, or less if the memory rule leaves less for work. The rest
is for Python, the page cache, sockets, and a reserve."""
LEAST_MEMORY_BYTES = 16 * MIB
MOST_MEMORY_BYTES = 256 * MIB
"""Enough for the windows of four fast readers; more makes nothing faster."""
KEPT_FREE_DIVISOR = 5
"""A fifth of the file system stays free, so that the kubelet evicts no pod for the cache."""
LEAST_CACHE_BYTES = 64 * MIB
"""A smaller cache is not worth its files, so there is none."""


def memory_budget_bytes(mounts: int, cached_bytes: int = 0) -> int:
    """Memory in bytes for the content of one of ``mounts`` mounts.

    Args:
        cached_bytes: how much of the limit caches in memory take.
    """
    available = max(0, available_bytes() - cached_bytes)
    share = min(available // MEMORY_DIVISOR // max(1, mounts), work_bytes(available, mounts))
    return max(LEAST_MEMORY_BYTES, min(MOST_MEMORY_BYTES, share))


def names_budget_bytes(mounts: int, cached_bytes: int = 0) -> int:
    """Memory in bytes for the names of one of ``mounts`` mounts: of listings, and of inodes.

    Args:
        cached_bytes: as for :func:`memory_budget_bytes`.
    """
    return work_bytes(available_bytes() - cached_bytes, mounts)


def page_cache_bytes(mounts: int, cached_bytes: int = 0) -> int:
    """Page cache in bytes that one of ``mounts`` mounts may fill with what nobody has asked for.

    It is charged to this container, and the kernel takes it back under pressure.

    Args:
        cached_bytes: as for :func:`memory_budget_bytes`.
    """
    available = max(0, available_bytes() - cached_bytes)
    return available // PAGE_CACHE_DIVISOR // max(1, mounts)


def cache_budget_bytes(mounts: int, total_bytes: int, free_bytes: int, occupied_bytes: int) -> int:
    """Disk space for the cache of one of ``mounts`` mounts; 0 if there is too little.

    Args:
        total_bytes, free_bytes: of the file system (:func:`disk_bytes`).
        occupied_bytes: what the caches there occupy already, so that a restart has the same size.
    """
    usable = free_bytes + occupied_bytes - total_bytes // KEPT_FREE_DIVISOR
    share = usable // max(1, mounts)
    return share if share >= LEAST_CACHE_BYTES else 0


def disk_bytes(path: Path) -> tuple[int, int]:
    """Size and free space of the file system of ``path``, or of its nearest parent that exists."""
    while not path.exists():
        path = path.parent
    status = os.statvfs(path)
    return status.f_blocks * status.f_frsize, status.f_bavail * status.f_frsize


def take_all_descriptors() -> None:
    """Let this process open as many files as it may.

    The soft limit is often 1,024, because of select(2), which is not used here.
    """
    _, most_files = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most_files, most_files))


class MemoryGroup(NamedTuple):
    """A control group with a limit of memory. ``version``: of cgroups, 1 or 2."""

    folder: Path
    version: int
    limit_bytes: int


def memory_groups() -> list[MemoryGroup]:
    """This process's group and every group above it that is visible, if it has a limit."""
    groups: list[MemoryGroup] = []
    names: tuple[str, ...]
    for line in (PROC / "self" / "cgroup").read_text().splitlines():
        number, controllers, group = line.split(":", 2)
        if number == "0":
            root, version, names = CGROUPS, 2, ("memory.max", "memory.high")
        elif "memory" in controllers.split(","):
            root, version, names = CGROUPS / "memory", 1, ("memory.limit_in_bytes",)
        else:
            continue
        # A container sees its own group at the root, whatever path its process has.
        below = Path(group.lstrip("/"))
        for folder in (below, *below.parents):
            limits = [limit for name in names for limit in _limit(root / folder / name)]
            if limits:
                groups.append(MemoryGroup(root / folder, version, min(limits)))
    return groups


def available_bytes() -> int:
    """The smallest memory limit that applies, or the machine's memory."""
    limits = [group.limit_bytes for group in memory_groups()]
    return min([*limits, _machine_bytes()])


def _limit(file: Path) -> list[int]:
    try:
        text = file.read_text().strip()
    except (FileNotFoundError, NotADirectoryError):
        return []
    return [int(text)] if text.isascii() and text.isdigit() and int(text) else []  # `max`


def _machine_bytes() -> int:
    for line in (PROC / "meminfo").read_text().splitlines():
        if line.startswith("MemTotal:"):
            return int(line.split()[1]) * 1024
    raise OSError(f"{PROC}/meminfo does not say how much memory there is")
