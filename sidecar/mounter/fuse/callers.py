"""Which thread waits for which request. A killed program gets its answer at once.

On a local disk a signal ends no wait: open(2) and stat(2) never fail with EINTR, whatever timer
a profiler has set. Only a killed program stops waiting. The kernel reports every signal in the
same way (FUSE_INTERRUPT), and a second one not at all (fs/fuse/dev.c, request_wait_answer). So
the state of the thread has to show whether it was killed.

A thread of another PID namespace (a container of a pod that does not share its processes) has
the number 0. Its state is unknown, so it counts as alive and waits for its answer.
"""

from __future__ import annotations

import collections
import errno
import signal
import threading
import time
from pathlib import Path

from sidecar.mounter.fuse.connection import answer

_HANDED_ON_LAST = 1024
_LOOK_AGAIN_S = 0.2
_LONGEST_LOOK_S = 300.0
"""How long a thread is watched whose READ a reader process answers: it may have its answer."""
_HARMLESS = frozenset(
    (
        signal.SIGCHLD,
        signal.SIGCONT,
        signal.SIGSTOP,
        signal.SIGTSTP,
        signal.SIGTTIN,
        signal.SIGTTOU,
        signal.SIGURG,
        signal.SIGWINCH,
    )
)
"""Signals that end no program by default; signal(7)."""
_FATAL = sum(1 << number - 1 for number in range(1, 65) if number not in _HARMLESS)
_PF_EXITING = 4  # include/linux/sched.h
_FLAGS_FIELD, _EXIT_CODE_FIELD = 6, 49  # of proc_pid_stat(5), after the name
_SIGNAL_MASK = 0x7F  # wait(2)


def is_killed(thread: int) -> bool:
    """Whether a thread was killed: a fatal signal is pending, or one is ending it.

    False if the thread's state is unknown.
    """
    if not thread:
        return False
    try:
        status = Path(f"/proc/{thread}/status").read_bytes()
        masks = {
            line[:6]: int(line[7:], 16)
            for line in status.splitlines()
            if line.startswith((b"SigPnd:", b"ShdPnd:", b"SigBlk:", b"SigIgn:", b"SigCgt:"))
        }
        pending = masks[b"SigPnd"] | masks[b"ShdPnd"]
        survived = masks[b"SigBlk"] | masks[b"SigIgn"] | masks[b"SigCgt"]
        if pending & _FATAL & ~survived:
            return True
        # An ending thread gives up its memory before it closes its files (kernel/exit.c). A thread
        # in execve(2) has memory, and its `stat` cannot be read until the FLUSH of files closed on
        # exec is answered (exec_update_lock): the thread that answers would wait for itself.
        if b"\nVmSize:" in status:
            return False
        stat = Path(f"/proc/{thread}/stat").read_bytes()
    except OSError:
        return False
    fields = stat[stat.rindex(b")") + 2 :].split()
    is_ending = bool(int(fields[_FLAGS_FIELD]) & _PF_EXITING)
    by_signal = bool(int(fields[_EXIT_CODE_FIELD]) & _SIGNAL_MASK)
    return is_ending and by_signal


class Callers:
    """The waiting threads of one connection. Safe to use from any thread."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor
        self._waiting: dict[int, int] = {}  # threads by request
        # Requests and threads. Nobody reports when a reader process has answered.
        self._handed_on: collections.deque[tuple[int, int]] = collections.deque(
            maxlen=_HANDED_ON_LAST
        )
        # Threads that had a signal: the request, and until when (monotonic) to watch them.
        self._signalled: dict[int, tuple[int, float]] = {}
        self._any = threading.Event()
        self._watcher: threading.Thread | None = None

    def wait(self, unique: int, thread: int) -> None:
        """Note that a thread waits for a request that this process answers."""
        self._waiting[unique] = thread

    def answered(self, unique: int) -> None:
        """Note that a request was answered."""
        self._waiting.pop(unique, None)

    def wait_elsewhere(self, unique: int, thread: int) -> None:
        """Note that a thread waits for a request that a reader process answers."""
        self._handed_on.append((unique, thread))

    def interrupt(self, unique: int) -> None:
        """Take a signal to the thread that waits for a request: answer it once it is killed."""
        thread = self._waiting.get(unique) or dict(self._handed_on).get(unique)
        if not thread or self._end_if_killed(thread, unique):
            return
        self._signalled[thread] = unique, time.monotonic() + _LONGEST_LOOK_S
        self._any.set()
        if self._watcher is None:
            self._watcher = threading.Thread(target=self._watch, name="callers", daemon=True)
            self._watcher.start()

    def _end_if_killed(self, thread: int, unique: int) -> bool:
        if not is_killed(thread):
            return False
        # If it was answered meanwhile, the kernel refuses this second answer.
        answer(self._descriptor, unique, errno.EINTR)
        return True

    def _watch(self) -> None:
        """Look again at threads that had a signal: the kernel does not report the next one."""
        while self._any.wait():
            self._any.clear()
            for thread, wait in list(self._signalled.items()):
                if self._is_over(*wait) or self._end_if_killed(thread, wait[0]):
                    if self._signalled.get(thread) == wait:  # if not, it waits for another request
                        del self._signalled[thread]
                else:
                    self._any.set()
            time.sleep(_LOOK_AGAIN_S)

    def _is_over(self, unique: int, until_s: float) -> bool:
        if unique in self._waiting:
            return False
        return time.monotonic() > until_s or unique not in dict(self._handed_on)
