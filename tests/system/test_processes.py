"""How processes end, in words."""

from __future__ import annotations

import signal
import subprocess
import sys

import pytest

from sidecar.mounter.system.processes import Ending


@pytest.mark.parametrize(
    ("program", "words"),
    [
        ("import sys; sys.exit(3)", "exit status 3"),
        ("import os; os.kill(os.getpid(), 9)", "SIGKILL (out of memory?)"),
        ("import os; os.kill(os.getpid(), 11)", "SIGSEGV"),
        # Python names only the first and the last real-time signal.
        ("import os; os.kill(os.getpid(), 40)", "signal 40"),
    ],
)
def test_an_ending_says_what_ended_a_process(program: str, words: str) -> None:
    process = subprocess.Popen([sys.executable, "-c", program])
    status = process.wait()
    wait_status = -status if status < 0 else status << 8
    ending = Ending.of_wait_status(wait_status)
    assert str(ending) == words
    assert (ending.exit_status is None) != (ending.signal is None)


def test_endings_are_equal_by_what_ended_the_process() -> None:
    assert Ending.of_wait_status(9) == Ending(exit_status=None, signal=signal.SIGKILL)
    assert Ending.of_wait_status(9 << 8) == Ending(exit_status=9, signal=None)
