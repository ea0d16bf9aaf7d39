"""What a store has: asked beside the mount, to see what a write has brought."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Protocol

from minio.error import S3Error

from benchmarks.datasets import require_equal, samples
from benchmarks.failure import BenchFailure
from benchmarks.servers import KEEP, Endpoint, Server

_DEADLINE_S = 900.0
_POLL_S = 0.005


class Stored(Protocol):
    """The objects of a folder below the data set's prefix."""

    def clear(self) -> None:
        """Delete all but KEEP."""

    def size_bytes(self, name: str) -> int | None:
        """Of an object; None: it is not there."""

    def require_equal(self, name: str, original: Path) -> None:
        """Compare an object with a file, in samples. Raises BenchFailure."""


class _InFolder:
    """Of a server whose data is a folder: asking the server would make it hash its files."""

    def __init__(self, endpoint: Endpoint, folder: str, data: Path) -> None:
        self._endpoint = endpoint
        self._key = f"{endpoint.prefix}{folder}/"
        self._data = data / folder

    def clear(self) -> None:
        client = self._endpoint.client()
        for path in self._data.iterdir():
            if path.name != KEEP:  # Through the server, because it caches its directories.
                client.remove_object(self._endpoint.bucket, self._key + path.name)

    def size_bytes(self, name: str) -> int | None:
        try:
            return (self._data / name).stat().st_size
        except FileNotFoundError:
            return None

    def require_equal(self, name: str, original: Path) -> None:
        require_equal(self._data / name, original)


class _OverS3:
    """Of any S3 server."""

    def __init__(self, endpoint: Endpoint, folder: str) -> None:
        self._client = endpoint.client()
        self._bucket = endpoint.bucket
        self._key = f"{endpoint.prefix}{folder}/"

    def clear(self) -> None:
        for one in self._client.list_objects(self._bucket, prefix=self._key):
            if not one.object_name.endswith(f"/{KEEP}"):
                self._client.remove_object(self._bucket, one.object_name)

    def size_bytes(self, name: str) -> int | None:
        try:
            return int(self._client.stat_object(self._bucket, self._key + name).size or 0)
        except S3Error as error:
            if error.code in {"NoSuchKey", "NoSuchObject"}:
                return None
            raise BenchFailure(f"`{name}`: {error.code}") from None

    def require_equal(self, name: str, original: Path) -> None:
        with original.open("rb", buffering=0) as source:
            for offset, length in samples(original.stat().st_size):
                answer = self._client.get_object(
                    self._bucket, self._key + name, offset=offset, length=length
                )
                data = answer.read()
                answer.release_conn()
                if data != os.pread(source.fileno(), length, offset):
                    raise BenchFailure(f"{name}: wrong bytes in the {length} from {offset}")


def in_folder(server: Server, folder: str) -> Stored:
    """What a folder of the data set has; asked without added latency."""
    if server.serves_files:
        return _InFolder(server.undelayed, folder, server.data)
    return _OverS3(server.undelayed, folder)


def wait_for(stored: Stored, name: str, size_bytes: int) -> None:
    """Wait for an object: some programs upload after close. Raises BenchFailure."""
    deadline_s = time.monotonic() + _DEADLINE_S
    while stored.size_bytes(name) != size_bytes:
        if time.monotonic() > deadline_s:
            raise BenchFailure(f"`{name}` was never stored")
        time.sleep(_POLL_S)
