"""Threads that send parts of a bucket's files: as many at a time as make it faster."""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor

from sidecar.mounter.store.in_flight import MOST, InFlight
from sidecar.units import MIB

_PART_BYTES = 8 * MIB
"""A usual part, which measures a connection. Large files have larger parts."""
_LEAST = 8
"""Enough for most connections to a store, and few enough for the slowest."""


class PartThreads:
    """Sends parts in the order in which they were submitted. Safe to use from any thread.

    No more parts are in flight than make it faster: whatever a slow line has taken before must
    arrive before the store's silence counts as an outage. No part overtakes another: if a store
    takes parts in order only, each waits for the one before it.

    Args:
        tell: called with the number of parts at a time (:class:`InFlight`).
    """

    def __init__(self, tell: Callable[[int], object]) -> None:
        self._threads = ThreadPoolExecutor(MOST, thread_name_prefix="upload")
        self._in_flight = InFlight(_PART_BYTES, least=_LEAST, hoped_rate=0, tell=tell)
        self._lock = threading.Lock()
        self._waiting: deque[tuple[Future[None], Callable[[], int]]] = deque()

    @property
    def are_idle(self) -> bool:
        """Whether fewer than half as many parts are in flight as may be."""
        return 2 * self._in_flight.count < self._in_flight.most

    def submit(self, send: Callable[[], int]) -> Future[None]:
        """Have a thread send a part.

        Args:
            send: sends it, and returns how many bytes the store has confirmed.
        """
        future: Future[None] = Future()
        with self._lock:
            self._waiting.append((future, send))
        self.go_on()
        return future

    def go_on(self) -> None:
        """Begin the first part, if there is room now (:class:`.in_flight.Waiter`)."""
        with self._lock:
            while self._waiting and self._in_flight.begin(self):
                self._threads.submit(self._send, *self._waiting.popleft())

    def _send(self, future: Future[None], send: Callable[[], int]) -> None:
        began_s = time.monotonic()
        moved_bytes = 0
        try:
            if future.set_running_or_notify_cancel():
                moved_bytes = send()
                future.set_result(None)
        except BaseException as error:  # noqa: BLE001 - raised where the future is waited for
            future.set_exception(error)
        finally:
            self._in_flight.end(moved_bytes, began_s, 0.0, time.monotonic())
