"""Metadata that a listing does not bring: one HEAD for each version, some ahead of who asks.

S3 lists no metadata. Who asks for the attributes of one entry after another, as ``ls -l`` and
``find`` do, would wait for a request each time; so while names are asked for in the order of
the listing, the next ones are asked for at the same time.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from concurrent.futures import Executor, Future

from sidecar.errors import NotFound, WouldBlock
from sidecar.mounter.filesystem.listing import Listing, Remote
from sidecar.mounter.filesystem.names import object_key
from sidecar.mounter.store.interface import ObjectInfo, Store

AHEAD = 32
"""How many of the next entries are asked for."""
_REMEMBERED = 4096

Stamp = tuple[str, int] | None
"""What the metadata belong to: version and second of the last change; None for a directory."""
Found = ObjectInfo | None
"""The object as HEAD shows it; None for what is not there, or has another version by now."""


class MetadataPrefetch:
    """The HEADs of one mount. Safe to use from any thread.

    Args:
        threads: ask ahead; their number bounds the requests at the same time.
    """

    def __init__(self, store: Store, threads: Executor) -> None:
        self._store = store
        self._threads = threads
        self._lock = threading.Lock()
        self._coming: OrderedDict[str, tuple[Stamp, Future[Found]]] = OrderedDict()

    def get(self, key: str, remote: Remote, *, wait: bool = True) -> Found:
        """An object with its metadata, or a directory's object (``remote`` None).

        None for what is not there, or has another version by now: who believes in the old one
        will hear of it when the lifetime of its name ends. Raises what the store raises, and
        WouldBlock where the answer is not here and the caller does not ``wait``.
        """
        stamp = stamp_of(remote)
        with self._lock:
            asked_stamp, coming = self._coming.get(key, (None, None))
            if coming is not None and asked_stamp != stamp:
                del self._coming[key]
                coming = None
            if coming is not None and (wait or coming.done()):
                del self._coming[key]
        if coming is None:
            if not wait:
                raise WouldBlock(key)
            return self._ask(key, stamp)
        if not (wait or coming.done()):
            raise WouldBlock(key)
        return coming.result()

    def look_ahead(self, prefix: str, listing: Listing, name: str) -> None:
        """``name`` was asked for; if that is the order of the listing, ask for the next ones."""
        for next_name, remote in listing.follow(name, AHEAD):
            key = object_key(prefix, next_name, remote)
            if remote is None or remote.metadata is None:
                stamp = stamp_of(remote)
                with self._lock:
                    if self._coming.get(key, (None, None))[0] == stamp and key in self._coming:
                        continue
                    self._coming[key] = stamp, self._threads.submit(self._ask, key, stamp)
                    if len(self._coming) > _REMEMBERED:
                        self._coming.popitem(last=False)

    def _ask(self, key: str, stamp: Stamp) -> Found:
        try:
            found = self._store.head(key)
        except NotFound:
            return None
        if stamp is not None and found.version != stamp[0]:
            return None
        return found


def stamp_of(remote: ObjectInfo | None) -> Stamp:
    """What metadata belong to. A change of metadata alone need not change an ETag of S3."""
    return (remote.version, int(remote.mtime_s)) if remote is not None else None
