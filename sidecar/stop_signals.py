"""The signals that ask a process to stop, from its first moment on. Standard library only.

What a process does when it is asked does not belong here.
"""

from __future__ import annotations

import signal
import sys
from typing import Final

STOP_SIGNALS: Final = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)


def end_on_them() -> None:
    """End the process, with the exit status of a shell, until it has handlers of its own.

    What is ignored stays so: nohup(1) asks for it. At SIGINT Python raises KeyboardInterrupt.
    """
    for number in (signal.SIGTERM, signal.SIGHUP):
        if signal.getsignal(number) is signal.SIG_DFL:
            signal.signal(number, _end)
    unblock()


def block() -> None:
    """Keep them for later, also across exec(2)."""
    signal.pthread_sigmask(signal.SIG_BLOCK, STOP_SIGNALS)


def unblock() -> None:
    """Deliver them, those that came meanwhile too. The process has handlers."""
    signal.pthread_sigmask(signal.SIG_UNBLOCK, STOP_SIGNALS)


def _end(number: int, _frame: object) -> None:
    sys.exit(128 + number)
