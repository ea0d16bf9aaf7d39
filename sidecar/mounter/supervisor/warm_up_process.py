"""Process 1's side of the process that warms volumes up (:mod:`sidecar.mounter.warming`).

Nothing is lost if that process ends. Standard library only.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Sequence
from typing import Final

from sidecar import logs
from sidecar.mounter.supervisor.forking import ForkServer
from sidecar.mounter.supervisor.retries import Retries
from sidecar.mounter.supervisor.volume import SupervisedBucket
from sidecar.mounter.system.channel import Message
from sidecar.mounter.system.processes import Child, Ending

log = logging.getLogger("sidecar.supervisor")

_LEAVE_S: Final = 5.0
"""For the list of the run's first reads, which is written to the outputs volume before that is
saved."""


class WarmUpProcess:
    """The warm-up of one pod; none if no volume asks for it."""

    def __init__(
        self,
        buckets: Sequence[SupervisedBucket],
        fork_server: ForkServer,
        retries: Retries,
    ) -> None:
        self._buckets = [bucket for bucket in buckets if bucket.volume.options.warms]
        self._fork_server = fork_server
        self._retries = retries
        self._process: Child | None = None

    def run(self, turn: Callable[[float], None], deadline_s: float) -> None:
        """Begin, and wait as long as the user said, or until ``deadline_s`` (monotonic).

        Args:
            turn: turns the loop of events once, until a time at most.
        """
        if not self._buckets:
            return
        for bucket in self._buckets:
            bucket.warmed = {"state": "running", "names": 0, "bytes": 0}
        self._retries.do("start the warm-up", self._start)
        longest_s = max(bucket.volume.options.warm_s for bucket in self._buckets)
        end_s = min(time.monotonic() + longest_s, deadline_s)
        while self._is_running and time.monotonic() < end_s:
            turn(end_s)

    def become_ready(self) -> None:
        """Tell it that the experiment starts."""
        if self._process is not None and self._process.running:
            self._process.channel.send({"do": "ready"})

    def leave(self, turn: Callable[[float], None]) -> None:
        """End it, after it has written what it wants to keep."""
        if self._process is None or not self._process.running:
            return
        self._process.channel.send({"do": "leave"})
        end_s = time.monotonic() + _LEAVE_S
        while self._process is not None and time.monotonic() < end_s:
            turn(end_s)

    def on_message(self, child: Child, message: Message) -> bool:
        """Take a message of the warm-up; False for any other message."""
        if child is not self._process:
            return False
        for bucket in self._buckets:
            if message["event"] == "warming" and bucket.volume.label == message["volume"]:
                bucket.warmed = {name: message[name] for name in ("state", "names", "bytes")}
        return True

    def on_ended(self, child: Child, ending: Ending) -> bool:
        """Take the end of the warm-up, which is not replaced; False for any other child."""
        if child is not self._process:
            return False
        self._process = None
        for bucket in self._buckets:
            if bucket.warmed is not None and bucket.warmed["state"] == "running":
                bucket.warmed = {**bucket.warmed, "state": "stopped"}
                label = bucket.volume.label
                logs.event(log, "the warm-up ended", logging.WARNING, volume=label, how=ending)
        return True

    @property
    def _is_running(self) -> bool:
        """Whether a volume is still being warmed up."""
        if self._process is None and not self._retries.is_pending("start the warm-up"):
            return False
        return any(
            bucket.warmed is not None and bucket.warmed["state"] == "running"
            for bucket in self._buckets
        )

    def _start(self) -> None:
        self._process = self._fork_server.fork("warming", "warming", {})
