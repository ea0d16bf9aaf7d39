"""What a compared mount is: a program that serves a directory until SIGTERM; and ours."""

# ruff: noqa: D102 - the protocol documents the methods.

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import sidecar
from benchmarks import host
from benchmarks.buckets import Endpoint
from benchmarks.failure import BenchFailure
from benchmarks.mounts import detach, is_mounted
from benchmarks.processes import Child, find_program, uninterrupted
from benchmarks.servers import Server
from sidecar.contract.options import Options, TransportName
from sidecar.contract.spec import Http, Kind, PersistenceSpec, Roots, StoreSource, Volume
from sidecar.units import GIB

READY_TIMEOUT_S = 60.0
OURS = "mount-sidecar"
_DISK_CACHE_BYTES = 8 * GIB


@dataclass(frozen=True, slots=True)
class Launch:
    """How to start one mount.

    Attributes:
        argv: the command, without secrets.
        environment: variables to add to ours.
        path: the mount point.
        ready_file: exists once the mount can be used; None: as soon as it is mounted.
        status_file: our own status document; None for other programs.
    """

    argv: list[str]
    environment: dict[str, str]
    path: Path
    ready_file: Path | None = None
    status_file: Path | None = None


class Peer(Protocol):
    """One program, with its settings, that mounts the bucket.

    Attributes:
        name: in reports.
        settings: differences from the program's defaults, for reports.
    """

    @property
    def name(self) -> str: ...

    @property
    def settings(self) -> str: ...

    def missing(self) -> str | None:
        """Why it cannot run here, or None."""

    def version(self) -> str:
        """Name and version of the program."""

    def launch(self, endpoint: Endpoint, folder: Path, *, writable: bool) -> Launch:
        """Prepare a start. Everything is written below ``folder``.

        A second launch with the same folder is a restart: it finds the first one's disk cache.
        """


@dataclass(frozen=True, slots=True)
class Mount:
    """A mounted bucket; ``status_file`` as in Launch."""

    path: Path
    process: Child
    status_file: Path | None = None


@dataclass(frozen=True, slots=True)
class Place:
    """The place of one round of a workload.

    Attributes:
        peer: the program that mounts.
        server: the store, with the data set.
        folder: used by this round only; disk caches in it last from one mount to the next.
    """

    peer: Peer
    server: Server
    folder: Path

    def mounted(self, *, writable: bool = False) -> AbstractContextManager[Mount]:
        """Mount the bucket; see :func:`mounted`. A workload may do so several times."""
        return mounted(self.peer, self.server.endpoint, self.folder, writable=writable)


@contextmanager
def mounted(
    peer: Peer, endpoint: Endpoint, folder: Path, *, writable: bool = False
) -> Iterator[Mount]:
    """Mount the bucket; unmount it in any case.

    Args:
        peer: the program that mounts.
        endpoint: of the bucket.
        folder: used by this peer only; created if absent.
        writable: whether the workload writes.

    Raises:
        BenchFailure: not mounted within READY_TIMEOUT_S, or the program ended.
    """
    folder.mkdir(parents=True, exist_ok=True)
    launch = peer.launch(endpoint, folder, writable=writable)
    with running(launch, peer.name, folder / "log") as mount:
        yield mount


@contextmanager
def running(launch: Launch, name: str, log: Path) -> Iterator[Mount]:
    """Start the program and wait until its mount is usable; unmount it in any case.

    Args:
        launch: what to run.
        name: of the contender, for messages.
        log: file for its output.

    Raises:
        BenchFailure: not mounted within READY_TIMEOUT_S, or the program ended.
    """
    launch.path.mkdir(parents=True, exist_ok=True)

    def ready() -> bool:
        if launch.ready_file is not None and not launch.ready_file.exists():
            return False
        return is_mounted(launch.path)

    try:
        # Python imports from the working directory first: here that would be this clone.
        with Child(launch.argv, launch.environment, log, log.parent) as process:
            process.wait_until(ready, f"{name}: mounted", READY_TIMEOUT_S)
            os.stat(launch.path)  # Waits for FUSE_INIT, which comes after mount(2).
            yield Mount(launch.path, process, launch.status_file)
    finally:
        with uninterrupted():
            detach(launch.path)


@dataclass(frozen=True, slots=True)
class Sidecar:
    """Our mount, started by its command with a spec, as in a pod.

    Attributes:
        cache_bytes: size limit of the disk cache; 0, the product's default, turns it off.
        checkout: another clone of this project, installed in its ``.venv``; None: this one.
    """

    transport: TransportName
    cache_bytes: int = 0
    checkout: Path | None = None

    @property
    def name(self) -> str:
        cache = ", disk cache" if self.cache_bytes else ""
        other = f", {host.commit(self.checkout)}" if self.checkout else ""
        return f"{OURS} ({self.transport}{cache}{other})"

    @property
    def settings(self) -> str:
        cache = f", disk cache of {self.cache_bytes >> 30} GiB" if self.cache_bytes else ""
        return f"transport {self.transport}{cache}, defaults of the spec"

    def missing(self) -> str | None:
        there = Path(self._python).exists()
        return None if there else f"`{self._python}` is not there (make install-test)"

    def version(self) -> str:
        return f"mount-sidecar {sidecar.__version__}"

    @property
    def _python(self) -> str:
        return str(self.checkout / ".venv/bin/python") if self.checkout else sys.executable

    def launch(self, endpoint: Endpoint, folder: Path, *, writable: bool) -> Launch:
        roots = Roots(
            shared=str(folder / "shared"),
            secrets=str(folder / "secrets"),
            state=str(folder / "state"),
            termination_message=str(folder / "termination"),
        )
        for root in (roots.shared, roots.secrets, roots.state):
            Path(root).mkdir(exist_ok=True)
        source, login, environment = _access(endpoint)
        if login:
            write_private(folder / "secrets" / "bench" / "key.json", json.dumps(login))
        kind: Kind = "outputs" if writable else "data"
        path = folder / "shared" / kind / endpoint.bucket
        volume = Volume(
            name=endpoint.bucket,
            kind=kind,
            path=str(path),
            mountpoint=str(path),
            read_only=not writable,
            options=Options(
                transport=self.transport,
                cache="disk" if self.cache_bytes else "none",
                cache_bytes=self.cache_bytes or None,
            ),
            source=source,
        )
        spec = PersistenceSpec(
            volumes=(volume,),
            outputs_path=str(path) if writable else None,
            roots=roots,
            http=Http(host="127.0.0.1", port=0),
        )
        (folder / "spec.json").write_text(spec.to_json())
        ready_file = folder / "shared" / ".sidecar" / "ready"
        argv = [self._python, "-m", "sidecar", "mount"]
        argv += ["--spec", str(folder / "spec.json")]
        status_file = folder / "state" / "status.json"
        return Launch(argv, environment, path, ready_file, status_file)


def _access(endpoint: Endpoint) -> tuple[StoreSource, dict[str, str], dict[str, str]]:
    """The bucket in a spec, what its secret holds (nothing: anonymous), and the environment."""
    scheme = {"s3": "s3", "gcs": "gs"}.get(endpoint.store)
    url = f"{scheme}://{endpoint.bucket}/{endpoint.prefix}"
    login: dict[str, str] = {}
    environment: dict[str, str] = {}
    if endpoint.store == "s3":
        login = {
            "AWS_ENDPOINT_URL": endpoint.url,
            "AWS_ACCESS_KEY_ID": endpoint.access_key,
            "AWS_SECRET_ACCESS_KEY": endpoint.secret_key,
            "AWS_REGION": endpoint.region,
        }
        if endpoint.authority:
            environment["SSL_CERT_FILE"] = str(endpoint.authority)
    elif endpoint.store == "gcs":
        environment["STORAGE_EMULATOR_HOST"] = endpoint.url
    else:
        host = f"{endpoint.access_key}.blob.core.windows.net"
        url = f"wasbs://{endpoint.bucket}@{host}/{endpoint.prefix}"
        login = {
            "AZURE_CONNECTION_STRING": (
                f"AccountName={endpoint.access_key};AccountKey={endpoint.secret_key};"
                f"BlobEndpoint={endpoint.account_url};"
            )
        }
    source = StoreSource(
        store=endpoint.store,
        url=url,
        bucket=endpoint.bucket,
        prefix=endpoint.prefix,
        anonymous=not login,
        secret="bench" if login else None,
        secret_key="key.json" if login else None,
    )
    return source, login, environment


OUR_MOUNTS = (Sidecar("kernel"), Sidecar("libfuse"))
OUR_DISK_CACHE = Sidecar("kernel", _DISK_CACHE_BYTES)


def write_private(path: Path, text: str) -> None:
    """Write a file that only its owner can read (s3fs requires it)."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.touch(mode=0o600)
    path.write_text(text)


def require(name: str) -> str:
    """The path of a program. Raises BenchFailure if it is not installed."""
    program = find_program(name)
    if program is None:
        raise BenchFailure(f"`{name}` is not installed")
    return program
