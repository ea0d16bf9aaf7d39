"""Metadata that a listing lacks: one HEAD for each object, some before they are needed.

S3 lists no metadata. A program that asks for the attributes of one entry after another, as ``ls
-l`` and ``find`` do, would wait for a request each time. So while names are asked for in the order
of the listing, the HEADs of the next ones are requested, too.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from concurrent.futures import Executor, Future
from typing import NamedTuple

from sidecar.errors import NotFound, WouldBlock
from sidecar.mounter.filesystem.names.listing import Listing
from sidecar.mounter.filesystem.names.remotes import Remote
from sidecar.mounter.store.interface import ObjectInfo, Store

_PREFETCHED = 32
"""HEADs of this many next entries are requested."""
_MAX_REMEMBERED = 4096


class MetadataVersion(NamedTuple):
    """What changes in a store when an object's metadata change.

    Not the version alone: an ETag of S3 stays when only metadata change.
    """

    version: str
    mtime_s: int

    @classmethod
    def of(cls, info: ObjectInfo) -> MetadataVersion:
        """The value for a listed object, or for the answer to a HEAD."""
        return cls(info.version, int(info.mtime_s))


class _HeadRequest(NamedTuple):
    """One HEAD that was requested.

    Attributes:
        expected: the object that it is about; None: a directory's, of any version.
        answer: None if the object is not there.
    """

    expected: MetadataVersion | None
    answer: Future[ObjectInfo | None]


class MetadataPrefetch:
    """The HEADs of one mount. Safe to use from any thread.

    Args:
        threads: send prefetches; their number bounds the requests at the same time.
    """

    def __init__(self, store: Store, threads: Executor) -> None:
        self._store = store
        self._threads = threads
        self._lock = threading.Lock()
        self._requests: OrderedDict[str, _HeadRequest] = OrderedDict()

    def get(self, key: str, remote: Remote, *, wait: bool = True) -> ObjectInfo | None:
        """The object of a key, with its metadata.

        None if there is none, or none of this version: a program with the old version learns that
        when the lifetime of its name ends. Raises the store's errors, and WouldBlock if the answer
        is not here and ``wait`` is False.
        """
        expected = _expected(remote)
        with self._lock:
            request = self._requests.get(key)
            if request is not None and request.expected != expected:
                del self._requests[key]
                request = None
            is_here = request is not None and (wait or request.answer.done())
            if is_here:
                del self._requests[key]
        if request is not None and is_here:
            return request.answer.result()
        if not wait:
            raise WouldBlock(key)
        return self._request_head(key, expected)

    def prefetch_after(self, prefix: str, listing: Listing, name: str) -> None:
        """Prefetch the names after ``name``, if they are likely to be asked for next.

        Args:
            prefix: the directory's key.
        """
        for next_name, remote in listing.next_if_sequential(name, _PREFETCHED):
            if isinstance(remote, ObjectInfo):
                if remote.metadata is not None:
                    continue
                key = remote.key
            else:
                key = f"{prefix}{next_name}/"
            self._prefetch(key, _expected(remote))

    def _prefetch(self, key: str, expected: MetadataVersion | None) -> None:
        with self._lock:
            request = self._requests.get(key)
            if request is None or request.expected != expected:
                answer = self._threads.submit(self._request_head, key, expected)
                self._requests[key] = _HeadRequest(expected, answer)
                if len(self._requests) > _MAX_REMEMBERED:
                    self._requests.popitem(last=False)

    def _request_head(self, key: str, expected: MetadataVersion | None) -> ObjectInfo | None:
        try:
            info = self._store.head(key)
        except NotFound:
            return None
        if expected is not None and info.version != expected.version:
            return None
        return info


def _expected(remote: Remote) -> MetadataVersion | None:
    return MetadataVersion.of(remote) if isinstance(remote, ObjectInfo) else None
