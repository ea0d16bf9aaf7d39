"""Turns Ctrl-C, SIGTERM and a closed terminal into an orderly end of the demo.

A handler that raises can do so anywhere: in a destructor, where Python drops the exception, or
between the start of a program and the demo's note of it. So the handler only takes note, and
the demo checks in each of its short waits.
"""

from __future__ import annotations

import signal
from types import FrameType

from sidecar.stop_signals import STOP_SIGNALS


class Interrupted(Exception):
    """A signal asked the demo to end."""

    def __init__(self, signum: int) -> None:
        super().__init__(signum)
        self.exit_status = 128 + signum


class StopSignals:
    """While entered, stop signals are noted instead of ending the process."""

    def __init__(self) -> None:
        self._received: int | None = None

    def __enter__(self) -> StopSignals:
        self._before = {number: signal.signal(number, self._note) for number in STOP_SIGNALS}
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def check(self) -> None:
        """Raise :class:`Interrupted` if a signal came."""
        if self._received:
            raise Interrupted(self._received)

    def _note(self, signum: int, _frame: FrameType | None) -> None:
        self._received = self._received or signum
