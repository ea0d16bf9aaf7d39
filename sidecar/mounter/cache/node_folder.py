"""The budget of the folder that a node's pods share, whether any of them runs or not."""

from __future__ import annotations

import os
from pathlib import Path
from typing import NamedTuple

from sidecar.mounter.cache.cache_folder import occupied_bytes
from sidecar.mounter.cache.disk_cache import DiskCache
from sidecar.mounter.system import resource_limits


def budget_bytes(folder: Path, size_bytes: int | None) -> int:
    """The budget of the folder: no more than the disk has room for. Raises OSError.

    Args:
        size_bytes: the admin's limit; None: by the room on the disk.
    """
    total, free = resource_limits.disk_bytes(folder)
    room = resource_limits.cache_budget_bytes(1, total, free, occupied_bytes(folder))
    return room if size_bytes is None else min(size_bytes, room)


class Trimmed(NamedTuple):
    """The budget, and the bytes that were evicted to keep it."""

    budget_bytes: int
    evicted_bytes: int


def trim(folder: Path, size_bytes: int) -> Trimmed:
    """Evict down to the budget, except what is in use.

    Raises:
        OSError: the folder cannot be used.
    """
    budget = budget_bytes(folder, size_bytes)
    if not os.path.lexists(folder):
        return Trimmed(budget, 0)
    cache = DiskCache(folder, "", budget, on_damage=lambda: None)
    try:
        return Trimmed(budget, cache.trim())
    finally:
        cache.close()
