"""The process that workers, health and reporter are forked from: it has imported what they need.

A start takes milliseconds instead of the better part of a second, and they share the memory of
the code. It serves nothing, has no threads, and decides nothing: process 1 asks for a process and
is told its PID. That becomes a child of process 1 (PR_SET_CHILD_SUBREAPER), so that this process
may end at any time without anybody noticing.
"""

from __future__ import annotations

import errno
import gc
import logging
import os
import signal
import socket
import sys
import time
from collections.abc import Callable
from typing import Final, NoReturn

import prometheus_client  # noqa: F401 - all of them need it

from sidecar import logs
from sidecar.backoff import Backoff
from sidecar.mounter.reporting import health, reporter
from sidecar.mounter.store import import_stores
from sidecar.mounter.system import hardening, prctl, resource_limits
from sidecar.mounter.system.channel import Channel, Message
from sidecar.mounter.system.heartbeat import beat_to
from sidecar.mounter.system.shortage import lacks_resources
from sidecar.mounter.warming import main as warming
from sidecar.mounter.worker import main as worker
from sidecar.stop_signals import STOP_SIGNALS

log = logging.getLogger("sidecar.fork_server")

_FIRST_DELAY_S, _LONGEST_DELAY_S = 0.05, 1.0

_MAINS: Final[dict[str, Callable[[Channel], int]]] = {
    "health": health.main,
    "reporter": reporter.main,
    "warming": warming.main,
}


def main(arguments: list[str]) -> int:
    """``python -m sidecar.mounter.fork_server CHANNEL STORE…``.

    ``{"do": "fork", "number": n, "role": "worker"}`` comes with the far end of the new process's
    channel, and is answered by ``{"event": "forked", "number": n, "pid": pid}`` before that process
    does anything. Its first message is its duty. Ends at ``{"do": "leave"}`` and with its channel.
    """
    prctl.set_name("fork-server")
    # The supervisor alone decides when to leave; a terminal's Ctrl-C goes to every process.
    for number in STOP_SIGNALS:
        signal.signal(number, signal.SIG_IGN)
    resource_limits.take_all_descriptors()
    channel_number, *stores = arguments
    channel = Channel.inherited(int(channel_number))
    logs.set_up("fork-server")
    import_stores(store for store in ("s3", "gcs", "azure") if store in stores)
    # What is there now stays for ever. A collection in a worker would write to each object's
    # header, and so copy every page that could be shared.
    gc.collect()
    gc.freeze()
    while (received := channel.receive()) is not None:
        message, descriptors = received
        if message["do"] == "leave":
            break
        (far,) = descriptors
        _start(channel, message, socket.socket(fileno=far))
    return 0


def _start(channel: Channel, request: Message, far: socket.socket) -> None:
    backoff = Backoff(_FIRST_DELAY_S, _LONGEST_DELAY_S)
    said = False
    with far:
        while isinstance(started := _fork(channel, request["role"], far), int):
            channel.send({"event": "lacking", "errno": started})
            if not said:
                log.warning("nothing can be forked; trying again: too many processes, perhaps")
                said = True
            time.sleep(backoff.next_s())
    pid, gate = started
    with gate:
        channel.send({"event": "forked", "number": request["number"], "pid": pid})
        gate.send(b"go")


def _fork(channel: Channel, role: str, far: socket.socket) -> tuple[int, socket.socket] | int:
    """A process's PID, and the gate at which it waits. An errno if none can be forked."""
    try:
        gate, child_end = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    except OSError as error:
        return error.errno or errno.EMFILE
    with child_end:
        code = _fork_twice(channel, role, gate, child_end, far)
    pid = b"" if code else gate.recv(32)
    if not pid:
        gate.close()
        return code or errno.EAGAIN
    return int(pid), gate


def _fork_twice(
    channel: Channel, role: str, gate: socket.socket, child_end: socket.socket, far: socket.socket
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
            channel.close()
            gate.close()
            _become(role, child_end, far)
        status = 0
    except OSError:
        pass  # the fork server tries again
    finally:
        os._exit(status)


def _become(role: str, child_end: socket.socket, far: socket.socket) -> NoReturn:
    os.setsid()
    prctl.set_name(role)
    with child_end:
        child_end.send(str(os.getpid()).encode())
        if not child_end.recv(2):  # process 1 does not know of this process, and never will
            os._exit(0)
    channel = Channel(far)
    if role == "worker":
        hardening.set_oom_score(hardening.worker_oom_score(hardening.oom_score()))
        worker.run(channel)
    _run(_MAINS[role], channel)


def _run(main: Callable[[Channel], int], channel: Channel) -> NoReturn:
    status = os.EX_SOFTWARE
    try:
        beat_to(channel)
        status = main(channel)
    except BaseException as error:
        if lacks_resources(error):
            status = os.EX_OSERR
            logs.event(log, "the process ends: it lacks resources", logging.ERROR, why=error)
        else:
            log.critical("the process ends", exc_info=error)
    finally:
        sys.stderr.flush()
        os._exit(status)  # its threads are not waited for


if __name__ == "__main__":
    status = main(sys.argv[1:])
    sys.stderr.flush()
    os._exit(status)
