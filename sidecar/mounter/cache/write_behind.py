"""Writes to a cache in the background: a queue with a limit, and its threads."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable


class WriteBehind:
    """The queue and its threads, which start with the first writes. Safe to use from any thread.

    Args:
        name: of the threads.
        most_bytes: how much may be queued.
        most_threads: how many writes may run at a time.
    """

    def __init__(self, name: str, most_bytes: int, most_threads: int = 1) -> None:
        self._name = name
        self._most_bytes = most_bytes
        self._most_threads = most_threads
        self._threads = 0
        self._queued_bytes = 0
        self._queue: queue.SimpleQueue[tuple[int, Callable[[], None]]] = queue.SimpleQueue()
        self._room = threading.Condition()

    def later(self, size_bytes: int, write: Callable[[], None], wait_s: float = 0.0) -> bool:
        """Have a thread call ``write``, which raises nothing.

        False, and nothing is done, if there is no room within ``wait_s``, or no thread.
        """
        with self._room:
            fits = self._room.wait_for(
                lambda: self._queued_bytes + size_bytes <= self._most_bytes, wait_s
            )
            if fits and self._threads < self._most_threads:
                self._start_thread()
            if not (fits and self._threads):
                return False
            self._queued_bytes += size_bytes
        self._queue.put((size_bytes, write))
        return True

    def _start_thread(self) -> None:
        try:
            threading.Thread(target=self._run, name=self._name, daemon=True).start()
        except RuntimeError:  # no thread can be started: the next write tries again
            return
        self._threads += 1

    def _run(self) -> None:
        while True:
            size_bytes, write = self._queue.get()
            try:
                write()
            finally:
                del write  # and what it holds
                with self._room:
                    self._queued_bytes -= size_bytes
                    self._room.notify_all()
