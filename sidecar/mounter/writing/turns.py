"""Turns of large files that are saved while time is short: one at a time, the smallest first."""

from __future__ import annotations

import contextlib
import heapq
import itertools
import threading
import time
from collections.abc import Iterator

from sidecar.errors import TimeIsUp


class Turns:
    """The turns of one mount; nobody waits before :meth:`begin`. Safe to use from any thread."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._numbers = itertools.count()
        self._waiting: list[tuple[int, int]] = []  # size in bytes, number: a heap
        self._is_taken = False
        self._deadline_s: float | None = None

    @property
    def have_begun(self) -> bool:
        """Whether time is short."""
        return self._deadline_s is not None

    def begin(self, deadline_s: float) -> None:
        """Time is short from now on, and up at ``deadline_s`` (monotonic)."""
        with self._changed:
            self._deadline_s = deadline_s

    @contextlib.contextmanager
    def turn(self, size_bytes: int) -> Iterator[None]:
        """A block that saves a large file. Raises TimeIsUp instead of it."""
        deadline_s = self._deadline_s
        if deadline_s is None:
            yield
            return
        mine = size_bytes, next(self._numbers)
        with self._changed:
            heapq.heappush(self._waiting, mine)
            while self._is_taken or self._waiting[0] != mine:
                if not self._changed.wait(max(0.0, deadline_s - time.monotonic())):
                    break
            self._waiting.remove(mine)
            heapq.heapify(self._waiting)
            self._changed.notify_all()
            if self._is_taken or time.monotonic() >= deadline_s:
                raise TimeIsUp("the pod ends before it can be saved")
            self._is_taken = True
        try:
            yield
        finally:
            with self._changed:
                self._is_taken = False
                self._changed.notify_all()
