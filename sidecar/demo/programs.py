"""Runs one program and watches it without ever blocking for long."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

from sidecar.errors import EXIT_OK, DemoFailed, ReadyTimeout

_STOP_TIMEOUT_S = 30.0
_POLL_S = 0.02


class Program:
    """A running program that ends with the demo, even if the demo is killed.

    Args:
        name: its name in messages.
        command: the program and its arguments.
        log: the file for its standard error.
        output: the file for its standard output; None for ``log``.
        env: its whole environment; None for this process's.
        check: called in every wait; an error that it raises ends the wait.
    """

    def __init__(
        self,
        name: str,
        command: Sequence[str | Path],
        *,
        log: Path,
        output: Path | None,
        env: Mapping[str, str] | None,
        check: Callable[[], None],
    ) -> None:
        self._name, self._log, self._check = name, log, check
        self._output = output or log
        # setpriv(1): the kernel sends SIGTERM if this process is killed. In a session of its
        # own the program gets no Ctrl-C. The demo gets it, and ends its programs in the right
        # order (the sidecar must save while the server still runs).
        with log.open("ab") as errors, self._output.open("ab") as results:
            self._process = subprocess.Popen(
                ["setpriv", "--pdeathsig", "TERM", *map(str, command)],
                env=env,
                stdin=subprocess.DEVNULL,
                stdout=results,
                stderr=errors,
                start_new_session=True,
            )

    def wait_until(self, condition: Callable[[], bool], timeout_s: float) -> None:
        """Wait until ``condition`` is true while the program runs.

        Raises:
            DemoFailed: the program ended before.
            ReadyTimeout: it took longer than ``timeout_s`` seconds.
        """
        deadline_s = time.monotonic() + timeout_s
        while not condition():
            if self._process.poll() is not None:
                raise self._failure("before it was ready")
            if time.monotonic() > deadline_s:
                raise ReadyTimeout(f"{self._name} was not ready after {timeout_s:.0f} s")
            self._pause()

    def lines(self) -> Iterator[str]:
        """The lines that the program prints, until it ends.

        Raises:
            DemoFailed: its exit status is not 0.
        """
        with self._output.open() as output:
            unfinished = ""
            ended = False
            while not ended:
                ended = (
                    self._process.poll() is not None
                )  # asked before reading, so that what follows is the last read
                *lines, unfinished = (unfinished + output.read()).split("\n")
                yield from lines
                self._pause()
        if self._process.returncode != EXIT_OK:
            raise self._failure()

    def stop(self) -> int:
        """Send SIGTERM, and after 30 s SIGKILL to its whole session; the exit status."""
        if self._process.poll() is None:
            self._process.terminate()
        try:
            return self._process.wait(_STOP_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            os.killpg(self._process.pid, signal.SIGKILL)
            return self._process.wait()

    def stop_cleanly(self) -> None:
        """Stop the program. Raises DemoFailed if its exit status is not 0."""
        if self.stop() != EXIT_OK:
            raise self._failure()

    def _pause(self) -> None:
        self._check()
        time.sleep(_POLL_S)

    def _failure(self, when: str = "") -> DemoFailed:
        # Our own signal may have hit the program, too, before it had a session of its own.
        self._check()
        said = self._log.read_text(errors="replace").splitlines()
        last = said[-1] if said else "it said nothing"
        return DemoFailed(
            " ".join(f"{self._name} ended with status {self._process.returncode} {when}".split())
            + f": {last}"
        )
