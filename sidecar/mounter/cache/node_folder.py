"""The budget of the folder that the pods of a node share, whether any of them runs or not."""

from __future__ import annotations

import os
from pathlib import Path
from typing import NamedTuple

from sidecar.mounter.cache.cache_folder import occupied_bytes
from sidecar.mounter.cache.disk_cache import DiskCache
from sidecar.mounter.system import resource_limits


def budget_bytes(folder: Path, size_bytes: int | None) -> int:
    """What the folder may occupy: not more than the disk has room for. Raises OSError.

    Args:
        size_bytes: what the admin allows; None: what there is room for.
    """
    total, free = resource_limits.disk_bytes(folder)
    room = resource_limits.cache_budget_bytes(1, total, free, occupied_bytes(folder))
    return room if size_bytes is None else min(size_bytes, room)


class Trimmed(NamedTuple):
    """What is left: the budget, and the bytes that were evicted for it."""

    budget_bytes: int
    evicted_bytes: int


def trim(folder: Path, size_bytes: int) -> Trimmed:
    """Evict what is beyond the budget, except what is in use.

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
