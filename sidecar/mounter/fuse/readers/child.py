"""Child processes of a worker, forked before it has threads. If one dies, the other does, too."""

from __future__ import annotations

import logging
import os
import signal
import socket
from collections.abc import Callable, Iterable, Sequence
from typing import NoReturn

from sidecar.mounter.system import prctl
from sidecar.mounter.system.shortage import lacks_resources

log = logging.getLogger(__name__)


def fork_child(
    name: str, body: Callable[[socket.socket], None], others: Sequence[socket.socket] = ()
) -> tuple[int, socket.socket]:
    """Run ``body`` in a child, with one end of a connection to it.

    Args:
        name: shown by ps(1).
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
        prctl.set_name(name)
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


def end_with_children(pids: Iterable[int]) -> None:
    """From now on end this process when one of these children ends, or has ended.

    Its successor has all of them again, and the kernel sends it what is not answered.
    """
    pids = tuple(pids)

    def child_ended(_signal: int, _frame: object) -> None:
        # By pid: an SDK may start a program of its own (such as uname) and wait for that.
        for pid in pids:
            try:
                ended, wait_status = os.waitpid(pid, os.WNOHANG)
            except ChildProcessError:  # the thread that has waited for it is ending this process
                continue
            if ended:
                _end_with_child(wait_status)

    signal.signal(signal.SIGCHLD, child_ended)
    child_ended(signal.SIGCHLD, None)


def end_with_child(pid: int) -> NoReturn:
    """End this process: a child has closed its end of the connection, so it is ending."""
    try:
        _, wait_status = os.waitpid(pid, 0)
    except ChildProcessError:  # the main thread was faster, and ends this process
        while True:
            signal.pause()
    _end_with_child(wait_status)


def _end_with_child(wait_status: int) -> NoReturn:
    starved = os.WIFEXITED(wait_status) and os.WEXITSTATUS(wait_status) == os.EX_OSERR
    why = " for want of resources" if starved else ""
    try:
        log.error("a child of this worker ended%s; it ends too and is replaced", why)
    finally:  # memory may be lacking for the message
        os._exit(os.EX_OSERR if starved else os.EX_SOFTWARE)


def send_descriptor(pid: int, end: socket.socket, descriptor: int) -> None:
    """Give the child ``pid`` the connection to the kernel."""
    try:
        socket.send_fds(end, [b"\0"], [descriptor])
    except ConnectionError:
        end_with_child(pid)


def receive_descriptor(end: socket.socket) -> int | None:
    """The connection to the kernel; None if the worker is gone."""
    _, descriptors, _, _ = socket.recv_fds(end, 1, 1)
    return descriptors[0] if descriptors else None


def _die_with(parent: int) -> None:
    """Ask for SIGKILL when the worker dies: no process may answer for a dead one.

    The signal comes when the thread that forked ends, which is the worker's main thread.
    """
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    prctl.die_with_parent()
    if os.getppid() != parent:
        os._exit(1)
