"""The warm-up of one volume: names, files by pattern, and what an earlier run read first.

It reads through the mount as programs do. So the same code fills names, page cache and disk cache,
and a reader that comes meanwhile shares what is in flight. Failures are passed over: the experiment
will read the same again and get the error.
"""

from __future__ import annotations

import contextlib
import os
import threading
from collections.abc import Iterable, Iterator
from typing import Final

from sidecar.mounter.reading.read_log import Run
from sidecar.mounter.system import directories
from sidecar.mounter.warming import patterns
from sidecar.units import MIB

_THREADS: Final = 8
_READ_BYTES: Final = 1 * MIB
_LOOK_S: Final = 0.1
_TO_THE_END: Final = 1 << 62


class WarmUp:
    """Reads of one volume.

    Args:
        root: where the volume is mounted.
        most_bytes: the most to read.
        stopping: once it is set, nothing more is begun.

    Attributes:
        names: entries of folders that were read.
        read_bytes: of files.
    """

    def __init__(self, root: str, most_bytes: int, stopping: threading.Event) -> None:
        self._root = root
        self._left_bytes = most_bytes
        self._stopping = stopping
        self._lock = threading.Lock()
        self.names = 0
        self.read_bytes = 0

    def read_names(self, folders: Iterable[str]) -> None:
        """The names and attributes of folders, and of all below them."""
        for folder in folders:
            for _ in self._walk("" if folder == "." else folder):
                pass

    def matching(self, globs: Iterable[str]) -> Iterator[Run]:
        """The files that match each pattern, in the order of the patterns, then by name."""
        for glob in globs:
            matches = patterns.compiled(glob).fullmatch
            for path in self._walk(patterns.base(glob)):
                if matches(path):
                    yield Run(path, 0, _TO_THE_END)

    def read(self, runs: Iterator[Run]) -> None:
        """Read runs, several at once, until there are no more, enough is read, or it must stop."""
        turn = threading.Lock()

        def work() -> None:
            buffer = memoryview(bytearray(_READ_BYTES))
            while not self._stopping.is_set() and self._left_bytes:
                with turn:
                    run = next(runs, None)
                if run is None:
                    return
                with contextlib.suppress(OSError):
                    self._read_run(run, buffer)

        threads = [threading.Thread(target=work, daemon=True) for _ in range(_THREADS)]
        for thread in threads:
            thread.start()
        for thread in threads:
            # A read in flight may wait for a store that is away; nobody waits for such a read.
            while thread.is_alive() and not self._stopping.is_set():
                thread.join(_LOOK_S)

    def _read_run(self, run: Run, buffer: memoryview) -> None:
        folder, _, name = run.key.rpartition("/")
        with self._folder(folder) as directory:
            file = directories.open_file(directory, name, os.O_RDONLY)
        try:
            offset = run.start
            while offset < run.end and not self._stopping.is_set():
                size = self._take(min(len(buffer), run.end - offset))
                count = 0
                try:
                    count = os.preadv(file, [buffer[:size]], offset) if size else 0
                finally:
                    with self._lock:
                        self._left_bytes += size - count
                        self.read_bytes += count
                if not count:
                    return
                offset += count
        finally:
            os.close(file)

    def _take(self, size: int) -> int:
        """How much of ``size`` may be read. The rest is given back."""
        with self._lock:
            size = min(size, self._left_bytes)
            self._left_bytes -= size
            return size

    def _walk(self, folder: str) -> Iterator[str]:
        """The paths of all files below a folder, by name. Links are not followed."""
        pending = [folder]
        while pending and not self._stopping.is_set():
            path = pending.pop()
            prefix = f"{path}/" if path else ""
            files, folders = [], []
            with (
                contextlib.suppress(OSError),
                self._folder(path) as directory,
                os.scandir(directory) as entries,
            ):
                for entry in entries:
                    self.names += 1
                    entry.stat(follow_symlinks=False)
                    if entry.is_dir(follow_symlinks=False):
                        folders.append(prefix + entry.name)
                    elif entry.is_file(follow_symlinks=False):
                        files.append(prefix + entry.name)
            yield from sorted(files)
            pending += sorted(folders, reverse=True)

    @contextlib.contextmanager
    def _folder(self, path: str) -> Iterator[int]:
        """A descriptor of a folder of the volume, for the block. Raises OSError."""
        descriptor = directories.open_directory(os.path.join(self._root, path))
        try:
            yield descriptor
        finally:
            os.close(descriptor)
