"""The process that workers are forked from: it has imported what each of them needs, once.

A start takes milliseconds instead of the better part of a second, and the workers share the
memory of the code. It serves nothing, has no threads, and decides nothing: process 1 asks for a
worker and is told its PID. The worker becomes a child of process 1 (PR_SET_CHILD_SUBREAPER), so
that this process may end at any time without anybody noticing.
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
from typing import NoReturn

import prometheus_client  # noqa: F401 - each worker needs it

from sidecar import logs
from sidecar.backoff import Backoff
from sidecar.mounter.store import import_stores
from sidecar.mounter.system import hardening, resource_limits
from sidecar.mounter.system.channel import Channel
from sidecar.mounter.worker import main as worker
from sidecar.stop_signals import STOP_SIGNALS

log = logging.getLogger("sidecar.fork_server")

_FIRST_DELAY_S, _LONGEST_DELAY_S = 0.05, 1.0


def main(arguments: list[str]) -> int:
    """``python -m sidecar.mounter.worker.fork_server CHANNEL STORE…``.

    ``{"do": "fork", "number": n}`` comes with the far end of the worker's channel, and is answered
    by ``{"event": "forked", "number": n, "pid": pid}`` before the worker does anything. Ends
    with its channel.
    """
    # The supervisor alone decides when to leave; a terminal's Ctrl-C goes to every process.
    for number in STOP_SIGNALS:
        signal.signal(number, signal.SIG_IGN)
    # Workers inherit both.
    hardening.set_oom_score(hardening.worker_oom_score(hardening.oom_score()))
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
        message, (far,) = received
        _start_worker(channel, message["number"], socket.socket(fileno=far))
    return 0


def _start_worker(channel: Channel, number: int, far: socket.socket) -> None:
    backoff = Backoff(_FIRST_DELAY_S, _LONGEST_DELAY_S)
    said = False
    with far:
        while isinstance(started := _fork_worker(channel, far), int):
            channel.send({"event": "lacking", "errno": started})
            if not said:
                log.warning("no worker can be forked; trying again: too many processes, perhaps")
                said = True
            time.sleep(backoff.next_s())
    pid, gate = started
    with gate:
        channel.send({"event": "forked", "number": number, "pid": pid})
        gate.send(b"go")


def _fork_worker(channel: Channel, far: socket.socket) -> tuple[int, socket.socket] | int:
    """A worker's PID, and the gate at which it waits. An errno if none can be forked."""
    try:
        gate, worker_end = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    except OSError as error:
        return error.errno or errno.EMFILE
    with worker_end:
        code = _fork_twice(channel, gate, worker_end, far)
    pid = b"" if code else gate.recv(32)
    if not pid:
        gate.close()
        return code or errno.EAGAIN
    return int(pid), gate


def _fork_twice(
    channel: Channel, gate: socket.socket, worker_end: socket.socket, far: socket.socket
) -> int:
    """Fork a child that forks the worker and ends, so that process 1 inherits it.

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
            _become_worker(worker_end, far)
        status = 0
    except OSError:
        pass  # the fork server tries again
    finally:
        os._exit(status)


def _become_worker(worker_end: socket.socket, far: socket.socket) -> NoReturn:
    os.setsid()
    with worker_end:
        worker_end.send(str(os.getpid()).encode())
        if not worker_end.recv(2):  # process 1 does not know of this worker, and never will
            os._exit(0)
    worker.run(Channel(far))


if __name__ == "__main__":
    status = main(sys.argv[1:])
    sys.stderr.flush()
    os._exit(status)
