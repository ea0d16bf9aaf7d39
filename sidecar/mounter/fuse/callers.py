"""Programs that wait for an answer, and the end of that wait when one of them is killed.

On a local disk a signal ends no wait: open(2) and stat(2) of it are never EINTR, whatever
timer a profiler has set. Only a program that is killed waits no longer. The kernel tells of
any signal alike (FUSE_INTERRUPT), and of a second one not at all (fs/fuse/dev.c,
request_wait_answer), so the state of the thread that asks has to say which it was.

A thread of another PID namespace, such as that of another container whose pod does not share
its processes, has the number 0: nothing is known of it, and it is taken for alive. Its wait
ends with the answer.
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
"""At a thread whose read was handed on: it has its answer long since, perhaps."""
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
"""What ends no program that does nothing about it; signal(7)."""
_FATAL = sum(1 << number - 1 for number in range(1, 65) if number not in _HARMLESS)
_PF_EXITING = 4  # include/linux/sched.h
_FLAGS_FIELD, _EXIT_CODE_FIELD = 6, 49  # of proc_pid_stat(5), behind the name
_SIGNAL_MASK = 0x7F  # wait(2)


def is_killed(thread: int) -> bool:
    """Whether a thread was killed: a signal that ends it is pending, or it is ending of one.

    False where nothing is known.
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
        # A thread that is ending has let go of its memory before its files (kernel/exit.c). Of
        # one in execve(2), which has memory, `stat` cannot be read until the FLUSH of what is
        # closed on exec is answered (exec_update_lock): who waits for it here waits for itself.
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
    """Who waits for which request of one connection. Safe to use from any thread."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor
        self._waiting: dict[int, int] = {}  # request to thread
        # What reader processes answer: nobody says when they have.
        self._handed_on: collections.deque[tuple[int, int]] = collections.deque(
            maxlen=_HANDED_ON_LAST
        )
        # Thread to the request that it waits for, and until when it is worth a look.
        self._signalled: dict[int, tuple[int, float]] = {}
        self._any = threading.Event()
        self._watcher: threading.Thread | None = None

    def wait(self, unique: int, thread: int) -> None:
        """A thread waits for a request from now on."""
        self._waiting[unique] = thread

    def answered(self, unique: int) -> None:
        """It does no longer."""
        self._waiting.pop(unique, None)

    def wait_elsewhere(self, unique: int, thread: int) -> None:
        """A thread waits for a request that a reader process answers."""
        self._handed_on.append((unique, thread))

    def watch(self, unique: int) -> None:
        """Who waits for a request may be killed now, or later: then it waits no longer."""
        thread = self._waiting.get(unique) or dict(self._handed_on).get(unique, 0)
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
        """Look again at threads that had a signal: the kernel does not tell of the next one."""
        while self._any.wait():
            self._any.clear()
            for thread, wait in list(self._signalled.items()):
                if self._is_over(*wait) or self._end_if_killed(thread, wait[0]):
                    if self._signalled.get(thread) == wait:  # else it waits for something new
                        del self._signalled[thread]
                else:
                    self._any.set()
            time.sleep(_LOOK_AGAIN_S)

    def _is_over(self, unique: int, until_s: float) -> bool:
        if unique in self._waiting:
            return False
        return time.monotonic() > until_s or unique not in dict(self._handed_on)
