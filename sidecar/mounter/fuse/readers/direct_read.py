"""Direct reads: READs that need no read window, fetched by whichever thread takes one.

:mod:`..server` and :mod:`.pool` decide which thread takes a direct read.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from typing import NamedTuple

from sidecar.errors import SidecarError, Stale, to_errno
from sidecar.mounter.fuse.connection import answer, end_if_starved
from sidecar.mounter.reading.fetcher import Fetcher
from sidecar.mounter.store.interface import ObjectInfo

log = logging.getLogger(__name__)

MOST_BYTES = 256 * 1024
"""The largest direct read. Each thread that fetches them keeps memory for one."""


class StaleRead(NamedTuple):
    """A READ without an answer yet, because the version that it reads is gone.

    Attributes:
        unique: the request.
        handle: the open file that is read; None if the kernel opens files by itself.
        size: in bytes, as the request says or less.
    """

    unique: int
    inode: int
    handle: int | None
    offset: int
    size: int


AnswerStale = Callable[[StaleRead], None]
"""Has such a READ answered."""


class DirectRead(NamedTuple):
    """One READ that any thread may fetch and answer.

    Attributes:
        unique: the request.
        handle: the open file that is read; None if the kernel opens files by itself.
        info: the version that is read.
        size: how many of the requested bytes the object has, 1 to MOST_BYTES.
        began_s: when the request was received (perf_counter).
    """

    unique: int
    inode: int
    handle: int | None
    info: ObjectInfo
    offset: int
    size: int
    began_s: float

    def answer(
        self,
        descriptor: int,
        fetcher: Fetcher,
        content: memoryview,
        answer_stale: AnswerStale,
    ) -> memoryview | None:
        """Fetch it into ``content`` and answer it.

        Returns bytes for the disk cache (:meth:`.Fetcher.keep_small`), for which the program must
        not wait. Raises nothing: every READ needs an answer.
        """
        failure: Exception | None = None
        kept = False
        view = content[: self.size]
        try:
            kept = fetcher.fetch_directly(self.info, self.offset, view)
        except Exception as error:
            end_if_starved(error)
            failure = error
            if not isinstance(error, SidecarError | OSError):
                log.exception("a bug: a read of `%s`", self.info.key)
            if isinstance(error, Stale):
                answer_stale(
                    StaleRead(self.unique, self.inode, self.handle, self.offset, self.size)
                )
            else:
                answer(descriptor, self.unique, to_errno(error))
        else:
            answer(descriptor, self.unique, 0, [view])
            fetcher.metrics.read_bytes.inc(self.size)
        took_s = time.perf_counter() - self.began_s
        metrics = fetcher.metrics
        metrics.cache_misses.inc()
        metrics.stall_seconds.inc(took_s)
        metrics.operation("read", took_s, failure)
        return view if kept else None
