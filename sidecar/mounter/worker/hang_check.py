"""Whether this worker or a child of it hangs. Asked once a second by the heartbeat."""

from __future__ import annotations

import time
from collections.abc import Mapping

from sidecar.mounter.fuse.stuck import StuckThreads
from sidecar.mounter.system.heartbeat import SharedBeats
from sidecar.mounter.system.watchdog import Ticks, Watch


class HangCheck:
    """The worker's own threads, and its children.

    Args:
        beats: the signs of life of its children.
        children: their process ids, by their numbers in ``beats``.
    """

    def __init__(
        self, threads: StuckThreads, beats: SharedBeats, children: Mapping[int, int]
    ) -> None:
        self._threads = threads
        self._beats = beats
        self._watches = {number: Watch(pid, beats=True) for number, pid in children.items()}
        self._counts: dict[int, int | None] = {}
        self._ticks = Ticks()

    def found(self) -> str | None:
        """What hangs, in words, or None."""
        now_s = time.monotonic()
        in_time = self._ticks.next(now_s)
        for number, watch in self._watches.items():
            count = self._beats.count(number)
            if count is None:
                return "a child of it hangs"
            if not in_time or count != self._counts.get(number):
                self._counts[number] = count
                watch.beat()
            elif why := watch.tick(now_s):
                return f"a child of it hangs: {why}"
        return self._threads.look()
