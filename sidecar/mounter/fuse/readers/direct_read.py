"""READs that concern no other one: fetched as they are, by whichever thread has one."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from typing import NamedTuple

from sidecar.errors import SidecarError, Stale, to_errno
from sidecar.metrics import VolumeMetrics
from sidecar.mounter.fuse.connection import answer, end_if_starved
from sidecar.mounter.store.interface import Fetch, ObjectInfo

log = logging.getLogger(__name__)

AnswerStale = Callable[[int, int, int, int], None]
"""Sees to it that a READ is answered whose version is gone: the request, the number of
:meth:`.readers.Readers.read`, offset and size."""
MOST_BYTES = 256 * 1024
"""Of one read; whoever fetches such reads keeps memory for one."""


class DirectRead(NamedTuple):
    """One READ.

    Attributes:
        unique: the request.
        number: what is read, as in :meth:`.readers.Readers.read`.
        size: what the object has of what was asked for, 1 to MOST_BYTES.
        began_s: when it was read from the connection (perf_counter).
    """

    unique: int
    number: int
    info: ObjectInfo
    offset: int
    size: int
    began_s: float

    def answer(
        self,
        descriptor: int,
        fetch: Fetch,
        content: memoryview,
        metrics: VolumeMetrics,
        answer_stale: AnswerStale,
    ) -> None:
        """Fetch it into ``content`` and answer it, whatever comes of it."""
        failure: Exception | None = None
        view = content[: self.size]
        try:
            fetch(self.info, self.offset, view)
        except Exception as error:  # every READ needs an answer
            end_if_starved(error)
            failure = error
            if not isinstance(error, SidecarError | OSError):
                log.exception("a bug: a read of `%s`", self.info.key)
            if isinstance(error, Stale):
                answer_stale(self.unique, self.number, self.offset, self.size)
            else:
                answer(descriptor, self.unique, to_errno(error))
        else:
            answer(descriptor, self.unique, 0, (view,))
            metrics.read_bytes.inc(self.size)
        took_s = time.perf_counter() - self.began_s
        metrics.cache_misses.inc()
        metrics.stall_seconds.inc(took_s)
        metrics.operation("read", took_s, failure)
