"""The signals that ask a process to stop, from its first moment on. Standard library only."""

from __future__ import annotations

import signal
import sys
from typing import Final

STOP_SIGNALS: Final = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)


def end_on_them() -> None:
    """End the process at such a signal, with a shell's exit status, until it has other handlers.

    A signal that is ignored stays ignored: nohup(1) asks for that. SIGINT is KeyboardInterrupt.
    """
    for number in (signal.SIGTERM, signal.SIGHUP):
        if signal.getsignal(number) is signal.SIG_DFL:
            signal.signal(number, _end)
    unblock()


def block() -> None:
    """Keep the signals for later, also across exec(2)."""
    signal.pthread_sigmask(signal.SIG_BLOCK, STOP_SIGNALS)


def unblock() -> None:
    """Deliver the signals, those that came meanwhile, too. The process must have handlers."""
    signal.pthread_sigmask(signal.SIG_UNBLOCK, STOP_SIGNALS)


def asked_to_end() -> int | None:
    """The exit status if one of the signals is ending this process; else None.

    Code that calls Python from C may turn SystemExit into another error (pydantic does).
    """
    return _status


_status: int | None = None


def _end(number: int, _frame: object) -> None:
    global _status  # noqa: PLW0603 - the process has one, as it has one set of handlers
    _status = 128 + number
    sys.exit(_status)
