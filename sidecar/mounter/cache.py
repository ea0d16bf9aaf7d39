"""Objects that lie whole on local disk, by what they are: store, key and version."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

from sidecar.mounter.store.base import ObjectInfo


class LocalCopies:
    """A directory of whole objects. A name holds one version for ever, so it is never stale.

    Args:
        store_url: tells equal keys of different buckets apart.
    """

    def __init__(self, directory: Path, store_url: str) -> None:
        self._directory = directory
        self._store_url = store_url

    def path(self, info: ObjectInfo) -> Path:
        """Where the copy of a version lies, if there is one."""
        identity = "\0".join((self._store_url, info.key, info.version))
        return self._directory / hashlib.sha256(identity.encode()).hexdigest()

    def open(self, info: ObjectInfo) -> int | None:
        """A descriptor of the copy, or None where there is none of the right length."""
        try:
            descriptor = os.open(self.path(info), os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
        except OSError:
            return None
        if os.fstat(descriptor).st_size != info.size_bytes:
            os.close(descriptor)
            return None
        return descriptor
