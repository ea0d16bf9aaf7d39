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
    ) -> None:
        """Fetch it into ``content``, answer it, and keep a small object in the disk cache.

        The program does not wait for the disk. Raises nothing: every READ needs an answer.
        """
        failure: Exception | None = None
        kept = False
        view = content[: self.size]
        try:
            kept = fetcher.fetch_directly(self.info, self.offset, view)
        except Exception as error:  # noqa: BLE001 - the answer
            failure = error
            read = StaleRead(self.unique, self.inode, self.handle, self.offset, self.size)
            answer_failure(descriptor, error, read, self.info.key, answer_stale)
        else:
            answer(descriptor, self.unique, 0, [view])
            fetcher.metrics.read_bytes.inc(self.size)
        took_s = time.perf_counter() - self.began_s
        metrics = fetcher.metrics
        metrics.cache_misses.inc()
        metrics.stall_seconds.inc(took_s)
        metrics.operation("read", took_s, failure)
        if kept:
            fetcher.keep_small(self.info, view)


def answer_failure(
    descriptor: int, failure: Exception, read: StaleRead, key: str, answer_stale: AnswerStale
) -> None:
    """Answer a READ of an object that failed.

    Args:
        read: the READ, in case its version is gone.
    """
    end_if_starved(failure)
    if not isinstance(failure, SidecarError | OSError):
        log.error("a bug: a read of `%s`", key, exc_info=failure)
    if isinstance(failure, Stale):
        answer_stale(read)
    else:
        answer(descriptor, read.unique, to_errno(failure))
