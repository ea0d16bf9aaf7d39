"""From the spool to the store."""

from __future__ import annotations

import mmap
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor

from sidecar.errors import TooLarge
from sidecar.mounter.filesystem.spool import SpoolFile
from sidecar.mounter.store.base import Condition, ObjectInfo, Store


class Uploader:
    """Sends whole spool files.

    Args:
        threads: send parts; their number bounds the connections that upload.
        part_bytes: part of a multipart upload, raised for objects that would need more
            parts than the store allows.
    """

    def __init__(self, store: Store, threads: ThreadPoolExecutor, part_bytes: int) -> None:
        self._store = store
        self._threads = threads
        self._part_bytes = part_bytes

    def upload(
        self,
        key: str,
        spool: SpoolFile,
        metadata: Mapping[str, str],
        condition: Condition | None = None,
    ) -> ObjectInfo:
        """Make ``key`` the spool file's content; returns the version the store confirmed.

        The old object stays whole until the new one is. Raises what the store raises, and
        TooLarge for what no object of this store can hold.
        """
        size = spool.size_bytes
        limits = self._store.limits
        if size > limits.max_object_bytes:
            raise TooLarge(
                f"`{key}` has {size} bytes; an object of this store holds {limits.max_object_bytes}"
            )
        if size == 0:
            return self._store.put(key, b"", metadata, condition)
        with mmap.mmap(spool.fd, size, prot=mmap.PROT_READ) as mapped, memoryview(mapped) as view:
            if size <= self._part_bytes:
                return self._store.put(key, view, metadata, condition)
            return self._upload_parts(key, view, metadata, condition)

    def _upload_parts(
        self,
        key: str,
        view: memoryview,
        metadata: Mapping[str, str],
        condition: Condition | None,
    ) -> ObjectInfo:
        limits = self._store.limits
        part_bytes = max(self._part_bytes, limits.min_part_bytes, -(-len(view) // limits.max_parts))
        upload = self._store.start_upload(key, metadata)
        try:
            sent = [
                self._threads.submit(upload.put_part, number, view[start : start + part_bytes])
                for number, start in enumerate(range(0, len(view), part_bytes), 1)
            ]
            try:
                for part in sent:
                    part.result()
            finally:
                for part in sent:
                    part.cancel()
                for part in sent:
                    if not part.cancelled():
                        part.exception()
            return upload.complete(condition)
        except BaseException:
            upload.abort()
            raise
