"""The file in the state directory that liveness probes look at with test(1), without a port.

A probe that is a command costs a process each time, so it must be as small as test(1). The file's
time is in the future: until then the sidecar counts as alive. Process 1 makes the file for startup
probes (:func:`sidecar.mounter.system.status.note_ready`).
"""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Final

from sidecar.contract.pod import ALIVE_FILE
from sidecar.mounter.system.directories import open_directory, open_file

_BEAT_S: Final = 5.0
_VALID_S: Final = 15.0


def keep_alive_file(state: Path, is_alive: Callable[[], bool]) -> None:
    """Keep the file up to date for ever.

    Args:
        state: the sidecar's state directory.
        is_alive: whether the supervisor answers.
    """
    directory = open_directory(state)
    while True:
        if is_alive():
            with contextlib.suppress(OSError):  # a full disk
                _touch(directory, time.time() + _VALID_S)
        time.sleep(_BEAT_S)


def _touch(directory: int, time_s: float) -> None:
    file = open_file(directory, ALIVE_FILE, os.O_WRONLY | os.O_CREAT)
    try:
        os.utime(file, (time_s, time_s))
    finally:
        os.close(file)
