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


def asked_to_end() -> int | None:
    """The exit status of a process that is ending because of one of them; None for any other.

    Code that calls Python from C may turn SystemExit into an error of its own (pydantic does).
    """
    return _status


_status: int | None = None


def _end(number: int, _frame: object) -> None:
    global _status  # noqa: PLW0603 - of the process, as its handlers are
    _status = 128 + number
    sys.exit(_status)
