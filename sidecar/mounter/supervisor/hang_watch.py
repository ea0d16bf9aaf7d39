"""Watches the children of process 1 and kills those that hang, as if they had died.

:mod:`.lifecycle` and :mod:`.volume` replace them. Standard library only.
"""

from __future__ import annotations

import logging
import time
from collections import Counter
from typing import Final

from sidecar import logs
from sidecar.mounter.system.channel import Message
from sidecar.mounter.system.heartbeat import BEAT
from sidecar.mounter.system.processes import Child
from sidecar.mounter.system.watchdog import Ticks, Watch

log = logging.getLogger("sidecar.supervisor")

_MOST_REPORTED: Final = 300


class HangWatch:
    """The watched children, each with a name for the log and the metric.

    Attributes:
        hung: how many were killed, by their names.
    """

    def __init__(self) -> None:
        self.hung: Counter[str] = Counter()
        self._watches: dict[Child, tuple[str, Watch]] = {}
        self._ticks = Ticks()

    @property
    def due_s(self) -> float:
        """When :meth:`turn` has something to do (monotonic)."""
        return self._ticks.due_s

    def watch(self, child: Child, name: str, *, beats: bool = True) -> None:
        """Begin to watch a child that has been forked. ``beats``: as for :class:`.Watch`."""
        assert child.pid is not None
        self._watches[child] = name, Watch(child.pid, beats=beats)

    def take(self, child: Child, message: Message) -> bool:
        """Take a sign of life, or why a child hangs; False for any other message."""
        if message["event"] != BEAT:
            return False
        if child in self._watches:
            self._watches[child][1].beat()
            if message["hangs"]:
                self._end(child, message["hangs"])
        return True

    def is_suspect(self, child: Child) -> bool:
        """Whether a child stands still now, but not for long yet."""
        return child in self._watches and self._watches[child][1].is_suspect

    def turn(self) -> None:
        """Check all children when it is time to, and kill those that hang."""
        now_s = time.monotonic()
        if not self._ticks.is_due(now_s):
            return
        in_time = self._ticks.next(now_s)
        for child, (_, watch) in list(self._watches.items()):
            if not child.running:
                del self._watches[child]
            elif not in_time:
                watch.beat()
            elif why := watch.tick(now_s):
                self._end(child, why)

    def _end(self, child: Child, why: str) -> None:
        name, _ = self._watches.pop(child)
        self.hung[name] += 1
        child.hung = why[:_MOST_REPORTED]
        logs.event(log, "hangs and is killed", logging.ERROR, process=name, pid=child.pid, why=why)
        child.end()
