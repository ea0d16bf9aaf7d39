"""Child processes of a worker: forked before it has threads, and killed when it dies.

What a child does is given by whoever forks it.
"""

from __future__ import annotations

import logging
import os
import signal
import socket
from collections.abc import Callable, Sequence

from sidecar.mounter.system import prctl
from sidecar.mounter.system.shortage import lacks_resources

log = logging.getLogger(__name__)


def fork_child(
    body: Callable[[socket.socket], None], others: Sequence[socket.socket] = ()
) -> tuple[int, socket.socket]:
    """Run ``body`` in a child, with one end of a connection to it.

    Args:
        others: our ends of the connections to other children; this child closes its copies.

    Returns:
        The child's pid, and our end of the connection.
    """
    near, far = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    parent = os.getpid()
    pid = os.fork()
    if pid:
        far.close()
        return pid, near
    try:
        _die_with(parent)
        near.close()
        for other in others:
            other.close()
        body(far)
    except BaseException as error:
        if lacks_resources(error):
            log.error("a child of the worker lacks resources: %s", error)  # noqa: TRY400
            os._exit(os.EX_OSERR)
        log.exception("a child of the worker failed")
    finally:
        os._exit(1)


def send_descriptor(end: socket.socket, descriptor: int) -> None:
    """Give a child the connection to the kernel."""
    socket.send_fds(end, [b"\0"], [descriptor])


def receive_descriptor(end: socket.socket) -> int | None:
    """The connection to the kernel; None if the worker is gone."""
    _, descriptors, _, _ = socket.recv_fds(end, 1, 1)
    return descriptors[0] if descriptors else None


def _die_with(parent: int) -> None:
    """Ask for SIGKILL when the worker dies: no process may answer for a dead one.

    The signal comes when the thread that forked ends: the worker's main thread.
    """
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    prctl.die_with_parent()
    if os.getppid() != parent:
        os._exit(1)
