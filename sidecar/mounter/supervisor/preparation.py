"""What process 1 checks before it starts another process. Standard library only."""

from __future__ import annotations

import logging

from sidecar import logs
from sidecar.contract.memory_rule import least_limit_bytes
from sidecar.errors import MemoryTooSmall, StateUnusable
from sidecar.mounter.system import directories, hardening, resource_limits
from sidecar.units import MIB

log = logging.getLogger("sidecar.supervisor")


def check_memory(buckets: int, cached_bytes: int) -> None:
    """Let a lack of memory end one process only, and check that there is enough to start.

    Args:
        cached_bytes: how much of the limit caches in memory take.

    Raises:
        MemoryTooSmall: the limit is less than what the processes take.
    """
    if (why := hardening.end_alone()) is not None:
        message = "one process that runs out of memory will end all of them"
        logs.event(log, message, logging.WARNING, why=why)
    limit_bytes = resource_limits.available_bytes()
    least_bytes = least_limit_bytes(buckets) + cached_bytes
    if limit_bytes < least_bytes:
        raise MemoryTooSmall(
            f"a memory limit of {limit_bytes // MIB}Mi is below the {least_bytes // MIB}Mi that "
            f"{buckets} bucket(s) need",
            "raise the container's limit, in a pod by `mount-sidecar.io/memory-limit`",
        )


def unusable(error: OSError) -> StateUnusable:
    """The error of a directory that cannot be prepared."""
    what = f"cannot prepare `{error.filename}`"
    if isinstance(error, directories.PathBlocked):  # its message names the path
        what = "cannot prepare the state and shared directories"
    return directories.unusable(what, error, "the state and shared directories must be writable")
