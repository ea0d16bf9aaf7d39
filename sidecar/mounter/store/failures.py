"""What the store fails at: said once, counted, and said again when it works.

Whatever is asked of a store passes ``http.retry``, which tells its observer how a call ended: the
:class:`Outcomes` of the process. What is news there goes to the :class:`Failures` of the worker,
from reader processes too. They log a change once, and report what fails to the supervisor, which
shows it in the status document.

A call that works costs no more than a look at one byte, which all processes of a worker share.
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
from sidecar.errors import SidecarError, is_store_failure
from sidecar.metrics import VolumeMetrics

log = logging.getLogger(__name__)

QUIET_S: Final = 5.0
"""A kind of call works again when one did and none has failed for so long: where some objects
are refused and others are not, that is one failure and not one for each of them."""

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
"""By the operation of :class:`StoreObserver`: what a store lets one do
or not, and what is tried again after it failed."""
_WORKS, _FAILS, _WORKED = 0, 1, 2
"""What the shared byte of a kind says; _WORKED: it failed, and a call has worked since."""


class Outcome(NamedTuple):
    """How a call ended, as it goes from process to process. Without a code it worked."""

    kind: int
    code: str = ""
    name: str = ""
    message: str = ""


Tell = Callable[[Outcome], None]


class Outcomes:
    """Implements :class:`StoreObserver`. Safe to use from any thread.

    Args:
        metrics: count every request.
        flags: of :class:`Failures`.
        tell: takes what is news.
    """

    def __init__(self, metrics: VolumeMetrics, flags: mmap.mmap, tell: Tell) -> None:
        self._metrics = metrics
        self._flags = flags
        self._tell = tell

    def move(self, metrics: VolumeMetrics, tell: Tell) -> None:
        """This is a child of the process that made it: it counts and tells for itself."""
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

    def failed(self, operation: str, error: SidecarError) -> None:
        """As the base class says."""
        if is_store_failure(error):
            self._tell(Outcome(_KIND_OF[operation], error.code, error.name, error.message))


@dataclass(slots=True)
class Failure:
    """One kind of call that fails with one code.

    Attributes:
        operation: list, read, write or delete.
        message: what the first one said.
        first, last: when, in UTC by RFC 3339.
        count: how many calls failed; what was tried again within one is one.
    """

    operation: str
    code: str
    name: str
    message: str
    first: str
    last: str
    count: int


class Failures:
    """What fails at present. Safe to use from any thread.

    Args:
        report: takes what fails, the newest failure last, whenever that changed.

    Attributes:
        flags: a byte for each kind, shared by the process that makes it and those it forks.
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
        """What failed when the worker before this one ended, as it was reported."""
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
        """A call failed, or one of a kind that fails worked."""
        kind, code, name, message = outcome
        with self._lock:
            if not code:
                if self.flags[kind] == _FAILS:
                    self.flags[kind] = _WORKED
                return
            now = dt.datetime.now(dt.UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
            self._failed_s[kind] = time.monotonic()
            self.flags[kind] = _FAILS
            failure = self._failing.get((kind, code))
            if failure is not None:
                failure.count += 1
                failure.last = now
                self._is_told = False
                return
            failure = Failure(_KINDS[kind], code, name, message, now, now, 1)
            self._failing[kind, code] = failure
            self._began_s[kind, code] = time.monotonic()
            logs.event(
                log,
                "the store fails",
                logging.WARNING,
                operation=failure.operation,
                code=code,
                error=message,
            )
            self._tell()

    def tick(self) -> None:
        """Say what works again, and how often the rest has failed by now. About once a second."""
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
