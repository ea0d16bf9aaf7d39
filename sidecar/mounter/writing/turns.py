"""Turns of large files that are saved while time is short: one at a time, the smallest first."""

from __future__ import annotations

import contextlib
import itertools
import math
import threading
import time
from collections.abc import Iterator

from sidecar.errors import TimeIsUp


class Turns:
    """The turns of one mount. Before :meth:`begin` nobody waits. Safe to use from any thread.

    Attributes:
        deadline_s: when time is over (monotonic); infinity before :meth:`begin`.
    """

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._numbers = itertools.count()
        self._waiting: set[tuple[int, int]] = set()  # size in bytes, number
        self._is_taken = False
        self.deadline_s = math.inf

    @property
    def have_begun(self) -> bool:
        """Whether time is short."""
        return self.deadline_s < math.inf

    def begin(self, deadline_s: float) -> None:
        """Begin turns: time is short, and over at ``deadline_s`` (monotonic)."""
        with self._changed:
            self.deadline_s = deadline_s

    @contextlib.contextmanager
    def turn(self, size_bytes: int) -> Iterator[None]:
        """A block that saves a large file when its turn comes. Raises TimeIsUp if it does not."""
        if not self.have_begun:
            yield
            return
        mine = size_bytes, next(self._numbers)
        with self._changed:
            self._waiting.add(mine)
            left_s = max(0.0, self.deadline_s - time.monotonic())
            is_mine = self._changed.wait_for(
                lambda: not self._is_taken and min(self._waiting) == mine, left_s
            )
            self._waiting.remove(mine)
            if not is_mine:
                self._changed.notify_all()  # others may have waited for it
                raise TimeIsUp("the pod ends before it can be saved")
            self._is_taken = True
        try:
            yield
        finally:
            with self._changed:
                self._is_taken = False
                self._changed.notify_all()
