"""Ctrl-C, SIGTERM and a closed terminal end the demo where it stands, and it still tidies up."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

_STOPPING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class Stopped(BaseException):
    """A signal asked the demo to end. No ``Exception``, so that no handler swallows it."""

    def __init__(self, signum: int) -> None:
        super().__init__(signum)
        self.exit_status = 128 + signum


class StopSignals:
    """While entered, the first stop signal raises :class:`Stopped` in the main thread.

    Later ones change nothing: the tidying up that the first one began is bounded in time.
    """

    def __init__(self) -> None:
        self._shields = 0
        self._received: int | None = None
        self._raised = False

    def __enter__(self) -> StopSignals:
        self._before = {number: signal.signal(number, self._handle) for number in _STOPPING}
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    @contextmanager
    def shielded(self) -> Iterator[None]:
        """Hold a signal back, so that what is started here is also noted for tidying up."""
        self._shields += 1
        try:
            yield
        finally:
            self._shields -= 1
        self._raise_once()

    def _handle(self, signum: int, _frame: FrameType | None) -> None:
        self._received = self._received or signum
        self._raise_once()

    def _raise_once(self) -> None:
        if self._received and not self._shields and not self._raised:
            self._raised = True
            raise Stopped(self._received)
