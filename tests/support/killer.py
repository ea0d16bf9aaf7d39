"""Ends the worker of a mount at random moments, while programs use the mount."""

from __future__ import annotations

import fcntl
import os
import random
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Self

from tests.support.sidecar import Sidecar
from tests.support.waiting import wait_until

SERVING_TIMEOUT_S = 60.0
_SHORTEST_PAUSE_S = 0.02
_LONGEST_PAUSE_S = 0.4
# A worker's first request to the store can take longer. Every fourth pause is long, so that
# programs make progress.
_LONG_PAUSES_EVERY = 4
_LONG_PAUSE_S = 2.0
_POLL_S = 0.005


def drop_caches() -> None:
    """Drop the kernel's pages, names and attributes, so that it asks the worker again.

    This affects every file system of the machine: does nothing inside :func:`caches_kept` and
    :func:`caches_dropped_by_others`.
    """
    with open(__file__, "rb") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return
        Path("/proc/sys/vm/drop_caches").write_text("3\n")


@contextmanager
def caches_kept() -> Iterator[None]:
    """No test of this clone drops caches during the block."""
    with open(__file__, "rb") as lock:
        fcntl.flock(lock, fcntl.LOCK_SH)
        yield


@contextmanager
def caches_dropped_by_others() -> Iterator[None]:
    """A program drops caches in the block, which waits for those of :func:`caches_kept`."""
    with open(__file__, "rb") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def serving_pid(sidecar: Sidecar, volume: str, *, other_than: int | None = None) -> int:
    """Wait for a serving worker; its process id. ``other_than``: the one just killed."""
    found: list[int] = []

    def serves() -> bool:
        status = sidecar.volume_status(volume)
        if status["state"] != "serving" or status["worker_pid"] in (None, other_than):
            return False
        found.append(status["worker_pid"])
        return True

    wait_until(serves, f"a worker that serves `{volume}`", SERVING_TIMEOUT_S)
    return found[-1]


def kill_worker(sidecar: Sidecar, volume: str) -> int:
    """SIGKILL the serving worker; the process id of its successor, once that serves."""
    pid = serving_pid(sidecar, volume)
    os.kill(pid, signal.SIGKILL)
    return serving_pid(sidecar, volume, other_than=pid)


@contextmanager
def while_dead(sidecar: Sidecar, volume: str) -> Iterator[None]:
    """No worker is alive during the block; afterwards the next one serves."""
    pid = serving_pid(sidecar, volume)
    os.kill(sidecar.pid, signal.SIGSTOP)  # It must not start a successor.
    try:
        os.kill(pid, signal.SIGKILL)
        yield
    finally:
        os.kill(sidecar.pid, signal.SIGCONT)
    serving_pid(sidecar, volume, other_than=pid)


class Stalls:
    """The longest time that a program waited. Thread-safe."""

    def __init__(self) -> None:
        self.longest_s = 0.0
        self._lock = threading.Lock()

    @contextmanager
    def watch(self) -> Iterator[None]:
        """Time the block."""
        began_s = time.monotonic()
        yield
        taken_s = time.monotonic() - began_s
        with self._lock:
            self.longest_s = max(self.longest_s, taken_s)


class Killer:
    """Kills the worker ``kills`` times, mostly 20-400 ms after it began to serve.

    A context manager; a failure of its thread is raised at the end of the block. If no
    worker comes back, the whole sidecar is killed: nothing else ends programs that wait for
    an answer.

    Args:
        pause_s: a fixed time from serving to the kill.

    Attributes:
        killed: number of kills so far.
    """

    def __init__(
        self,
        sidecar: Sidecar,
        volume: str,
        kills: int,
        seed: int = 0,
        *,
        pause_s: float | None = None,
    ) -> None:
        self._pause_s = pause_s
        self.killed = 0
        self._sidecar = sidecar
        self._volume = volume
        self._kills = kills
        self._random = random.Random(seed)
        self._failure: BaseException | None = None
        self._thread = threading.Thread(target=self._run, name="killer")
        self._leaving = threading.Event()

    @property
    def busy(self) -> bool:
        """Whether a kill or the last successor is still to come."""
        return self._thread.is_alive()

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if error is not None:
            self._leaving.set()
        self._thread.join()
        if self._failure is not None:
            raise self._failure

    def _run(self) -> None:
        try:
            self._kill_all()
        except BaseException as error:  # noqa: BLE001 - raised again in the test's thread
            self._failure = error
            self._sidecar.kill()

    def _kill_all(self) -> None:
        pid = serving_pid(self._sidecar, self._volume)
        while self.killed < self._kills:
            pause_s = self._random.uniform(_SHORTEST_PAUSE_S, _LONGEST_PAUSE_S)
            if self.killed % _LONG_PAUSES_EVERY == _LONG_PAUSES_EVERY - 1:
                pause_s += _LONG_PAUSE_S
            if self._pause_s is not None:
                pause_s = self._pause_s
            if self._leaving.wait(pause_s):
                return
            drop_caches()
            os.kill(pid, signal.SIGKILL)
            self.killed += 1
            pid = serving_pid(self._sidecar, self._volume, other_than=pid)
