"""One retry policy for all requests to a store.

An attempt returns, raises a final :class:`~sidecar.errors.SidecarError`, or raises
:class:`Retryable`. One budget bounds one call, because nothing below retries.
"""

from __future__ import annotations

import contextlib
import functools
import time
from collections.abc import Callable
from typing import Protocol, TypeVar

from sidecar.backoff import Backoff
from sidecar.errors import (
    AccessDenied,
    CredentialError,
    LoginRejected,
    NotFound,
    SidecarError,
    StoreProtocolError,
)
from sidecar.mounter.store.http.hedging import Hedging
from sidecar.mounter.store.http.pacing import Pacing
from sidecar.mounter.store.http.values import parse_number, until_http_time_s
from sidecar.mounter.store.interface import StoreObserver

FIRST_DELAY_S = 0.1
LONGEST_DELAY_S = 5.0
LOGIN_BUDGETS = 4
"""How many times its budget a login may be rejected: a kubelet takes up to 90 s to bring a new key
(``syncFrequency`` of a minute, and half as much jitter)."""
SILENCES = 2
"""How many attempts without an answer do not count for the budget. Some wait longer than the
budget, and the next attempt is at another address."""
THROTTLED_BUDGETS = 10
"""How many times its budget a request may be refused by a store that takes others."""
_READS = frozenset({"list", "head", "get"})
_TAKEN = frozenset({"ok", NotFound.code})
"""Outcomes of requests that the store did not refuse: a missing object is an answer."""

T = TypeVar("T")


class Retryable(Exception):
    """An attempt failed, and the next one may work.

    Args:
        error: what the caller gets if there is no next attempt.
        reason: one of the words of :meth:`StoreObserver.retried`.
        retry_after_s: how long the store asks to wait (``Retry-After``), or None.
    """

    def __init__(
        self, error: SidecarError, reason: str, retry_after_s: float | None = None
    ) -> None:
        super().__init__(error.message)
        self.error = error
        self.reason = reason
        self.retry_after_s = retry_after_s


class Refreshable(Protocol):
    """Credentials in use, with an epoch."""

    @property
    def epoch(self) -> int:
        """Grows with each refresh."""

    def refresh(self, seen_epoch: int, *, rejected: bool = False) -> bool:
        """Replace the credentials of ``seen_epoch``; False if there are no newer ones.

        ``rejected``: also replace what they gave, such as a token.
        """


class Retry:
    """Repeats an attempt until it works or the budget is spent.

    Args:
        budget_s: time for all attempts, from the first one on; 0 means one attempt. The first
            SILENCES attempts without an answer do not count. Refusals for too many requests get
            THROTTLED_BUDGETS times as long while the store takes other requests of the kind: that
            is no outage.
        login: refreshed after AccessDenied.
        observer: counts attempts, retries and failures.
    """

    def __init__(self, budget_s: float, login: Refreshable, observer: StoreObserver) -> None:
        self._budget_s = budget_s
        self._login = login
        self._observer = observer
        # Stores count these separately ("Best practices design patterns: optimizing Amazon S3
        # performance").
        self._reads, self._writes = Pacing(), Pacing()
        self._hedging = {
            operation: Hedging(functools.partial(observer.retried, operation, "hedged"))
            for operation in _READS
        }

    def run(self, operation: str, attempt: Callable[[], T]) -> T:
        """The result of the first attempt that works.

        After AccessDenied the credentials are refreshed once and the attempt is repeated, even if
        there are no newer ones: stores deny by mistake on bad days. While the store rejects the
        login itself (LoginRejected), the attempt is repeated for LOGIN_BUDGETS times the budget: a
        rotated key comes later, when the kubelet has synced the secret. The observer is told of the
        failure at once, since somebody may have to bring that key. A read whose answer makes no
        sense is repeated once: the answer may have come late on a connection and belong to no
        request.

        Raises:
            SidecarError: the attempt's own final error, or that of its last ``Retryable``.
        """
        try:
            return self._run(operation, attempt)
        except SidecarError as error:
            self.failed(operation, error)
            raise

    def hedging(self, operation: str) -> Hedging | None:
        """The hedging of reads; None while the store says that there are too many requests."""
        return None if self._pacing(operation).is_limiting else self._hedging.get(operation)

    def failed(self, operation: str, error: SidecarError) -> None:
        """Tell the observer that a call failed."""
        self._observer.failed(operation, error)

    def _run(self, operation: str, attempt: Callable[[], T]) -> T:
        started = time.monotonic()
        budget = _Budget(self._budget_s)
        # Jitter: the pods of one experiment must not come back all at once.
        backoff = Backoff(FIRST_DELAY_S, LONGEST_DELAY_S, jitter=True)
        refreshed = doubted = waits = False
        pacing = self._pacing(operation)
        while True:
            # No longer than all attempts may take: a caller with a short budget has another way.
            self._hold(min(self._budget_s, pacing.delay_s(time.monotonic())))
            epoch = self._login.epoch
            budget.attempt_s = time.monotonic()
            try:
                return self.once(operation, attempt)
            except AccessDenied as denied:
                if refreshed:
                    self._wait_for_login(operation, denied, backoff.next_s(), started, told=waits)
                    waits = True
                refreshed = True
                # A secret that cannot be read may be just being replaced. If it stays like that,
                # the store's answer to the old login is raised.
                with contextlib.suppress(CredentialError):
                    self._login.refresh(epoch, rejected=isinstance(denied, LoginRejected))
                self._observer.retried(operation, "credentials")
            except StoreProtocolError:
                if doubted or operation not in _READS:
                    raise
                doubted = True
                self._observer.retried(operation, "connection")
            except Retryable as again:
                is_throttled = again.reason == "throttled"
                if is_throttled:
                    pacing.refused(time.monotonic())
                if again.reason == "stalled":
                    budget.was_silent()
                delay_s = backoff.next_s()
                wait_s = again.retry_after_s or delay_s
                latest = budget.ends_s
                if is_throttled and time.monotonic() - pacing.taken_s <= self._budget_s:
                    latest += (THROTTLED_BUDGETS - 1) * self._budget_s
                if time.monotonic() + wait_s > latest:
                    raise again.error from None
                self._observer.retried(operation, again.reason)
                if is_throttled:
                    self._hold(wait_s)
                else:
                    time.sleep(wait_s)

    def _wait_for_login(
        self, operation: str, denied: AccessDenied, delay_s: float, started: float, *, told: bool
    ) -> None:
        """Wait before the next attempt, or raise an error that is not waited out any longer."""
        waited_s = time.monotonic() + delay_s - started
        if not isinstance(denied, LoginRejected) or waited_s > LOGIN_BUDGETS * self._budget_s:
            raise denied
        if not told:
            self.failed(operation, denied)
        time.sleep(delay_s)

    def _pacing(self, operation: str) -> Pacing:
        return self._reads if operation in _READS else self._writes

    def _hold(self, seconds: float) -> None:
        """Wait because the store takes no more requests now."""
        if seconds:
            self._observer.throttled(seconds)
            time.sleep(seconds)

    def once(self, operation: str, attempt: Callable[[], T]) -> T:
        """One counted attempt. Raises its errors, ``Retryable`` included."""
        started = time.perf_counter()
        code = "ok"
        try:
            return attempt()
        except SidecarError as error:
            code = error.code
            raise
        except Retryable as again:
            code = again.error.code
            raise
        finally:
            if code in _TAKEN:
                self._pacing(operation).taken_s = time.monotonic()
            self._observer.request(operation, time.perf_counter() - started, code)


class _Budget:
    """Until when attempts of one call may begin.

    Attributes:
        attempt_s: when the last attempt began (monotonic).
        ends_s: the end (monotonic).
    """

    def __init__(self, budget_s: float) -> None:
        self.attempt_s = time.monotonic()
        self.ends_s = self.attempt_s + budget_s
        self._free_silences = SILENCES if budget_s else 0

    def was_silent(self) -> None:
        """Note that the last attempt got no answer in time."""
        if self._free_silences:
            self._free_silences -= 1
            self.ends_s += time.monotonic() - self.attempt_s


def parse_retry_after(value: str | None) -> float | None:
    """Seconds from a ``Retry-After`` header (RFC 9110, 10.2.3), or None."""
    if not value:
        return None
    for parse in (parse_number, until_http_time_s):
        with contextlib.suppress(ValueError):
            return float(parse(value))
    return None
