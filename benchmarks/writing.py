"""Writes: one large file, many small ones, checkpoints. Timed until the store has the bytes."""

# ruff: noqa: D102 - the protocol Workload documents the methods.

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from benchmarks import writers
from benchmarks.datasets import LargeObjects, require_equal
from benchmarks.failure import BenchFailure
from benchmarks.measure import (
    CPU,
    FILES,
    FLOOR,
    GB,
    MB,
    MIB,
    PEAK_PSS,
    READER_TIMEOUT_S,
    THROUGHPUT,
    Baseline,
    Metric,
    Values,
    cost,
    timed,
)
from benchmarks.peers import FAST, Peer, Place
from benchmarks.servers import Network, Server

FOLDER = "written"
SMALL_BYTES = MIB
PART_BYTES = 8 * MIB
PAUSE_S = 2.0
_POLL_S = 0.005


@dataclass(frozen=True, slots=True)
class Source(LargeObjects):
    """The bytes to write, and a folder to write into: the server has it only with an object."""

    def seed(self, data: Path) -> None:
        LargeObjects.seed(self, data)
        (data / FOLDER).mkdir(exist_ok=True)
        (data / FOLDER / "keep").write_bytes(b"x")


@dataclass(frozen=True, slots=True)
class SequentialWrite:
    """A new file from start to end."""

    dataset: Source
    name: str = "sequential-write"
    network: Network = "plain"
    peers: Sequence[Peer] = FAST
    metrics: tuple[Metric, ...] = (THROUGHPUT, CPU, PEAK_PSS)

    @property
    def title(self) -> str:
        return f"{self.dataset.size_bytes // MIB} MiB written from start to end, fsync, close"

    def on_peer(self, place: Place) -> Values:
        source, made = _source(self.dataset, place.server), _made(place.server) / "file.bin"
        with place.mounted(writable=True) as mount:
            folder = mount.path / FOLDER

            def write() -> None:
                run_writer("file", source, folder / made.name)
                _until_stored(made, self.dataset.size_bytes)

            taken = cost(mount, write)[1]
            require_equal(made, source)
        return {
            THROUGHPUT.name: self.dataset.size_bytes / MB / taken.wall_s,
            CPU.name: taken.cpu_s / (self.dataset.size_bytes / GB),
            PEAK_PSS.name: taken.peak_pss_mib,
        }

    def baselines(self) -> Mapping[str, Baseline]:
        return {FLOOR: self._on_floor}

    def _on_floor(self, server: Server) -> Values:
        _made(server)
        wall_s = timed(lambda: _put(server, "file.bin", _source(self.dataset, server)))
        return {THROUGHPUT.name: self.dataset.size_bytes / MB / wall_s}


@dataclass(frozen=True, slots=True)
class ManyFilesWrite:
    """Small files, one after the other."""

    dataset: Source
    count: int
    name: str = "small-writes"
    network: Network = "plain"
    peers: Sequence[Peer] = FAST
    metrics: tuple[Metric, ...] = (FILES, PEAK_PSS)

    @property
    def title(self) -> str:
        return f"{self.count} files of {SMALL_BYTES // MIB} MiB, each written and closed"

    def on_peer(self, place: Place) -> Values:
        source, made = _source(self.dataset, place.server), _made(place.server)
        with place.mounted(writable=True) as mount:
            folder = mount.path / FOLDER

            def write() -> None:
                run_writer("files", source, folder, self.count, SMALL_BYTES)
                for number in range(self.count):
                    _until_stored(made / f"{number:05d}.bin", SMALL_BYTES)

            taken = cost(mount, write)[1]
        return {
            FILES.name: self.count / taken.wall_s,
            PEAK_PSS.name: taken.peak_pss_mib,
        }

    def baselines(self) -> Mapping[str, Baseline]:
        return {FLOOR: self._on_floor}

    def _on_floor(self, server: Server) -> Values:
        folder = _made(server)
        with _source(self.dataset, server).open("rb") as file:
            data = file.read(SMALL_BYTES)
        source = folder.parent / "small.bin"
        source.write_bytes(data)

        def put() -> None:
            for number in range(self.count):
                _put(server, f"{number:05d}.bin", source)

        return {FILES.name: self.count / timed(put)}


@dataclass(frozen=True, slots=True)
class Checkpoints:
    """One name saved several times, each time by renaming a temporary file."""

    dataset: Source
    count: int = 3
    name: str = "checkpoints"
    network: Network = "plain"
    peers: Sequence[Peer] = FAST
    metrics: tuple[Metric, ...] = (THROUGHPUT, PEAK_PSS)

    @property
    def title(self) -> str:
        return (
            f"{self.dataset.size_bytes // MIB} MiB saved {self.count} times, {PAUSE_S:g} s apart: "
            "temporary name, fsync, rename"
        )

    def on_peer(self, place: Place) -> Values:
        source = _source(self.dataset, place.server)
        made = _made(place.server) / writers.CHECKPOINT
        with place.mounted(writable=True) as mount:
            folder = mount.path / FOLDER

            def save() -> float:
                took = sum(run_writer("checkpoints", source, folder, self.count, PAUSE_S))
                return took + timed(lambda: _until_stored(made, self.dataset.size_bytes))

            saving_s, taken = cost(mount, save)
            require_equal(made, source)
        return {
            THROUGHPUT.name: self.count * self.dataset.size_bytes / MB / saving_s,
            PEAK_PSS.name: taken.peak_pss_mib,
        }

    def baselines(self) -> Mapping[str, Baseline]:
        return {FLOOR: self._on_floor}

    def _on_floor(self, server: Server) -> Values:
        """PUTs only: a client without a file system needs no rename."""
        _made(server)
        source = _source(self.dataset, server)

        def save() -> None:
            for _ in range(self.count):
                _put(server, writers.CHECKPOINT, source)

        return {THROUGHPUT.name: self.count * self.dataset.size_bytes / MB / timed(save)}


def _source(dataset: Source, server: Server) -> Path:
    return server.data / dataset.keys[0]


def _made(server: Server) -> Path:
    """The folder where the server stores what is written, emptied of other contenders' files."""
    folder, endpoint = server.data / FOLDER, server.endpoint
    client = endpoint.client()
    for path in folder.iterdir():
        if path.name != "keep":  # Through the server, because it caches its directories.
            key = f"{endpoint.prefix}{FOLDER}/{path.name}"
            client.remove_object(endpoint.bucket, key)
    return folder


def _until_stored(path: Path, size_bytes: int) -> None:
    """Wait for an object: some programs upload after close. Raises BenchFailure."""
    deadline_s = time.monotonic() + READER_TIMEOUT_S
    while not path.exists() or path.stat().st_size != size_bytes:
        if time.monotonic() > deadline_s:
            raise BenchFailure(f"`{path.name}` was never stored")
        time.sleep(_POLL_S)


def run_writer(action: str, *arguments: object) -> list[float]:
    """Run :mod:`benchmarks.writers`; the numbers that it prints."""
    argv = [sys.executable, "-m", "benchmarks.writers", action, *map(str, arguments)]
    done = subprocess.run(
        argv, capture_output=True, text=True, check=False, timeout=READER_TIMEOUT_S
    )
    if done.returncode:
        raise BenchFailure(f"writer: {done.stderr.strip().splitlines()[-1:]}")
    return [float(line) for line in done.stdout.split()]


def _put(server: Server, name: str, source: Path) -> None:
    """Upload with MinIO's client, which sends parts concurrently."""
    endpoint = server.endpoint
    endpoint.client().fput_object(
        endpoint.bucket,
        f"{endpoint.prefix}{FOLDER}/{name}",
        str(source),
        part_size=PART_BYTES,
    )
