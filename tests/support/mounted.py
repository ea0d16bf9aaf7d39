"""What is mounted at a path."""

from __future__ import annotations

import os

from sidecar.mounter.system.mounts import Mount, mounted


def mounts_at(path: str) -> list[Mount]:
    """The mounts stacked at exactly ``path``, the lowest first."""
    path = os.path.normpath(path)
    return [mount for mount in mounted() if mount.path == path]
