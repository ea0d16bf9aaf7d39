"""The last minute of a mount: everything is saved as soon as it is written, open files too.

The store may be too slow for everything. So files that can be whole in time come first: small ones
beside each other, and large ones one after the other, the smallest first. If large files shared a
slow line, none of them would be whole at the end.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Final

from sidecar.mounter.filesystem.content.contents import Contents
from sidecar.mounter.filesystem.content.saving import Saver
from sidecar.mounter.filesystem.inodes.inode import File
from sidecar.mounter.writing.uploader import Uploader

_SAVERS: Final = 4
_TURN_S: Final = 0.5


class FinalSaving:
    """Saves the files of one mount until its time is up."""

    def __init__(
        self,
        contents: Contents,
        saver: Saver,
        uploader: Uploader,
    ) -> None:
        self._contents = contents
        self._saver = saver
        self._uploader = uploader
        self._deadline_s = 0.0
        self._runs = threading.Lock()
        self._threads = ThreadPoolExecutor(_SAVERS, thread_name_prefix="last-minute")
        self._small: dict[int, Future[None]] = {}
        self._large: Future[None] | None = None

    def end_at(self, deadline_s: float) -> None:
        """Set the deadline (monotonic). May be called again, from any thread."""
        self._deadline_s = deadline_s
        self._uploader.hurry(deadline_s)

    def run(self, deadline_s: float, leaving: threading.Event, tell: Callable[[], None]) -> None:
        """Save until ``leaving`` or the deadline; ``tell`` is called about twice a second.

        Another call meanwhile sets another deadline for both, and saves after this one.
        """
        self.end_at(deadline_s)
        with self._runs:
            while not leaving.is_set() and time.monotonic() < self._deadline_s:
                self._save()
                tell()
                leaving.wait(_TURN_S)
            tell()

    def _save(self) -> None:
        """Begin to save files that are dirty and are not being saved."""
        self._small = {number: f for number, f in self._small.items() if not f.done()}
        large = []
        for inode in sorted(self._contents.dirty(), key=lambda inode: inode.unsaved_bytes):
            if self._saver.is_large(inode):
                large.append(inode)
            elif inode.id not in self._small:
                self._small[inode.id] = self._threads.submit(self._save_each, [inode])
        if large and (self._large is None or self._large.done()):
            self._large = self._threads.submit(self._save_each, large)

    def _save_each(self, inodes: list[File]) -> None:
        for inode in inodes:
            self._saver.attempt(inode)  # the store's observer reports failures; it is tried again
