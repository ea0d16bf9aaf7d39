"""Has processes forked, by one that has imported what they need (:mod:`..fork_server`).

When one is started and replaced is not decided here. Standard library only.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable
from typing import Final, Literal

from sidecar.mounter.supervisor.hang_watch import HangWatch
from sidecar.mounter.supervisor.retries import Retries
from sidecar.mounter.system.channel import Message
from sidecar.mounter.system.processes import Child, ChildEnded, MessageReceived, Processes
from sidecar.spec import PersistenceSpec

_MODULE = "sidecar.mounter.fork_server"
_LEAVE_S: Final = 2.0
"""For the fork that is under way; more only where it lacks the resources."""

Role = Literal["worker", "health", "reporter", "warming"]


class ForkServer:
    """The fork server, and what it was asked for.

    Args:
        spec: of the run; every process that is forked has it.
    """

    def __init__(
        self,
        processes: Processes,
        spec: PersistenceSpec,
        retries: Retries,
        hang_watch: HangWatch,
    ) -> None:
        self._processes = processes
        self._spec = spec
        self._retries = retries
        self._hang_watch = hang_watch
        self._fork_server: Child | None = None
        self._has_forked = False
        self._numbers = itertools.count(1)
        self._asked: dict[int, tuple[Child, str]] = {}  # not forked yet, with the name

    def start(self) -> None:
        """Start the fork server, so that the first process need not wait for it."""
        self._retries.do("start the fork server", self._start)

    def fork(
        self, role: Role, name: str, duty: Message, descriptors: tuple[int, ...] = ()
    ) -> Child:
        """A process that was told its duty. Raises OSError if none can be started.

        Args:
            name: for the log and the metric of those that hang.
            duty: its first message; see the ``main`` of the role.
        """
        self._start()
        assert self._fork_server is not None
        child, far = self._processes.expect()
        number = next(self._numbers)
        with far:
            request = {"do": "fork", "number": number, "role": role}
            try:
                child.channel.send(duty, descriptors)
                self._fork_server.channel.send(request, (far.fileno(),))
            except OSError:
                self._processes.abandon(child)
                raise
        self._asked[number] = child, name
        return child

    def on_message(self, child: Child, message: Message) -> bool:
        """Whether a message was the fork server's: it forked a process, or cannot yet."""
        if child is not self._fork_server:
            return False
        if message["event"] == "forked" and message["number"] in self._asked:
            self._has_forked = True
            forked, name = self._asked.pop(message["number"])
            self._processes.identify(forked, message["pid"])
            self._hang_watch.watch(forked, name)
        elif message["event"] == "lacking":
            self._retries.count(message["errno"])
        return True

    def on_ended(self, child: Child) -> list[Child] | None:
        """If a child that ended was the fork server: what it did not fork any more.

        They are to be replaced like processes that ended. The next fork server starts with the next
        of them, so one that ends at once is slowed down as they are. None for any other child.
        """
        if child is not self._fork_server:
            return None
        self._fork_server, self._has_forked = None, False
        lost = [child for child, _ in self._asked.values()]
        self._asked.clear()
        for asked in lost:
            self._processes.abandon(asked)
        return lost

    def wait_for(self, child: Child, wait_s: float) -> None:
        """Return once a child has been forked. Other events are lost."""
        self._turn_while(lambda: child.running and child.pid is None, wait_s)

    def close(self) -> None:
        """End the fork server. Nothing is lost with it, and no process comes after this."""
        server = self._fork_server
        if server is None:
            return
        if self._has_forked:
            # Killed between the message and the gate, it would take the new process along.
            server.channel.send({"do": "leave"})
            self._turn_while(lambda: server.running, _LEAVE_S)
        for message in self._processes.kill(server):
            self.on_message(server, message)
        self.on_ended(server)

    def _turn_while(self, waiting: Callable[[], bool], wait_s: float) -> None:
        """Take the fork server's messages and its end; other events are lost."""
        end_s = time.monotonic() + wait_s
        while waiting() and time.monotonic() < end_s:
            for event in self._processes.events(end_s):
                if isinstance(event, MessageReceived):
                    self.on_message(event.child, event.message)
                elif isinstance(event, ChildEnded):
                    self.on_ended(event.child)

    def _start(self) -> None:
        if self._fork_server is None:
            # It has no thread that could beat, because it forks.
            server = self._processes.start(_MODULE, self._spec)
            self._hang_watch.watch(server, "fork-server", beats=False)
            self._fork_server = server
