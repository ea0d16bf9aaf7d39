"""Has processes forked by one that has imported what they need (:mod:`..fork_server`).

Standard library only.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable
from typing import Final, Literal

from sidecar.contract.spec import PersistenceSpec
from sidecar.mounter.supervisor.hang_watch import HangWatch
from sidecar.mounter.supervisor.retries import Retries
from sidecar.mounter.system.channel import Message
from sidecar.mounter.system.processes import Child, ChildEnded, MessageReceived, Processes

_MODULE = "sidecar.mounter.fork_server"
_LEAVE_S: Final = 2.0
"""For a fork that is in progress. It takes longer only if resources are lacking."""

Role = Literal["worker", "health", "reporter", "warming"]


class ForkServer:
    """The fork server, and the processes that it was asked for.

    Args:
        spec: inherited by every process that is forked.
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
        """A process that has got its duty. Raises OSError if none can be started.

        Args:
            name: for the log and the metric if it hangs.
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
        """Take the fork server's messages: it forked a process, or could not; False for others."""
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
        """The children that the fork server did not fork, if it is what ended; None for any other.

        They must be replaced like processes that ended. The next one also starts the next fork
        server, so that one that ends at once is slowed down as they are.
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
        """End the fork server. No process can be forked after that."""
        server = self._fork_server
        if server is None:
            return
        if self._has_forked:
            # If it were killed between the message and the gate, the new process would end, too.
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
            # No heartbeat: it must not have threads, because it forks.
            server = self._processes.start(_MODULE, self._spec)
            self._hang_watch.watch(server, "fork-server", beats=False)
            self._fork_server = server
