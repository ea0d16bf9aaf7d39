"""The budgets of one bucket's process: what the spec says, else a share of what there is.

How much there is, is measured in :mod:`sidecar.mounter.system.resource_limits`.
"""

from __future__ import annotations

from pathlib import Path

from sidecar.mounter.cache.cache_folder import occupied_bytes
from sidecar.mounter.system import resource_limits
from sidecar.spec import PersistenceSpec


def memory_bytes(spec: PersistenceSpec) -> int:
    """Memory for content."""
    return spec.sizes.memory_bytes or resource_limits.memory_budget_bytes(len(spec.buckets))


def page_cache_bytes(spec: PersistenceSpec) -> int:
    """What the kernel may keep in its page cache that no program has asked for."""
    return resource_limits.page_cache_bytes(len(spec.buckets))


def cache_bytes(spec: PersistenceSpec, folder: Path) -> int:
    """Disk space for the cache in ``folder``; 0 for no cache. Raises OSError."""
    if spec.sizes.cache_bytes is not None:
        return spec.sizes.cache_bytes
    # A folder that all mounts share has one budget; else each mount has its part of the disk.
    mounts = 1 if spec.roots.cache else len(spec.buckets)
    total, free = resource_limits.disk_bytes(folder)
    return resource_limits.cache_budget_bytes(mounts, total, free, occupied_bytes(folder) * mounts)
