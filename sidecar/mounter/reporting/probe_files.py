"""Two files in the state directory that a kubelet's probes look at with test(1), without a port.

A probe that is a command costs a process each time, so it may be nothing larger. ``ready`` is as
old as the moment of ready. The time of ``alive`` is in the future: until then the sidecar counts as
alive.
"""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Final

from sidecar.mounter.system.directories import open_directory, open_file
from sidecar.mounter.system.status import read_status
from sidecar.pod import ALIVE_FILE, READY_FILE

_STARTING_S: Final = 0.2
"""Between two looks at the status before ready: the experiment waits for it."""
_SERVING_S: Final = 5.0
_VALID_S: Final = 15.0


class ProbeFiles:
    """Keeps the two files.

    Args:
        state: the sidecar's state directory.
        is_alive: whether the supervisor answers.
    """

    def __init__(self, state: Path, is_alive: Callable[[], bool]) -> None:
        self._state = state
        self._directory = open_directory(state)
        self._is_alive = is_alive
        self._was_ready = False
        self._next_beat_s = 0.0

    def run(self) -> None:
        """Keep them for ever."""
        while True:
            with contextlib.suppress(OSError):  # a full disk, or a status that is not there yet
                self.turn(time.monotonic())
            time.sleep(_SERVING_S if self._was_ready else _STARTING_S)

    def turn(self, now_s: float) -> None:
        """Look once. ``now_s``: monotonic. Raises OSError."""
        if now_s >= self._next_beat_s and self._is_alive():
            self._next_beat_s = now_s + _SERVING_S
            self._touch(ALIVE_FILE, time.time() + _VALID_S)
        if not self._was_ready and read_status(self._state)["ready"]:
            self._touch(READY_FILE, time.time())
            self._was_ready = True

    def _touch(self, name: str, time_s: float) -> None:
        file = open_file(self._directory, name, os.O_WRONLY | os.O_CREAT)
        try:
            os.utime(file, (time_s, time_s))
        finally:
            os.close(file)
