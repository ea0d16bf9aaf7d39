"""The budgets of one bucket's process: the spec's, else a share of what is there.

:mod:`sidecar.mounter.system.resource_limits` measures how much is there.
"""

from __future__ import annotations

from pathlib import Path

from sidecar.contract.spec import PersistenceSpec, Volume
from sidecar.mounter.cache import node_folder
from sidecar.mounter.cache.cache_folder import occupied_bytes
from sidecar.mounter.filesystem.inodes.excess_inodes import INODE_BYTES
from sidecar.mounter.filesystem.inodes.inode_table import MOST_INODES
from sidecar.mounter.filesystem.names.name_memory import BUDGET_BYTES
from sidecar.mounter.system import resource_limits
from sidecar.units import MIB

_LEAST_READERS, _USUAL_READERS, _MOST_READERS = 2, 4, 16
_LEAST_READER_BYTES = 16 * MIB
"""If there is less memory for each reader process, there are fewer."""
_MORE_READER_BYTES = 64 * MIB
"""A whole window (:mod:`sidecar.mounter.reading.read_ahead_size`). With this much each, there are
more reader processes."""

_WORKER_DIVISOR = 8
"""The worker's share of the memory for content, if there are reader processes."""

_MOST_STREAM_BYTES = 256 * MIB
"""Enough for thirty parts of 8 MiB, which reach 550 MB/s over connections of 20 MB/s."""


def memory_bytes(spec: PersistenceSpec, volume: Volume) -> int:
    """Memory for content."""
    return volume.options.memory_bytes or resource_limits.memory_budget_bytes(
        len(spec.buckets), spec.memory_cache_bytes
    )


def names(spec: PersistenceSpec) -> tuple[int, int]:
    """Memory for listings, in bytes, and the number of inodes above which some are forgotten."""
    half_bytes = resource_limits.names_budget_bytes(len(spec.buckets), spec.memory_cache_bytes) // 2
    return min(BUDGET_BYTES, half_bytes), min(MOST_INODES, half_bytes // INODE_BYTES)


def stream_bytes(spec: PersistenceSpec, volume: Volume) -> int:
    """Memory for parts on their way: what content and names leave of their two thirds."""
    third = resource_limits.names_budget_bytes(len(spec.buckets), spec.memory_cache_bytes)
    names_bytes, most_inodes = names(spec)
    names_bytes += most_inodes * INODE_BYTES
    return max(0, min(_MOST_STREAM_BYTES, 2 * third - memory_bytes(spec, volume) - names_bytes))


def reader_processes(cores: int, content_bytes: int) -> int:
    """How many reader processes a bucket has: one for each core, as far as its memory goes.

    Each takes 5 MiB for itself, and its streams need a window. Four read some 16 GB/s
    (docs/performance-at-scale.md), so there are more only if much memory is given.

    Args:
        content_bytes: :func:`memory_bytes`.
    """
    usual = min(_USUAL_READERS, max(_LEAST_READERS, content_bytes // _LEAST_READER_BYTES))
    return min(cores, max(usual, min(_MOST_READERS, content_bytes // _MORE_READER_BYTES)))


def content_shares(content_bytes: int, readers: int) -> tuple[int, int]:
    """Shares of the memory for content: the worker's, and that of each reader process.

    The worker reads only files that are written, too.

    Args:
        content_bytes: :func:`memory_bytes`.
        readers: how many reader processes there are; 0: the worker reads everything.
    """
    if not readers:
        return content_bytes, 0
    of_worker = content_bytes // _WORKER_DIVISOR
    return of_worker, (content_bytes - of_worker) // readers


def page_cache_bytes(spec: PersistenceSpec) -> int:
    """How much the kernel may keep in its page cache that no program has asked for."""
    return resource_limits.page_cache_bytes(len(spec.buckets), spec.memory_cache_bytes)


def cache_bytes(spec: PersistenceSpec, volume: Volume, folder: Path) -> int:
    """The limit of the cache in ``folder``; 0: no cache. Raises OSError."""
    if volume.options.cache == "node":
        return node_folder.budget_bytes(folder, spec.node_cache.size_bytes)
    if volume.options.cache_bytes is not None:
        return volume.options.cache_bytes
    mounts = len(spec.buckets)
    total, free = resource_limits.disk_bytes(folder)
    return resource_limits.cache_budget_bytes(mounts, total, free, occupied_bytes(folder) * mounts)
