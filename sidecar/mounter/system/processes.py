"""Child processes and signals as one stream of events. Standard library only.

Process 1 of a container must reap whatever is left to it, must never block on one child,
and is single-threaded here, which makes fork(2) without exec safe.
"""

from __future__ import annotations

import os
import selectors
import signal
import socket
import sys
import time
from collections.abc import Callable, Iterator
from typing import NamedTuple

from sidecar.errors import SidecarError
from sidecar.mounter.system.channel import Channel, Message

_HANDLED = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGCHLD)
_KILL_WAIT_S = 2.0


class Child:
    """One child process and the near end of its channel."""

    def __init__(self, name: str, pid: int, channel: Channel) -> None:
        self.name = name
        self.pid = pid
        self.channel = channel
        self.exit_status: int | None = None

    @property
    def running(self) -> bool:
        """Whether it has not been reaped."""
        return self.exit_status is None


class Said(NamedTuple):
    """A child sent a message."""

    child: Child
    message: Message


class Exited(NamedTuple):
    """A child ended; what it had said before came first. ``status``: see :func:`describe_exit`."""

    child: Child
    status: int


class Signalled(NamedTuple):
    """This process got SIGTERM, SIGINT or SIGHUP."""

    number: int


Event = Said | Exited | Signalled


class Processes:
    """Starts processes, and yields what they say and how they end."""

    def __init__(self) -> None:
        self._selector = selectors.DefaultSelector()
        self._by_pid: dict[int, Child] = {}
        self._wake, wake_end = socket.socketpair()
        self._wake.setblocking(False)
        wake_end.setblocking(False)
        self._wake_end = wake_end
        signal.set_wakeup_fd(wake_end.fileno(), warn_on_full_buffer=False)
        for number in _HANDLED:
            signal.signal(number, _wake_only)
        self._selector.register(self._wake, selectors.EVENT_READ, None)

    def start(self, name: str, module: str, arguments: list[str]) -> Child:
        """Run ``python -m module CHANNEL arguments…`` in a session of its own."""

        def execute(far: socket.socket) -> None:
            far.set_inheritable(True)
            command = [sys.executable, "-m", module, str(far.fileno()), *arguments]
            os.execv(sys.executable, command)

        return self._fork(name, execute)

    def run(self, name: str, function: Callable[[], None]) -> Child:
        """Call a function in a forked child, which says ``passed`` or ``failed``."""

        def call(far: socket.socket) -> None:
            channel = Channel(far)
            try:
                function()
            except SidecarError as error:
                channel.send(
                    {"event": "failed", "code": error.code, "what": error.what, "hint": error.hint}
                )
            else:
                channel.send({"event": "passed"})

        return self._fork(name, call)

    def events(self, until_s: float) -> Iterator[Event]:
        """What happens next; returns when something did, or at ``until_s`` (monotonic)."""
        ready = self._selector.select(max(0.0, until_s - time.monotonic()))
        for key, _ in ready:
            if key.data is None:
                yield from self._signals()
            elif key.data.running:
                yield from self._messages(key.data, only_one=True)
        yield from self._reap()

    def kill(self, child: Child) -> None:
        """SIGKILL a child and reap it."""
        if not child.running:
            return
        os.kill(child.pid, signal.SIGKILL)
        _, status = os.waitpid(child.pid, 0)
        self._forget(child, status)
        child.channel.close()

    def end(self, children: list[Child], wait_s: float = _KILL_WAIT_S) -> None:
        """Let children leave by themselves within ``wait_s``, then SIGKILL the rest."""
        deadline_s = time.monotonic() + wait_s
        while any(child.running for child in children) and time.monotonic() < deadline_s:
            for _ in self.events(deadline_s):
                pass
        for child in children:
            self.kill(child)

    def end_all(self) -> None:
        """SIGKILL and reap every child that is left."""
        for child in list(self._by_pid.values()):
            self.kill(child)

    def _fork(self, name: str, body: Callable[[socket.socket], None]) -> Child:
        near, far = Channel.pair()
        pid = os.fork()
        if pid == 0:
            status = 1
            try:
                os.setsid()
                signal.set_wakeup_fd(-1)
                for number in _HANDLED:
                    signal.signal(number, signal.SIG_DFL)
                # The other ends that this process inherited would keep channels open.
                for child in self._by_pid.values():
                    child.channel.close()
                near.close()
                body(far)
                status = 0
            finally:
                os._exit(status)
        far.close()
        child = Child(name, pid, near)
        self._by_pid[pid] = child
        self._selector.register(near, selectors.EVENT_READ, child)
        return child

    def _signals(self) -> Iterator[Event]:
        try:
            numbers = self._wake.recv(256)
        except BlockingIOError:
            return
        for number in numbers:
            if number != signal.SIGCHLD:
                yield Signalled(number)

    def _messages(self, child: Child, *, only_one: bool) -> Iterator[Event]:
        while True:
            # The last words of a dead child are read without waiting for the end of the
            # channel: a child of its own may hold that open, and be stuck in the kernel.
            received = child.channel.receive(wait=only_one)
            if received is None:
                self._unregister(child)
                return
            yield Said(child, received[0])
            if only_one:
                return

    def _reap(self) -> Iterator[Event]:
        while True:
            try:
                pid, status = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                return
            if pid == 0:
                return
            child = self._by_pid.get(pid)
            if child is None:
                continue  # an orphan that was left to process 1
            # All of this before anything is told: who is told may raise, and never ask for the
            # rest, and the child would pass for one that runs.
            words = []
            if child.channel.fileno() >= 0:
                words = list(self._messages(child, only_one=False))
            self._forget(child, status)
            yield from words
            child.channel.close()
            yield Exited(child, os.waitstatus_to_exitcode(status))

    def _forget(self, child: Child, status: int) -> None:
        child.exit_status = os.waitstatus_to_exitcode(status)
        self._by_pid.pop(child.pid, None)
        self._unregister(child)

    def _unregister(self, child: Child) -> None:
        if child.channel.fileno() >= 0 and child.channel.fileno() in self._selector.get_map():
            self._selector.unregister(child.channel)


def describe_exit(status: int) -> str:
    """How a process ended, in words."""
    if status >= 0:
        return f"exit status {status}"
    name = signal.Signals(-status).name
    return f"{name} (out of memory?)" if name == "SIGKILL" else name


def _wake_only(_number: int, _frame: object) -> None:
    """The wakeup descriptor carries the number; the default action must not happen."""
