"""Has workers forked, by a process that has imported what they need.

Which volume a worker serves, and when it is replaced, is the volume's. Standard library only.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence

from sidecar.mounter.supervisor.hang_watch import HangWatch
from sidecar.mounter.supervisor.retries import Retries
from sidecar.mounter.system.channel import Message
from sidecar.mounter.system.processes import Child, Processes
from sidecar.spec import StoreName

_MODULE = "sidecar.mounter.worker.fork_server"


class Workers:
    """The workers of all buckets, and the fork server that they come from.

    Args:
        stores: the kinds of stores that workers will serve.
    """

    def __init__(
        self,
        processes: Processes,
        stores: Sequence[StoreName],
        retries: Retries,
        hang_watch: HangWatch,
    ) -> None:
        self._processes = processes
        self._stores = stores
        self._retries = retries
        self._hang_watch = hang_watch
        self._fork_server: Child | None = None
        self._numbers = itertools.count(1)
        self._asked: dict[int, tuple[Child, str]] = {}  # not forked yet, with the volume's label

    def start(self) -> None:
        """Start the fork server, so that the first worker need not wait for it."""
        self._retries.do("start the fork server", self._start)

    def serve(self, message: Message, descriptors: tuple[int, ...], volume: str) -> Child:
        """A worker, told to serve a volume. Raises OSError if none can be started.

        Args:
            message: see :mod:`sidecar.mounter.worker.main`.
            volume: its label.
        """
        self._start()
        assert self._fork_server is not None
        worker, far = self._processes.expect()
        number = next(self._numbers)
        with far:
            request = {"do": "fork", "number": number}
            try:
                worker.channel.send(message, descriptors)
                self._fork_server.channel.send(request, (far.fileno(),))
            except OSError:
                self._processes.abandon(worker)
                raise
        self._asked[number] = worker, volume
        return worker

    def on_message(self, child: Child, message: Message) -> bool:
        """Whether a message was the fork server's: it forked a worker, or cannot yet."""
        if child is not self._fork_server:
            return False
        if message["event"] == "forked":
            worker, volume = self._asked.pop(message["number"])
            self._processes.identify(worker, message["pid"])
            self._hang_watch.watch(worker, f"worker {volume}")
        else:
            self._retries.count(message["errno"])
        return True

    def on_ended(self, child: Child) -> list[Child] | None:
        """If a child that ended was the fork server: the workers that it did not fork any more.

        They are to be replaced like workers that ended. The next fork server starts with the next
        worker, so one that ends at once is slowed down as workers are. None for any other child.
        """
        if child is not self._fork_server:
            return None
        self._fork_server = None
        lost = [worker for worker, _ in self._asked.values()]
        self._asked.clear()
        for worker in lost:
            self._processes.abandon(worker)
        return lost

    def close(self) -> None:
        """End the fork server. Nothing is lost with it, and no worker comes after this."""
        server = self._fork_server
        if server is None:
            return
        for message in self._processes.kill(server):
            self.on_message(server, message)
        self.on_ended(server)

    def _start(self) -> None:
        if self._fork_server is None:
            # It has no thread that could beat, because it forks.
            server = self._processes.start(_MODULE, *self._stores, beats=False)
            self._hang_watch.watch(server, "fork-server", beats=False)
            self._fork_server = server
