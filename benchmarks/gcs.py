"""Google Cloud Storage: gcsfuse, and a row of its own for writing."""

# ruff: noqa: D102 - the protocol Workload documents the methods.

from __future__ import annotations

import http.client
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote

from benchmarks import writing
from benchmarks.datasets import LargeObjects
from benchmarks.failure import BenchFailure
from benchmarks.measure import (
    CPU,
    GB,
    MB,
    MIB,
    PEAK_PSS,
    THROUGHPUT,
    Baseline,
    Metric,
    Values,
    cost,
)
from benchmarks.networks import GCS, Network
from benchmarks.peers import OUR_MOUNTS, Launch, Peer, Place, require
from benchmarks.processes import find_program, first_line
from benchmarks.servers import Endpoint

_NAME = "written.bin"
_READ_BYTES = 4 * MIB


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


MOUNTS: tuple[Peer, ...] = (OUR_MOUNTS[0], Gcsfuse())


@dataclass(frozen=True, slots=True)
class Write:
    """A new file from start to end; every contender's close(2) waits until the store has it."""

    dataset: LargeObjects
    name: str = "sequential-write-gcs"
    network: Network = GCS
    peers: tuple[Peer, ...] = MOUNTS
    metrics: tuple[Metric, ...] = (THROUGHPUT, CPU, PEAK_PSS)

    @property
    def title(self) -> str:
        size = f"{self.dataset.size_bytes / MIB:.0f} MiB"
        return f"{size} written from start to end, fsync, close, on fake-gcs-server"

    def on_peer(self, place: Place) -> Values:
        source, endpoint = place.server.data / self.dataset.keys[0], place.server.endpoint
        with place.mounted(writable=True) as mount:
            taken = cost(mount, lambda: writing.run_writer("file", source, mount.path / _NAME))[1]
            _require_stored(endpoint, source)
        return {
            THROUGHPUT.name: self.dataset.size_bytes / MB / taken.wall_s,
            CPU.name: taken.cpu_s / (self.dataset.size_bytes / GB),
            PEAK_PSS.name: taken.peak_pss_mib,
        }

    def baselines(self) -> Mapping[str, Baseline]:
        return {}


def _require_stored(endpoint: Endpoint, source: Path) -> None:
    """Compare every byte of the object that was written, and delete it. Raises BenchFailure."""
    connection = http.client.HTTPConnection(endpoint.address, timeout=60)
    try:
        connection.request("GET", endpoint.presigned(_NAME))
        response = connection.getresponse()
        with source.open("rb") as wanted:
            while True:
                data = response.read(_READ_BYTES)
                if data != wanted.read(_READ_BYTES):
                    raise BenchFailure("another content is stored")
                if not data:
                    break
        key = quote(endpoint.prefix + _NAME, safe="")
        connection.request("DELETE", f"/storage/v1/b/{endpoint.bucket}/o/{key}")
        answer = connection.getresponse()
        if answer.status not in {200, 204}:
            raise BenchFailure(f"not deleted: {json.dumps(answer.read()[:200].decode())}")
    finally:
        connection.close()
