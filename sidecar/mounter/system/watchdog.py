"""Whether a process that no longer gives a sign of life hangs. Standard library only.

A process beats once a second from a thread of its own (:mod:`.heartbeat`). If it does not, it may
be stopped (SIGSTOP), in a deadlock, or hungry: it does not get the processor of a machine under
load. The kernel tells these apart (proc_pid_stat(5); Documentation/scheduler/sched-stats.rst). A
hungry process must not be killed: its successor would be as hungry.
"""

from __future__ import annotations

import time
from pathlib import Path
from typing import Final, NamedTuple

TICK_S: Final = 1.0
_LATE_S: Final = 3.0
"""After a tick that comes later than this, the watcher itself or the machine was stopped."""
_STILL_TICKS: Final = 5
"""How many ticks in a row a process may be stopped or idle without a sign of life."""
_SILENT_TICKS: Final = 60
"""How many ticks it may give no sign of life while it gets the processor."""
_IDLE_PART: Final = 0.2
"""Threads that wait for the interpreter's lock check it 200 times a second."""
_HUNGRY_PART: Final = 0.5
"""Such a check first waits 5 ms without using the processor, and then as long as the machine's load
makes it wait. So in a hungry process every thread that wants to run waits for more than half of the
time."""
STOPPED: Final = "it is stopped"
"""A reason for hanging that is no fault of the process."""


class Ticks:
    """The ticks of a watcher, once in :data:`TICK_S`."""

    def __init__(self) -> None:
        self.due_s = time.monotonic() + TICK_S

    def is_due(self, now_s: float) -> bool:
        """Whether it is time for the next tick; then this is that tick."""
        return now_s >= self.due_s

    def next(self, now_s: float) -> bool:
        """Begin the next tick. False if it is so late that the watcher itself stood still.

        Then the watched processes get another chance, since nothing is known about them.
        CLOCK_MONOTONIC does not advance while the machine is suspended, and only ticks count here.
        """
        in_time = now_s - self.due_s < _LATE_S
        self.due_s = now_s + TICK_S
        return in_time


class ThreadUse(NamedTuple):
    """The kernel's figures for one thread.

    Attributes:
        state: as in proc_pid_stat(5).
        ran_s: processor time.
        waited_s: time in which it wanted the processor and did not get it.
    """

    state: str
    ran_s: float
    waited_s: float


def thread_use(pid: int | str) -> dict[int, ThreadUse]:
    """The threads of a process, by their ids; empty if it has ended."""
    found: dict[int, ThreadUse] = {}
    try:
        threads = list(Path(f"/proc/{pid}/task").iterdir())
    except OSError:
        return found
    for thread in threads:
        try:
            stat = (thread / "stat").read_bytes()
            ran, waited, _ = (thread / "schedstat").read_bytes().split()
        except (OSError, ValueError):  # the thread has ended
            continue
        state = chr(stat[stat.rindex(b")") + 2])
        found[int(thread.name)] = ThreadUse(state, int(ran) / 1e9, int(waited) / 1e9)
    return found


def is_stopped(pid: int) -> bool:
    """Whether a process is stopped, by a signal or a tracer."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_bytes()
    except OSError:
        return False
    return chr(stat[stat.rindex(b")") + 2]) in "Tt"


class Watch:
    """One watched process.

    Args:
        beats: it gives signs of life. If not, it can only be found stopped.
    """

    def __init__(self, pid: int, *, beats: bool) -> None:
        self._pid = pid
        self._beats = beats
        self.beat()

    def beat(self) -> None:
        """Note a sign of life, or start over because nothing is known."""
        self._silent_ticks = 0
        self._still_ticks = 0
        self._before: dict[int, ThreadUse] = {}
        self._before_s = 0.0
        self._last: dict[int, ThreadUse] = {}

    @property
    def is_suspect(self) -> bool:
        """Whether it stands still now."""
        return self._still_ticks > 1

    def tick(self, now_s: float) -> str | None:
        """Called once in :data:`TICK_S`: why the process counts as hung, in words, or None."""
        if not self._beats:
            self._still_ticks = self._still_ticks + 1 if is_stopped(self._pid) else 0
            return STOPPED if self._still_ticks >= _STILL_TICKS else None
        self._silent_ticks += 1
        if self._silent_ticks < 3:  # a sign may be on its way, and a process has many threads
            return None
        use = thread_use(self._pid)
        if not use:
            return None
        if not self._before:
            self._before, self._before_s = use, now_s
        passed_s = now_s - self._before_s
        stopped = all(thread.state in "Tt" for thread in use.values())
        hungry = self._is_hungry(use, passed_s)
        self._last = use
        if stopped or (not hungry and self._ran_s(use) <= _IDLE_PART * passed_s):
            self._still_ticks += 1
        else:
            self._still_ticks = 0
        if self._still_ticks >= _STILL_TICKS:
            return STOPPED if stopped else "it does nothing and gives no sign of life"
        if self._silent_ticks >= _SILENT_TICKS and not hungry:
            return "it runs and gives no sign of life"
        return None

    def _is_hungry(self, use: dict[int, ThreadUse], passed_s: float) -> bool:
        """Whether a thread waits for a disk, or most of the time for the processor.

        The kernel counts a wait at its end, so a thread that only waits keeps its counts.
        """
        return any(
            thread.state == "D"
            or (thread.state == "R" and thread == self._last.get(number))
            or (
                number in self._before
                and thread.waited_s - self._before[number].waited_s > _HUNGRY_PART * passed_s
            )
            for number, thread in use.items()
        )

    def _ran_s(self, use: dict[int, ThreadUse]) -> float:
        return sum(
            thread.ran_s - self._before[number].ran_s
            for number, thread in use.items()
            if number in self._before
        )
