"""The process that workers, health and reporter are forked from: it has imported what they need.

A start takes milliseconds instead of the better part of a second, and the processes share the
memory of the code. This one has no threads. Process 1 asks it for a process and is told the PID.
The new process becomes a child of process 1 (PR_SET_CHILD_SUBREAPER), so the fork server may end at
any time without anybody noticing.
"""

from __future__ import annotations

import encodings.idna
import encodings.utf_8_sig  # noqa: F401 - for reading secrets
import errno
import gc
import logging
import os
import signal
import socket
import time
from collections.abc import Callable
from typing import Final, NoReturn

import prometheus_client  # noqa: F401 - all of them need it

from sidecar import logs
from sidecar.backoff import Backoff
from sidecar.contract.spec import PersistenceSpec
from sidecar.mounter.reporting import health, reporter
from sidecar.mounter.store import import_stores
from sidecar.mounter.system import hardening, prctl
from sidecar.mounter.system.allocator import give_back_large_blocks
from sidecar.mounter.system.channel import Channel, Message
from sidecar.mounter.system.heartbeat import beat_to
from sidecar.mounter.system.shortage import exit_with
from sidecar.mounter.warming import warmer
from sidecar.mounter.worker import worker
from sidecar.stop_signals import STOP_SIGNALS

log = logging.getLogger("sidecar.fork_server")

_FIRST_DELAY_S, _LONGEST_DELAY_S = 0.05, 1.0

_MAINS: Final[dict[str, Callable[[Channel, PersistenceSpec], int]]] = {
    "health": health.main,
    "reporter": reporter.main,
    "warming": warmer.main,
}


def main(channel: Channel, spec: PersistenceSpec) -> int:
    """The life of the process, which process 1 has forked.

    ``{"do": "fork", "number": n, "role": "worker"}`` comes with the far end of the new process's
    channel. The answer ``{"event": "forked", "number": n, "pid": pid}`` is sent before that process
    does anything. The first message to that process is its duty. Ends at ``{"do": "leave"}``, or
    with the channel.

    Args:
        spec: inherited by all processes, so that no file has to be trusted.
    """
    prctl.set_name("fork-server")
    # The supervisor alone decides when to leave; a terminal's Ctrl-C goes to every process.
    for number in STOP_SIGNALS:
        signal.signal(number, signal.SIG_IGN)
    logs.set_up("fork-server")
    give_back_large_blocks()
    import_stores({source.store for volume in spec.volumes for source in volume.stores})
    # These objects stay for ever. A collection in a worker would write to the header of each, and
    # so copy every page that could be shared.
    gc.collect()
    gc.freeze()
    gc.enable()
    server = _ForkServer(channel, spec)
    while (received := channel.receive()) is not None:
        message, descriptors = received
        if message["do"] == "leave":
            break
        (far,) = descriptors
        server.start(message, socket.socket(fileno=far))
    return 0


class _ForkServer:
    def __init__(self, channel: Channel, spec: PersistenceSpec) -> None:
        self._channel = channel
        self._spec = spec

    def start(self, request: Message, far: socket.socket) -> None:
        backoff = Backoff(_FIRST_DELAY_S, _LONGEST_DELAY_S)
        said = False
        with far:
            while isinstance(started := self._fork(request["role"], far), int):
                self._channel.send({"event": "lacking", "errno": started})
                if not said:
                    log.warning("nothing can be forked; trying again: too many processes, perhaps")
                    said = True
                time.sleep(backoff.next_s())
        pid, gate = started
        with gate:
            self._channel.send({"event": "forked", "number": request["number"], "pid": pid})
            gate.send(b"go")

    def _fork(self, role: str, far: socket.socket) -> tuple[int, socket.socket] | int:
        """A process's PID, and the gate at which it waits; or an errno if none can be forked."""
        try:
            gate, child_end = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        except OSError as error:
            return error.errno or errno.EMFILE
        with child_end:
            code = self._fork_twice(role, gate, child_end, far)
        pid = b"" if code else gate.recv(32)
        if not pid:
            gate.close()
            return code or errno.EAGAIN
        return int(pid), gate

    def _fork_twice(
        self, role: str, gate: socket.socket, child_end: socket.socket, far: socket.socket
    ) -> int:
        """Fork a child that forks the process and ends, so that process 1 inherits it.

        Returns an errno, or 0.
        """
        try:
            middle = os.fork()
        except OSError as error:
            return error.errno or errno.EAGAIN
        if middle:
            _, wait_status = os.waitpid(middle, 0)
            return errno.EAGAIN if wait_status else 0
        status = 1
        try:
            if os.fork() == 0:
                self._channel.close()
                gate.close()
                self._become(role, child_end, far)
            status = 0
        except OSError:
            pass  # the fork server tries again
        finally:
            os._exit(status)

    def _become(self, role: str, child_end: socket.socket, far: socket.socket) -> NoReturn:
        os.setsid()
        prctl.set_name(role)
        with child_end:
            child_end.send(str(os.getpid()).encode())
            if not child_end.recv(2):  # process 1 does not know of this process, and never will
                os._exit(0)
        channel = Channel(far)
        if role == "worker":
            hardening.set_oom_score(hardening.worker_oom_score(hardening.oom_score()))
            worker.run(channel, self._spec)

        def live() -> int:
            beat_to(channel)
            return _MAINS[role](channel, self._spec)

        exit_with(live)
