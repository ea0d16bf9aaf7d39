"""Child processes and signals as one stream of events. Standard library only.

Process 1 of a container must reap every orphan and must never block on one child. It has no
threads, which makes fork(2) without exec safe.
"""

from __future__ import annotations

import gc
import importlib
import logging
import os
import selectors
import signal
import socket
import time
from collections.abc import Callable, Iterator
from typing import NamedTuple

from sidecar import logs, stop_signals
from sidecar.errors import SidecarError
from sidecar.mounter.system import child_messages, hardening, prctl
from sidecar.mounter.system.channel import BadMessage, Channel, Message
from sidecar.mounter.system.shortage import exit_with

log = logging.getLogger("sidecar.supervisor")

_HANDLED = (*stop_signals.STOP_SIGNALS, signal.SIGCHLD)
_KILL_WAIT_S = 2.0


class Ending(NamedTuple):
    """How a process ended: by itself with an exit status, or by a signal. The other is None."""

    exit_status: int | None
    signal: int | None

    @classmethod
    def of_wait_status(cls, wait_status: int) -> Ending:
        """The ending that waitpid(2) reports."""
        if os.WIFSIGNALED(wait_status):
            return cls(None, os.WTERMSIG(wait_status))
        return cls(os.WEXITSTATUS(wait_status), None)

    def __str__(self) -> str:
        if self.signal is None:
            return f"exit status {self.exit_status}"
        if self.signal == signal.SIGKILL:
            return "SIGKILL (out of memory?)"
        # Most real-time signals have no name, and process 1 must not fail for one.
        names = {number.value: number.name for number in signal.Signals}
        return names.get(self.signal, f"signal {self.signal}")


class Child:
    """One child process and the near end of its channel.

    Attributes:
        pid: None until it has been forked, by another child.
        ending: None until it has been reaped.
        hung: why it was killed, if it hung.
        was_misunderstood: it has sent something senseless, which is logged once.
    """

    def __init__(self, pid: int | None, channel: Channel) -> None:
        self.pid = pid
        self.channel = channel
        self.ending: Ending | None = None
        self.hung: str | None = None
        self.was_misunderstood = False

    def end(self) -> None:
        """SIGKILL it. It is reaped among the events."""
        if self.running and self.pid is not None:
            os.kill(self.pid, signal.SIGKILL)

    @property
    def running(self) -> bool:
        """Whether it has not been reaped."""
        return self.ending is None


class MessageReceived(NamedTuple):
    """A child sent a message."""

    child: Child
    message: Message


class ChildEnded(NamedTuple):
    """A child was reaped. Its last messages come before this."""

    child: Child
    ending: Ending


class SignalReceived(NamedTuple):
    """This process got SIGTERM, SIGINT or SIGHUP."""

    number: int


Event = MessageReceived | ChildEnded | SignalReceived


class Processes:
    """Starts child processes, and yields their messages and their ends. One for each process.

    Args:
        oom_score: the ``oom_score_adj`` of children; by default that of this process.
    """

    def __init__(self, oom_score: int | None = None) -> None:
        self._oom_score = hardening.oom_score() if oom_score is None else oom_score
        self._selector = selectors.DefaultSelector()
        self._by_pid: dict[int, Child] = {}
        self._expected: set[Child] = set()  # another child forks them
        self._lost: list[Child] = []  # they ended before it was known which processes they were
        prctl.adopt_orphans()  # for tests, where it is not process 1
        self._wake, wake_end = socket.socketpair()
        self._wake.setblocking(False)
        wake_end.setblocking(False)
        _wake_ends.append((self._wake, wake_end))
        signal.set_wakeup_fd(wake_end.fileno(), warn_on_full_buffer=False)
        for number in _HANDLED:
            signal.signal(number, _wake_only)
        stop_signals.unblock()
        self._selector.register(self._wake, selectors.EVENT_READ, None)

    def start(self, module: str, argument: object) -> Child:
        """Call ``main(channel, argument)`` of a module in a forked child; its result is the status.

        The child has what this process has loaded; only the child loads what the module imports. It
        begins without garbage collection. Raises OSError.
        """

        def call(far: socket.socket) -> int:
            main: Callable[[Channel, object], int] = importlib.import_module(module).main
            return main(Channel(far), argument)

        return self._fork(call)

    def expect(self) -> tuple[Child, socket.socket]:
        """A child that another child will fork and orphan, and the far end of its channel."""
        near, far = Channel.pair()
        child = Child(None, near)
        self._expected.add(child)
        self._selector.register(near, selectors.EVENT_READ, child)
        return child, far

    def identify(self, child: Child, pid: int) -> None:
        """An expected child was forked, and has become a child of this process."""
        self._expected.discard(child)
        child.pid = pid
        try:
            os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT)
        except ChildProcessError:  # killed, and reaped as an unknown orphan
            self._lost.append(child)
        else:
            self._by_pid[pid] = child

    def abandon(self, child: Child) -> None:
        """Give up an expected child, because the process that was to fork it has ended."""
        self._expected.discard(child)
        self._forget(child, signal.SIGKILL)
        child.channel.close()

    def run(self, function: Callable[[], None]) -> Child:
        """Call a function in a forked child, which sends ``passed`` or ``failed``.

        Raises OSError.
        """

        def call(far: socket.socket) -> int:
            channel = Channel(far)
            try:
                function()
            except SidecarError as error:
                channel.send({"event": "failed", **error.to_message()})
            else:
                channel.send({"event": "passed"})
            return 0

        return self._fork(call)

    def events(self, until_s: float) -> Iterator[Event]:
        """The next events: waits for at least one, or until ``until_s`` (monotonic)."""
        ready = self._selector.select(max(0.0, until_s - time.monotonic()))
        for key, _ in ready:
            if key.data is None:
                yield from self._signals()
            elif key.data.running:
                yield from self._messages(key.data, only_one=True)
        yield from self._reap()

    def kill(self, child: Child) -> list[Message]:
        """SIGKILL a child and reap it. Returns its last messages."""
        if not child.running:
            return []
        if child.pid is None:
            self.abandon(child)
            return []
        os.kill(child.pid, signal.SIGKILL)
        _, wait_status = os.waitpid(child.pid, 0)
        last_messages = [event.message for event in self._messages(child, only_one=False)]
        self._forget(child, wait_status)
        child.channel.close()
        return last_messages

    def end(self, children: list[Child], wait_s: float = _KILL_WAIT_S) -> None:
        """Let children end by themselves within ``wait_s``, then SIGKILL the rest."""
        deadline_s = time.monotonic() + wait_s
        while any(child.running for child in children) and time.monotonic() < deadline_s:
            for _ in self.events(deadline_s):
                pass
        for child in children:
            self.kill(child)

    def end_all(self) -> None:
        """SIGKILL and reap every child that is left."""
        for child in [*self._by_pid.values(), *self._expected]:
            self.kill(child)

    def _fork(self, body: Callable[[socket.socket], int]) -> Child:
        near, far = Channel.pair()
        try:
            pid = os.fork()
        except OSError:
            near.close()
            far.close()
            raise
        if pid == 0:
            exit_with(lambda: self._live_as_child(body, far))
        far.close()
        child = Child(pid, near)
        self._by_pid[pid] = child
        self._selector.register(near, selectors.EVENT_READ, child)
        return child

    def _live_as_child(self, body: Callable[[socket.socket], int], far: socket.socket) -> int:
        # A finalizer must not close what process 1 holds either, under a number that is another
        # file's by then.
        gc.freeze()
        gc.disable()  # a check is short; imports make no garbage, and looking for it costs a tenth
        os.setsid()
        signal.set_wakeup_fd(-1)
        for number in _HANDLED:
            signal.signal(number, signal.SIG_DFL)
        # Inherited near ends would keep the channels of other children open, and connections
        # their mounts: a check that waits on one would never end once all others are killed.
        os.closerange(3, far.fileno())
        os.closerange(far.fileno() + 1, os.sysconf("SC_OPEN_MAX"))
        hardening.set_oom_score(self._oom_score)
        return body(far)

    def _signals(self) -> Iterator[Event]:
        try:
            numbers = self._wake.recv(256)
        except BlockingIOError:
            return
        for number in numbers:
            if number != signal.SIGCHLD:
                yield SignalReceived(number)

    def _messages(self, child: Child, *, only_one: bool) -> Iterator[MessageReceived]:
        while True:
            # The last messages of a dead child are read without waiting for the end of the
            # channel: a child of its own may hold that open, and be stuck in the kernel.
            try:
                received = child.channel.receive(wait=only_one)
            except BadMessage as bad:
                self._misunderstand(child, str(bad))
            else:
                if received is None:
                    self._unregister(child)
                    return
                message, descriptors = received
                for descriptor in descriptors:
                    os.close(descriptor)
                if child_messages.is_known(message):
                    yield MessageReceived(child, message)
                else:
                    self._misunderstand(child, f"event {message.get('event')!r:.40}")
            if only_one:
                return

    @staticmethod
    def _misunderstand(child: Child, what: str) -> None:
        if not child.was_misunderstood:
            child.was_misunderstood = True
            message = "a message that makes no sense is ignored"
            logs.event(log, message, logging.ERROR, pid=child.pid, what=what)

    def _reap(self) -> Iterator[Event]:
        while self._lost:
            yield from self._end(self._lost.pop(), signal.SIGKILL)
        while True:
            try:
                pid, wait_status = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                return
            if pid == 0:
                return
            child = self._by_pid.get(pid)
            if child is None:
                continue  # an orphan that became a child of process 1
            yield from self._end(child, wait_status)

    def _end(self, child: Child, wait_status: int) -> Iterator[Event]:
        # The child is marked as ended before the first event: whoever takes an event may
        # raise and never ask for the next, and the child would seem to be running.
        last_messages = list(self._messages(child, only_one=False))
        ending = self._forget(child, wait_status)
        yield from last_messages
        child.channel.close()
        yield ChildEnded(child, ending)

    def _forget(self, child: Child, wait_status: int) -> Ending:
        child.ending = Ending.of_wait_status(wait_status)
        if child.pid is not None:
            self._by_pid.pop(child.pid, None)
        self._unregister(child)
        return child.ending

    def _unregister(self, child: Child) -> None:
        if child.channel.fileno() >= 0 and child.channel.fileno() in self._selector.get_map():
            self._selector.unregister(child.channel)


_wake_ends: list[tuple[socket.socket, socket.socket]] = []
"""Never closed: the last signals come when this process is about to end."""


def _wake_only(_number: int, _frame: object) -> None:
    """Nothing: the wakeup descriptor carries the number. A handler prevents the default action."""
