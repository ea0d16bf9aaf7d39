"""Sends signs of life once a second; :mod:`.watchdog` checks them. Standard library only."""

from __future__ import annotations

import array
import fcntl
import logging
import mmap
import termios
import threading
import time
from collections.abc import Callable
from typing import Final

from sidecar.mounter.system.channel import Channel, Message
from sidecar.mounter.system.watchdog import TICK_S

log = logging.getLogger(__name__)

BEAT: Final = "beat"


def beat_to(channel: Channel, found: Callable[[], str | None] | None = None) -> None:
    """Send signs of life to the other end, from a thread of its own.

    Nothing is sent while the other end has not taken the last sign: it may be stopped, and the
    channel is also for other messages.

    Args:
        found: asked every time; says in words why this process hangs although this thread runs.
    """

    def run() -> None:
        while True:
            why = found() if found is not None else None
            message: Message = {"event": BEAT, "hangs": why or ""}
            if not _has_unread(channel) and not channel.send(message):
                return
            time.sleep(TICK_S)

    threading.Thread(target=run, name="heartbeat", daemon=True).start()


def _has_unread(channel: Channel) -> bool:
    """Whether the other end has not taken everything yet; unix(7), SIOCOUTQ."""
    size = array.array("i", [0])
    fcntl.ioctl(channel.fileno(), termios.TIOCOUTQ, size)
    return size[0] > 0


class SharedBeats:
    """Signs of life of processes that are forked after this was made, each by its number."""

    _HANGS = 2**64 - 1

    def __init__(self) -> None:
        self._counts = memoryview(mmap.mmap(-1, mmap.PAGESIZE)).cast("Q")

    def beat(self, number: int, found: Callable[[], str | None] | None = None) -> None:
        """Give signs of life of the process ``number``, from a thread of its own.

        Args:
            found: as for :func:`beat_to`; its answer is logged.
        """

        def run() -> None:
            while (why := found() if found is not None else None) is None:
                self._counts[number] += 1
                time.sleep(TICK_S)
            log.error("this process hangs: %s", why)
            self._counts[number] = self._HANGS

        threading.Thread(target=run, name="heartbeat", daemon=True).start()

    def count(self, number: int) -> int | None:
        """How many signs it has given; None if it has noticed that it hangs."""
        count = self._counts[number]
        return None if count == self._HANGS else count
