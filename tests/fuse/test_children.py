"""A worker ends with any child of it, at whatever moment that ends, and says why in one line."""

from __future__ import annotations

import os
import subprocess
import sys
from unittest.mock import Mock

import pytest

from sidecar.mounter.fuse.readers import child, process
from sidecar.mounter.fuse.readers.messages import Read
from sidecar.mounter.reading.read_result import ReadResult, nothing

WORKER = """
import errno, os, threading
from sidecar.mounter.fuse.notifier import Notifier
from sidecar.mounter.fuse.readers import child

def starved():
    raise OSError(errno.EAGAIN, "no process is left")

notifier = Notifier(starved)
os.waitid(os.P_PID, notifier.pid, os.WEXITED | os.WNOWAIT)
{then}
threading.Event().wait()
"""


@pytest.mark.parametrize(
    "then",
    [
        pytest.param("notifier.connect(0)", id="when it is connected"),
        pytest.param("child.end_with_children([notifier.pid])", id="before it is watched"),
        pytest.param(
            "threading.Thread(target=notifier.connect, args=(0,)).start()", id="in a thread"
        ),
    ],
)
def test_a_child_that_lacks_resources(then: str) -> None:
    command = [sys.executable, "-c", WORKER.format(then=then)]
    worker = subprocess.run(command, check=False, stderr=subprocess.PIPE, text=True, timeout=60)
    assert worker.returncode == os.EX_OSERR, worker.stderr
    assert worker.stderr.splitlines() == [
        "a child of the worker lacks resources: [Errno 11] no process is left",
        "a child of this worker ended for want of resources; it ends too and is replaced",
    ]


def test_a_child_that_ended_while_memory_lacks_for_the_message(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """It would go on, and the next READ would get the errno of waitpid(2) for a reaped child."""
    if (worker := os.fork()) == 0:
        try:
            if (reader := os.fork()) == 0:
                os._exit(1)
            monkeypatch.setattr(child.log, "error", Mock(side_effect=MemoryError))
            child.end_with_child(reader)
        finally:
            os._exit(0)
    _, wait_status = os.waitpid(worker, 0)
    assert os.waitstatus_to_exitcode(wait_status) == os.EX_SOFTWARE


REAPED = """
import os, signal
from sidecar.mounter.fuse.readers.child import end_with_children
pid = os.fork()
if not pid:
    signal.pause()
end_with_children([pid])
signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGCHLD])
os.kill(pid, signal.SIGKILL)
os.waitpid(pid, 0)
signal.pthread_sigmask(signal.SIG_UNBLOCK, [signal.SIGCHLD])
print("goes on")
"""


def test_a_child_that_somebody_else_has_waited_for_is_no_exception() -> None:
    """They end this process; the handler may come in the midst of their last line of log."""
    done = subprocess.run(
        [sys.executable, "-c", REAPED], capture_output=True, text=True, check=False, timeout=60
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "goes on\n", "")


@pytest.mark.parametrize(
    ("failure", "status"),
    [(MemoryError(), os.EX_OSERR), (ValueError("a bug"), os.EX_SOFTWARE)],
    ids=lambda value: type(value).__name__,
)
def test_a_reader_that_cannot_answer_ends(failure: Exception, status: int) -> None:
    """Also in a thread that fetches: the READ would never get an answer."""
    if (reader := os.fork()) == 0:
        try:
            answer = Mock(side_effect=failure)
            pending = process._PendingRead(Read(1, 2, 0, 4096), Mock(), answer)
            pending._take(ReadResult([], nothing))
        finally:
            os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(reader, 0)[1]) == status
