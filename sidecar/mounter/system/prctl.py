"""What a process sets for itself by prctl(2). Standard library only."""

from __future__ import annotations

import ctypes
import signal

# include/uapi/linux/prctl.h
_PR_SET_PDEATHSIG = 1
_PR_SET_DUMPABLE = 4
_PR_SET_NAME = 15
_PR_SET_CHILD_SUBREAPER = 36

_libc = ctypes.CDLL(None)


def die_with_parent() -> None:
    """Get SIGKILL when the thread that forked this process ends, or if it has ended already."""
    _libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)


def forbid_dumping() -> None:
    """No core file, and no ptrace(2) or /proc/PID/mem without CAP_SYS_PTRACE.

    execve(2) undoes it, fork(2) does not.
    """
    _libc.prctl(_PR_SET_DUMPABLE, 0, 0, 0, 0)


def set_name(name: str) -> None:
    """Set the command's name for ps(1); up to 15 bytes."""
    _libc.prctl(_PR_SET_NAME, name.encode(), 0, 0, 0)


def adopt_orphans() -> None:
    """Become the parent of orphans among the descendants, as process 1 is."""
    _libc.prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
