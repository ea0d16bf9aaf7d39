"""One retry policy for everything that is asked of a store.

The SDKs' own retries are off, so that one budget bounds one call. An attempt returns, raises
a :class:`~sidecar.errors.StoreError` that is final, or raises :class:`Retryable`.
"""

from __future__ import annotations

import email.utils
import time
from collections.abc import Callable
from typing import Protocol, TypeVar

from sidecar.backoff import Backoff
from sidecar.errors import AccessDenied, SidecarError
from sidecar.mounter.store.interface import StoreObserver

FIRST_DELAY_S = 0.1
LONGEST_DELAY_S = 5.0

T = TypeVar("T")


class Retryable(Exception):
    """An attempt failed in a way that the next one may not.

    Args:
        error: what the caller is told when there is no next attempt.
        reason: one of the words of :meth:`StoreObserver.retried`.
        retry_after_s: how long the store asked to wait (``Retry-After``), if it did.
    """

    def __init__(
        self, error: SidecarError, reason: str, retry_after_s: float | None = None
    ) -> None:
        super().__init__(error.message)
        self.error = error
        self.reason = reason
        self.retry_after_s = retry_after_s


class Refreshable(Protocol):
    """Credentials in use, numbered."""

    @property
    def epoch(self) -> int:
        """Grows with every refresh."""

    def refresh(self, seen_epoch: int) -> bool:
        """Get newer credentials than those of ``seen_epoch``; False where there are none."""


class Retry:
    """Tries until it works, or the budget is spent.

    Args:
        budget_s: how long an outage is waited out, from the first attempt; 0 means one attempt.
    """

    def __init__(self, budget_s: float, login: Refreshable, observer: StoreObserver) -> None:
        self._budget_s = budget_s
        self._login = login
        self._observer = observer

    def run(self, operation: str, attempt: Callable[[], T]) -> T:
        """The result of the first attempt that works.

        After AccessDenied the credentials are refreshed once and the attempt is repeated,
        also where there are no newer ones: stores deny by mistake on bad days.

        Raises:
            SidecarError: the attempt's own final error, or that of its last ``Retryable``.
        """
        try:
            return self._run(operation, attempt)
        except SidecarError as error:
            self.failed(operation, error)
            raise

    def failed(self, operation: str, error: SidecarError) -> None:
        """An answer turned out to be none after all."""
        self._observer.failed(operation, error)

    def _run(self, operation: str, attempt: Callable[[], T]) -> T:
        deadline = time.monotonic() + self._budget_s
        # Jitter: the pods of one experiment must not come back all at once.
        backoff = Backoff(FIRST_DELAY_S, LONGEST_DELAY_S, jitter=True)
        refreshed = False
        while True:
            epoch = self._login.epoch
            try:
                return self.once(operation, attempt)
            except AccessDenied:
                if refreshed:
                    raise
                refreshed = True
                self._login.refresh(epoch)
                self._observer.retried(operation, "credentials")
            except Retryable as again:
                delay_s = backoff.next_s()
                wait_s = again.retry_after_s or delay_s
                if time.monotonic() + wait_s > deadline:
                    raise again.error from None
                self._observer.retried(operation, again.reason)
                time.sleep(wait_s)

    def once(self, operation: str, attempt: Callable[[], T]) -> T:
        """One counted attempt. Raises what it raises, ``Retryable`` included."""
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
            self._observer.request(operation, time.perf_counter() - started, code)


def parse_retry_after(value: str | None) -> float | None:
    """Seconds from a ``Retry-After`` header (RFC 9110, 10.2.3), or None."""
    if not value:
        return None
    if value.strip().isdigit():
        return float(value)
    try:
        return max(0.0, email.utils.parsedate_to_datetime(value).timestamp() - time.time())
    except ValueError:
        return None
