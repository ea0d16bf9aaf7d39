"""What the sidecar's processes do to themselves when they start. Standard library only.

Our memory holds logins, so it is not written to disk or read by others of the same user. When
memory runs out, the kernel ends processes that can be replaced, and not process 1, which cannot.
Sources: prctl(2), core(5), proc_pid_oom_score_adj(5); the kernel's
Documentation/admin-guide/cgroup-v2.rst: not even ``memory.oom.group`` ends a process at -1000.
"""

from __future__ import annotations

import contextlib
import resource
from pathlib import Path
from typing import Final

from sidecar.mounter.system import prctl, resource_limits

_SCORE_FILE: Final = Path("/proc/self/oom_score_adj")
_NEVER: Final = -1000
_LAST: Final = 1000
_WORKER: Final = 500
_READER_AFTER_WORKER: Final = 100


def forbid_dumps() -> None:
    """No core files, and :func:`.prctl.forbid_dumping`."""
    _, most = resource.getrlimit(resource.RLIMIT_CORE)
    if most:
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    prctl.forbid_dumping()


def oom_score() -> int:
    """The ``oom_score_adj`` of this process."""
    return int(_SCORE_FILE.read_text())


def set_oom_score(score: int) -> None:
    """Set the ``oom_score_adj`` of this process. Raises OSError if it may not be so low."""
    if score != oom_score():
        _SCORE_FILE.write_text(f"{score}\n")


def survive_oom() -> None:
    """Make this process the last that the kernel ends, if it may (CAP_SYS_RESOURCE)."""
    with contextlib.suppress(OSError):
        set_oom_score(_NEVER)


def end_alone() -> str | None:
    """Let the kernel end one process when memory runs out, and not the whole container.

    A kubelet sets ``memory.oom.group`` of each container on version 2, unless it runs with
    ``singleProcessOOMKill``. Only the container's own group is changed.

    Returns:
        Why all processes will be ended after all; None if each is ended alone.
    """
    for line in (resource_limits.PROC / "self/cgroup").read_text().splitlines():
        number, _, group = line.split(":", 2)
        # A container with a namespace of its own sees its group as the root.
        folder = resource_limits.CGROUPS / group.lstrip("/")
        file = folder / "memory.oom.group"
        try:
            if number == "0" and file.read_text().strip() != "0":
                file.write_text("0\n")
        except FileNotFoundError:
            continue  # the machine's root, or there is no memory controller
        except OSError as error:
            return f"cannot write `{file}`: {error.strerror}"
    return None


def worker_oom_score(of_container: int) -> int:
    """A worker's score, in a container whose processes have ``of_container``."""
    return min(_LAST, max(_WORKER, of_container + 1))


def reader_oom_score(of_worker: int) -> int:
    """A reader process's score. It has no names to lose, but its end ends its worker, too."""
    return min(_LAST, of_worker + _READER_AFTER_WORKER)
