"""Which kinds of calls to the store fail now: logged once, counted, reported.

Every call passes ``http.retry``, which tells the process's :class:`Outcomes` how it ended. News go
to the worker's :class:`Failures`, from the reader processes, too, and from there to the supervisor
for the status document.

A call that works costs a look at one byte, which all processes of a worker share.
"""

from __future__ import annotations

import datetime as dt
import logging
import mmap
import threading
import time
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass
from typing import Any, Final, NamedTuple

from sidecar import logs
from sidecar.errors import SidecarError, from_message, is_store_failure
from sidecar.metrics import VolumeMetrics

log = logging.getLogger(__name__)

QUIET_S: Final = 5.0
"""A kind of call works again if one has worked and none has failed for this long. So a store
that refuses some objects and not others has one failure, not one for each object."""

_KINDS: Final = ("list", "read", "write", "delete")
_KIND_OF: Final = {
    "list": 0,
    "head": 1,
    "get": 1,
    "put": 2,
    "part": 2,
    "complete": 2,
    "copy": 2,
    "delete": 3,
    "abort": 3,
    "login": 0,
}
"""Index in _KINDS of each operation of :class:`StoreObserver`."""
_WORKS, _FAILS, _WORKED = 0, 1, 2
"""The shared byte of a kind. _WORKED: it failed, and a call has worked since."""


class Outcome(NamedTuple):
    """How a call ended, as reader processes send it to their worker.

    Attributes:
        kind: index in the kinds of calls.
        error: the error as a message (:meth:`SidecarError.to_message`); None if it worked.
    """

    kind: int
    error: dict[str, str] | None = None


Tell = Callable[[Outcome], None]


class Outcomes:
    """Implements :class:`StoreObserver`. Safe to use from any thread.

    Args:
        metrics: counts every request.
        flags: those of :class:`Failures`.
        tell: takes outcomes that are news.
    """

    def __init__(self, metrics: VolumeMetrics, flags: mmap.mmap, tell: Tell) -> None:
        self._metrics = metrics
        self._flags = flags
        self._tell = tell

    def move(self, metrics: VolumeMetrics, tell: Tell) -> None:
        """Count and tell elsewhere: this process is now a child of the one that made it."""
        self._metrics, self._tell = metrics, tell

    def request(self, operation: str, seconds: float, code: str) -> None:
        """As the base class says."""
        self._metrics.request(operation, seconds, code)
        if code == "ok":
            kind = _KIND_OF[operation]
            if self._flags[kind] == _FAILS:
                self._tell(Outcome(kind))

    def retried(self, operation: str, reason: str) -> None:
        """As the base class says."""
        self._metrics.retried(operation, reason)

    def throttled(self, seconds: float) -> None:
        """As the base class says."""
        self._metrics.throttled_seconds.inc(seconds)

    def hidden(self, reason: str) -> None:
        """As the base class says."""
        self._metrics.hidden(reason)

    def failed(self, operation: str, error: SidecarError) -> None:
        """As the base class says."""
        if is_store_failure(error):
            self._tell(Outcome(_KIND_OF[operation], error.to_message()))


class Unobserved:
    """Implements :class:`StoreObserver` and does nothing, for a store that is not reported on."""

    def request(self, operation: str, seconds: float, code: str) -> None:
        """As the base class says."""

    def retried(self, operation: str, reason: str) -> None:
        """As the base class says."""

    def throttled(self, seconds: float) -> None:
        """As the base class says."""

    def hidden(self, reason: str) -> None:
        """As the base class says."""

    def failed(self, operation: str, error: SidecarError) -> None:
        """As the base class says."""


@dataclass(slots=True)
class Failure:
    """One kind of call that fails with one code.

    Attributes:
        operation: list, read, write or delete.
        message: of the first call that failed.
        first, last: times in UTC (RFC 3339).
        count: calls that failed, however often each was tried.
    """

    operation: str
    code: str
    name: str
    message: str
    first: str
    last: str
    count: int


class Failures:
    """The kinds of calls that fail now. Safe to use from any thread.

    Args:
        report: takes the failures as JSON, the newest last, whenever they change.

    Attributes:
        flags: a byte for each kind, shared by this process and its forks.
    """

    def __init__(self, report: Callable[[list[dict[str, Any]]], object]) -> None:
        self.flags = mmap.mmap(-1, len(_KINDS))
        self._report = report
        self._lock = threading.Lock()
        self._failing: dict[tuple[int, str], Failure] = {}
        self._began_s: dict[tuple[int, str], float] = {}
        self._failed_s = [float("-inf")] * len(_KINDS)
        self._is_told = True

    def adopt(self, failing: Iterable[dict[str, Any]]) -> None:
        """Begin with the failures that the previous worker reported last."""
        now_s = time.monotonic()
        with self._lock:
            for item in failing:
                failure = Failure(**item)
                kind = _KINDS.index(failure.operation)
                self._failing[kind, failure.code] = failure
                self._began_s[kind, failure.code] = now_s
                self._failed_s[kind] = now_s
                self.flags[kind] = _FAILS

    def take(self, outcome: Outcome) -> None:
        """Take a call that failed, or one that worked of a kind that fails."""
        kind = outcome.kind
        with self._lock:
            if outcome.error is None:
                if self.flags[kind] == _FAILS:
                    self.flags[kind] = _WORKED
                return
            now = dt.datetime.now(dt.UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
            self._failed_s[kind] = time.monotonic()
            self.flags[kind] = _FAILS
            error = from_message(outcome.error)
            failure = self._failing.get((kind, error.code))
            if failure is not None:
                failure.count += 1
                failure.last = now
                self._is_told = False
                return
            failure = Failure(_KINDS[kind], **error.document(), first=now, last=now, count=1)
            self._failing[kind, error.code] = failure
            self._began_s[kind, error.code] = time.monotonic()
            logs.event(
                log,
                "the store fails",
                logging.WARNING,
                operation=failure.operation,
                code=error.code,
                error=error.message,
            )
            self._tell()

    def tick(self) -> None:
        """Report what works again, and new counts of the rest. Call it about once a second."""
        now_s = time.monotonic()
        with self._lock:
            for kind, failed_s in enumerate(self._failed_s):
                if self.flags[kind] == _WORKED and now_s - failed_s >= QUIET_S:
                    self.flags[kind] = _WORKS
                    self._recover(kind, now_s)
            if not self._is_told:
                self._tell()

    def _recover(self, kind: int, now_s: float) -> None:
        for key in [key for key in self._failing if key[0] == kind]:
            failure = self._failing.pop(key)
            logs.event(
                log,
                "the store works again",
                operation=failure.operation,
                code=failure.code,
                seconds=f"{now_s - self._began_s.pop(key):.0f}",
                failures=failure.count,
            )
            self._is_told = False

    def _tell(self) -> None:
        self._is_told = True
        self._report([asdict(failure) for failure in self._failing.values()])
