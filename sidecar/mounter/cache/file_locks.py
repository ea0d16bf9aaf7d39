"""Waits for locks of files that others may hold, with a limit.

The holder may be a sidecar that was stopped, or hostile.
"""

from __future__ import annotations

import errno
import time
from collections.abc import Callable

LOCK_S = 5.0
"""How long a lock is waited for. Proper use holds it for milliseconds."""
_IMPATIENT_S = 30.0
_FIRST_DELAY_S = 0.0002
_LONGEST_DELAY_S = 0.02


class LockBusy(OSError):
    """Somebody holds a lock. The caller asks the store instead."""

    def __init__(self) -> None:
        super().__init__(errno.EAGAIN, "somebody holds a lock of the disk cache")


class Patience:
    """Takes the locks of one cache. Safe to use from any thread.

    After a wait in vain it does not wait at all for a while: otherwise each range of a file would
    be late. Free locks are taken meanwhile.
    """

    def __init__(self) -> None:
        self._impatient_until_s = 0.0

    def take(self, attempt: Callable[[], object]) -> None:
        """Call ``attempt`` until it does not raise BlockingIOError. Raises LockBusy."""
        give_up_s = None
        delay_s = _FIRST_DELAY_S
        while True:
            try:
                attempt()
            except BlockingIOError:
                now_s = time.monotonic()
                if give_up_s is None:
                    give_up_s = now_s + (0 if now_s < self._impatient_until_s else LOCK_S)
                if now_s >= give_up_s:
                    self._impatient_until_s = now_s + _IMPATIENT_S
                    raise LockBusy from None
            else:
                return
            time.sleep(delay_s)
            delay_s = min(2 * delay_s, _LONGEST_DELAY_S)
