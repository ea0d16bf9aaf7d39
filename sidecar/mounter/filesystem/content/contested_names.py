"""Names whose files are deleted or replaced between a LOOKUP and the OPEN that follows it.

On a local disk open(2) finds the file and opens it in one step. Through FUSE the file may lose
its name in between. At ESTALE the kernel looks the name up and opens it again, but only once
(fs/namei.c, do_filp_open): a program that loses a second time would see an error that no local disk
gives. So a file whose name was contested a moment ago stays open when it loses the name, until the
kernel forgets it. A program that has looked it up and is about to open it keeps the kernel from
that.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from typing import Final

from sidecar.mounter.filesystem.inodes.inode import File

CONTESTED_S: Final = 10.0
"""Two attempts of one open(2) are milliseconds apart, on a loaded machine more than a second."""
_MOST_NAMES: Final = 1024


class ContestedNames:
    """The contested names of one mount, and their files that stay open. Thread-safe."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._until_s: dict[tuple[int, str], float] = {}  # directory's inode, name: monotonic
        self._held: deque[tuple[float, File]] = deque()  # until when (monotonic)

    def add(self, file: File) -> None:
        """Note that a file could not be opened: it had lost its name since it was looked up."""
        name = _name_of(file)
        if name is None:
            return
        with self._lock:
            self._until_s.pop(name, None)  # so that the order is that of the times
            if len(self._until_s) == _MOST_NAMES:
                del self._until_s[next(iter(self._until_s))]
            self._until_s[name] = time.monotonic() + CONTESTED_S

    def hold(self, file: File) -> bool:
        """Take a file that is about to lose its name; whether it stays open until it expires."""
        now_s = time.monotonic()
        with self._lock:
            if self._until_s.get(_name_of(file) or (0, ""), 0.0) <= now_s:
                return False
            self._held.append((now_s + CONTESTED_S, file))
            return True

    def expired(self) -> list[File]:
        """The files that nobody will open any more, each as often as it was held."""
        now_s = time.monotonic()
        with self._lock:
            held, self._held = self._held, deque()
            found = []
            for until_s, file in held:
                if until_s <= now_s or not file.lookups:
                    found.append(file)
                else:
                    self._held.append((until_s, file))
            return found


def _name_of(file: File) -> tuple[int, str] | None:
    return (file.parent.id, file.name) if file.parent is not None else None
