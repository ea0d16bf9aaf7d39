"""Threads that send parts: as many at a time as make it faster, of all files of a bucket."""

from __future__ import annotations

import time
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
    way, and has to arrive before the store's silence counts as an outage.

    Args:
        tell: told how many at a time (:class:`InFlight`).
    """

    def __init__(self, tell: Callable[[int], object]) -> None:
        self._threads = ThreadPoolExecutor(MOST, thread_name_prefix="upload")
        self._in_flight = InFlight(_PART_BYTES, least=_LEAST, hoped_rate=0, tell=tell)

    def submit(self, send: Callable[[], int]) -> Future[None]:
        """Have a thread send a part.

        Args:
            send: returns, when it is answered, how many bytes the store has of it.
        """
        part = _Part(send, self._threads, self._in_flight)
        part.go_on()
        return part.future


class _Part:
    def __init__(
        self,
        send: Callable[[], int],
        threads: ThreadPoolExecutor,
        in_flight: InFlight,
    ) -> None:
        self._send = send
        self._threads = threads
        self._in_flight = in_flight
        self.future: Future[None] = Future()

    def go_on(self) -> None:
        """Begin if there is room; else this is called again."""
        if self._in_flight.begin(self):
            self._threads.submit(self._run)

    def _run(self) -> None:
        if not self.future.set_running_or_notify_cancel():
            self._in_flight.end(0, 0.0, 0.0, 0.0)
            return
        began_s = time.monotonic()
        moved_bytes = 0
        try:
            moved_bytes = self._send()
        except BaseException as error:  # noqa: BLE001 - raised in who waits for the future
            self.future.set_exception(error)
        else:
            self.future.set_result(None)
        finally:
            self._in_flight.end(moved_bytes, began_s, 0.0, time.monotonic())
