"""Time to ready: from the interpreter's start until the ready file is written."""

# ruff: noqa: D102 - the protocol Workload documents the methods.

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path

from benchmarks.datasets import Nothing
from benchmarks.failure import BenchFailure
from benchmarks.measure import PEAK_PSS, Baseline, Metric, Values
from benchmarks.networks import PLAIN, Network
from benchmarks.peers import OUR_MOUNTS, Peer, Place, Sidecar
from benchmarks.processes import MemoryWatch
from sidecar.contract.spec import Volume
from sidecar.units import MIB
from tests.support import servers
from tests.support.clouds import AzureCloud, Cloud, GcsCloud, S3Cloud
from tests.support.sidecar import Sidecar as Run

READY = Metric("ready_s", "s to ready", "lower")
OWN_READY = Metric("own_ready_s", "s by the status page", "lower")


@dataclass(frozen=True, slots=True)
class TimeToReady:
    """Five buckets on three clouds: two on S3, two on GCS, one on Azure."""

    name: str = "time-to-ready"
    title: str = "time to ready, five buckets on three clouds"
    metrics: tuple[Metric, ...] = (READY, OWN_READY, PEAK_PSS)
    dataset: Nothing = field(default_factory=Nothing)
    network: Network = PLAIN
    peers: Sequence[Peer] = OUR_MOUNTS

    def on_peer(self, place: Place) -> Values:
        assert isinstance(place.peer, Sidecar)
        with _buckets(place.folder) as (clouds, emulators):
            run = Run(
                place.folder / "run",
                [_volume(number, cloud, place.folder) for number, cloud in enumerate(clouds)],
                secrets={
                    f"secret-{number}": cloud.server.credentials_json()
                    for number, cloud in enumerate(clouds)
                },
                environment=emulators,
                transport=place.peer.transport,
            )
            began_s = time.time()
            try:
                with run:
                    # The file's own time, since polling sees it later.
                    ready_s = (run.shared / ".sidecar" / "ready").stat().st_mtime - began_s
                    own_s = float(run.status()["time_to_ready_seconds"])
                    peak_bytes = _memory_bytes(run.pid)
            except AssertionError as error:  # It did not become ready.
                raise BenchFailure(str(error)) from None
        return {
            READY.name: ready_s,
            OWN_READY.name: own_s,
            PEAK_PSS.name: peak_bytes / MIB,
        }

    def baselines(self) -> Mapping[str, Baseline]:
        return {}


@contextmanager
def _buckets(folder: Path) -> Iterator[tuple[list[Cloud], dict[str, str]]]:
    """The buckets, on new servers, and the environment that points SDKs to the emulators."""
    with ExitStack() as stack:
        try:
            s3 = stack.enter_context(servers.MinioServer(folder / "s3"))
            gcs = stack.enter_context(servers.GcsServer(folder / "gcs"))
            azure = stack.enter_context(servers.AzureServer(folder / "azure"))
        except (servers.ToolMissing, servers.ServerFailed) as error:
            raise BenchFailure(str(error)) from None
        clouds: list[Cloud] = [
            S3Cloud(s3, "first"),
            S3Cloud(s3, "second"),
            GcsCloud(gcs, "first"),
            GcsCloud(gcs, "second"),
            AzureCloud(azure, "first"),
        ]
        for cloud in clouds:
            cloud.server.create_bucket(cloud.bucket)
        yield clouds, {"STORAGE_EMULATOR_HOST": gcs.endpoint}


def _volume(number: int, cloud: Cloud, folder: Path) -> Volume:
    name = f"bucket-{number}"
    source = replace(cloud.source(), secret=f"secret-{number}")
    return Volume(name=name, kind="data", path=str(folder / name), source=source)


def _memory_bytes(pid: int) -> int:
    """The memory of the process tree now."""
    watch = MemoryWatch(pid)
    watch.start()
    watch.stop()
    return watch.peak_bytes
