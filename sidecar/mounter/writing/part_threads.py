"""Threads that send parts: as many at a time as make it faster, of all files of a bucket."""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor

from sidecar.mounter.store.in_flight import MOST, InFlight
from sidecar.units import MIB

_PART_BYTES = 8 * MIB
"""A usual part, by which a connection is measured. The parts of a large file are larger."""
_LEAST = 8
"""Enough for most ways to a store, and few enough for the slowest."""


class PartThreads:
    """Sends parts in the order in which they were submitted. Safe to use from any thread.

    No more are in flight than make it faster: what a slow line has taken before is still on its
    way, and has to arrive before the store's silence counts as an outage. No part overtakes
    another one: where a store takes them in order only, each waits for the one before it.

    Args:
        tell: told how many at a time (:class:`InFlight`).
    """

    def __init__(self, tell: Callable[[int], object]) -> None:
        self._threads = ThreadPoolExecutor(MOST, thread_name_prefix="upload")
        self._in_flight = InFlight(_PART_BYTES, least=_LEAST, hoped_rate=0, tell=tell)
        self._lock = threading.Lock()
        self._waiting: deque[tuple[Future[None], Callable[[], int]]] = deque()

    @property
    def are_idle(self) -> bool:
        """Whether not even half as many parts are in flight as may be."""
        return 2 * self._in_flight.count < self._in_flight.most

    def submit(self, send: Callable[[], int]) -> Future[None]:
        """Have a thread send a part.

        Args:
            send: returns, when it is answered, how many bytes the store has of it.
        """
        future: Future[None] = Future()
        with self._lock:
            self._waiting.append((future, send))
        self.go_on()
        return future

    def go_on(self) -> None:
        """There may be room (:class:`.in_flight.Waiting`): whoever calls, the first one begins."""
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
        except BaseException as error:  # noqa: BLE001 - raised in who waits for the future
            future.set_exception(error)
        finally:
            self._in_flight.end(moved_bytes, began_s, 0.0, time.monotonic())
