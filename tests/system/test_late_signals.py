"""A signal that comes when nobody waits for it any more."""

from __future__ import annotations

import subprocess
import sys

LATE = """
import gc, os, signal
from sidecar.mounter.system.processes import Processes
processes = Processes()
del processes
gc.collect()
os.kill(os.getpid(), signal.SIGCHLD)
"""


def test_a_child_that_ends_last_of_all_is_no_exception() -> None:
    done = subprocess.run(
        [sys.executable, "-c", LATE], capture_output=True, text=True, check=True, timeout=60
    )
    assert done.stderr == ""
