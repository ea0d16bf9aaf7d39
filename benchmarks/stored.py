"""The content of a store, read beside the mount, to see what a write has brought."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Protocol

from benchmarks.buckets import Bucket, bucket
from benchmarks.datasets import require_equal, samples
from benchmarks.failure import BenchFailure
from benchmarks.servers import KEEP, Server

_DEADLINE_S = 180.0
_POLL_S = 0.005


class Stored(Protocol):
    """The objects of a folder below the data set's prefix."""

    def clear(self) -> None:
        """Delete all but KEEP."""

    def size_bytes(self, name: str) -> int | None:
        """The size of an object; None: it is not there."""

    def require_equal(self, name: str, original: Path) -> None:
        """Compare an object with a file, in samples. Raises BenchFailure."""


class _InFolder:
    """For a server whose data is a folder: asking the server would make it hash its files."""

    def __init__(self, objects: Bucket, folder: str, data: Path) -> None:
        self._objects = objects
        self._folder = folder
        self._data = data / folder

    def clear(self) -> None:
        for path in self._data.iterdir():
            if path.name != KEEP:  # Through the server, because it caches its directories.
                self._objects.delete(f"{self._folder}/{path.name}")

    def size_bytes(self, name: str) -> int | None:
        try:
            return (self._data / name).stat().st_size
        except FileNotFoundError:
            return None

    def require_equal(self, name: str, original: Path) -> None:
        require_equal(self._data / name, original)


class _OverNetwork:
    """For any other server."""

    def __init__(self, objects: Bucket, folder: str) -> None:
        self._objects = objects
        self._folder = folder

    def clear(self) -> None:
        for name in list(self._objects.names(f"{self._folder}/")):
            if not name.endswith((f"/{KEEP}", "/")):
                self._objects.delete(name)

    def size_bytes(self, name: str) -> int | None:
        return self._objects.size_bytes(f"{self._folder}/{name}")

    def require_equal(self, name: str, original: Path) -> None:
        with original.open("rb", buffering=0) as source:
            for offset, length in samples(original.stat().st_size):
                data = self._objects.read(f"{self._folder}/{name}", offset, length)
                if data != os.pread(source.fileno(), length, offset):
                    raise BenchFailure(f"{name}: wrong bytes in the {length} from {offset}")


def in_folder(server: Server, folder: str) -> Stored:
    """The objects in a folder of the data set; asked without added latency."""
    objects = bucket(server.undelayed)
    if server.serves_files:
        return _InFolder(objects, folder, server.data)
    return _OverNetwork(objects, folder)


def wait_for(stored: Stored, name: str, size_bytes: int) -> None:
    """Wait for an object: some programs upload after close. Raises BenchFailure."""
    deadline_s = time.monotonic() + _DEADLINE_S
    while stored.size_bytes(name) != size_bytes:
        if time.monotonic() > deadline_s:
            raise BenchFailure(f"`{name}` was never stored")
        time.sleep(_POLL_S)
