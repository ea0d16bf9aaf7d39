"""Writes: one large file, many small ones, checkpoints. Timed until the store has the bytes."""

# ruff: noqa: D102 - the protocol Workload documents the methods.

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

from benchmarks import floor_uploads, stored, writers
from benchmarks.buckets import bucket
from benchmarks.datasets import LargeObjects
from benchmarks.failure import BenchFailure
from benchmarks.measure import (
    AS_MANY_AS_IT_LIKES,
    CPU,
    FILES,
    FLOOR,
    GB,
    MB,
    ON_DISK,
    PEAK_PSS,
    READER_TIMEOUT_S,
    SPOOLED,
    THROUGHPUT,
    Baseline,
    Metric,
    Values,
    best,
    busy,
    cost,
    timed,
)
from benchmarks.networks import PLAIN, Network
from benchmarks.others import FAST
from benchmarks.peers import Peer, Place
from benchmarks.servers import KEEP, WRITTEN, Server
from benchmarks.spool_disk import Speed, spool_disk
from benchmarks.stored import Stored
from sidecar.units import MIB

SMALL_BYTES = MIB
_DISK_LEAST_BYTES = 256 * MIB
METRICS = (THROUGHPUT, CPU, PEAK_PSS, SPOOLED)
"""The metrics of a sequential write, on any store."""
PAUSE_S = 2.0


@dataclass(frozen=True, slots=True)
class Source(LargeObjects):
    """The bytes to write, and a folder for them, which the server has only with an object in it."""

    def seed(self, data: Path) -> None:
        LargeObjects.seed(self, data)
        (data / WRITTEN).mkdir(exist_ok=True)
        (data / WRITTEN / KEEP).write_bytes(b"x")


@dataclass(frozen=True, slots=True)
class SequentialWrite:
    """New files from start to end, with a writer for each."""

    dataset: Source
    writers: int = 1
    network: Network = PLAIN
    peers: Sequence[Peer] = FAST
    metrics: tuple[Metric, ...] = METRICS
    disk: Speed | None = None

    @property
    def name(self) -> str:
        name = "sequential-write" if self.writers == 1 else f"parallel-write-{self.writers}"
        return f"{name}{self.network.suffix}{f'-{self.disk.name}' if self.disk else ''}"

    @property
    def title(self) -> str:
        size = f"{self.dataset.size_bytes // MIB} MiB"
        what = size if self.writers == 1 else f"{self.writers} writers: {size} each"
        on = f", {self.disk.words}" if self.disk else ""
        return f"{what} written from start to end, fsync, close{self.network.words}{on}"

    def on_peer(self, place: Place) -> Values:
        if self.disk is None:
            return self._write(place)
        size_bytes = _DISK_LEAST_BYTES + 2 * self._all_bytes
        with spool_disk(place.folder, size_bytes, self.disk) as disk:
            before = disk.written_bytes()
            values = self._write(replace(place, folder=disk.path / "mount"))
            return {**values, ON_DISK.name: (disk.written_bytes() - before) / MB}

    def _write(self, place: Place) -> Values:
        source, made = _source(self.dataset, place.server), _made(place.server)
        with place.mounted(writable=True) as mount, ExitStack() as started:
            folder = mount.path / WRITTEN
            programs = {
                name: started.enter_context(writer("file", source, folder / name))
                for name in self._names
            }

            def write_one(name: str) -> None:
                programs[name]()
                stored.wait_for(made, name, self.dataset.size_bytes)

            place.server.count_anew()
            taken = cost(mount, lambda: self._together(write_one))[1]
            busy_mean = busy(self.network, place.server)
            for name in self._names:
                made.require_equal(name, source)
        return {
            THROUGHPUT.name: self._all_bytes / MB / taken.wall_s,
            CPU.name: taken.cpu_s / (self._all_bytes / GB),
            PEAK_PSS.name: taken.peak_pss_mib,
            SPOOLED.name: taken.spooled_mb,
            **busy_mean,
        }

    def baselines(self) -> Mapping[str, Baseline]:
        return {FLOOR: self._in_parts if self.network.behaviour else self._on_floor}

    def _in_parts(self, server: Server) -> Values:
        """As many parts at once as are fastest."""
        names = [f"{WRITTEN}/{name}" for name in self._names]
        rounds: list[Values] = []
        for connections in AS_MANY_AS_IT_LIKES:
            _made(server)
            server.count_anew()
            source = _source(self.dataset, server)
            outcome = floor_uploads.run(server.endpoint, names, source, connections)
            rounds.append(
                {
                    THROUGHPUT.name: self._all_bytes / MB / outcome.wall_s,
                    CPU.name: outcome.cpu_s / (self._all_bytes / GB),
                    **busy(self.network, server),
                }
            )
        return best(rounds)

    def _on_floor(self, server: Server) -> Values:
        source = _source(self.dataset, server)
        put = _putting(server)
        cpu_s = time.process_time()
        wall_s = timed(lambda: self._together(lambda name: put(name, source)))
        cpu_s = time.process_time() - cpu_s
        return {
            THROUGHPUT.name: self._all_bytes / MB / wall_s,
            CPU.name: cpu_s / (self._all_bytes / GB),
        }

    @property
    def _names(self) -> list[str]:
        return [f"file-{number}.bin" for number in range(self.writers)]

    @property
    def _all_bytes(self) -> int:
        return self.dataset.size_bytes * self.writers

    def _together(self, write_one: Callable[[str], None]) -> None:
        with ThreadPoolExecutor(self.writers) as threads:
            for done in [threads.submit(write_one, name) for name in self._names]:
                done.result()


@dataclass(frozen=True, slots=True)
class ManyFilesWrite:
    """Small files, one after the other."""

    dataset: Source
    count: int
    network: Network = PLAIN
    peers: Sequence[Peer] = FAST
    metrics: tuple[Metric, ...] = (FILES, PEAK_PSS)

    @property
    def name(self) -> str:
        return f"small-writes{self.network.suffix}"

    @property
    def title(self) -> str:
        size = f"{SMALL_BYTES // MIB} MiB"
        return f"{self.count} files of {size}, each written and closed{self.network.words}"

    def on_peer(self, place: Place) -> Values:
        source, made = _source(self.dataset, place.server), _made(place.server)
        with (
            place.mounted(writable=True) as mount,
            writer("files", source, mount.path / WRITTEN, self.count, SMALL_BYTES) as program,
        ):

            def write() -> None:
                program()
                for number in range(self.count):
                    stored.wait_for(made, f"{number:05d}.bin", SMALL_BYTES)

            taken = cost(mount, write)[1]
        return {
            FILES.name: self.count / taken.wall_s,
            PEAK_PSS.name: taken.peak_pss_mib,
        }

    def baselines(self) -> Mapping[str, Baseline]:
        return {FLOOR: self._on_floor}

    def _on_floor(self, server: Server) -> Values:
        with _source(self.dataset, server).open("rb") as file:
            data = file.read(SMALL_BYTES)
        source = server.data / "small.bin"
        source.write_bytes(data)

        put = _putting(server)

        def put_all() -> None:
            for number in range(self.count):
                put(f"{number:05d}.bin", source)

        return {FILES.name: self.count / timed(put_all)}


@dataclass(frozen=True, slots=True)
class Checkpoints:
    """One name saved several times, each time by renaming a temporary file."""

    dataset: Source
    network: Network = PLAIN
    peers: Sequence[Peer] = FAST
    count: int = 3
    metrics: tuple[Metric, ...] = (THROUGHPUT, PEAK_PSS)

    @property
    def name(self) -> str:
        return f"checkpoints{self.network.suffix}"

    @property
    def title(self) -> str:
        return (
            f"{self.dataset.size_bytes // MIB} MiB saved {self.count} times, {PAUSE_S:g} s apart: "
            f"temporary name, fsync, rename{self.network.words}"
        )

    def on_peer(self, place: Place) -> Values:
        source = _source(self.dataset, place.server)
        made, name = _made(place.server), writers.CHECKPOINT
        with (
            place.mounted(writable=True) as mount,
            writer("checkpoints", source, mount.path / WRITTEN, self.count, PAUSE_S) as program,
        ):

            def save() -> float:
                took = sum(program())
                return took + timed(lambda: stored.wait_for(made, name, self.dataset.size_bytes))

            saving_s, taken = cost(mount, save)
            made.require_equal(name, source)
        return {
            THROUGHPUT.name: self.count * self.dataset.size_bytes / MB / saving_s,
            PEAK_PSS.name: taken.peak_pss_mib,
        }

    def baselines(self) -> Mapping[str, Baseline]:
        return {FLOOR: self._on_floor}

    def _on_floor(self, server: Server) -> Values:
        """PUTs only: a client without a file system needs no rename."""
        source = _source(self.dataset, server)
        put = _putting(server)

        def save() -> None:
            for _ in range(self.count):
                put(writers.CHECKPOINT, source)

        return {THROUGHPUT.name: self.count * self.dataset.size_bytes / MB / timed(save)}


def _source(dataset: Source, server: Server) -> Path:
    return server.data / dataset.keys[0]


def _made(server: Server) -> Stored:
    """The folder for writes, without other contenders' files."""
    made = stored.in_folder(server, WRITTEN)
    made.clear()
    return made


@contextmanager
def writer(action: str, *arguments: object) -> Iterator[Callable[[], list[float]]]:
    """A program of :mod:`benchmarks.writers` that has started, and begins when it is called.

    A call returns the numbers that it printed, once it has ended. Raises BenchFailure.
    """
    argv = [sys.executable, "-m", "benchmarks.writers", action, *map(str, arguments)]
    pipe = subprocess.PIPE
    with subprocess.Popen(argv, text=True, stdin=pipe, stdout=pipe, stderr=pipe) as process:

        def write() -> list[float]:
            try:
                printed, errors = process.communicate("\n", READER_TIMEOUT_S)
            except subprocess.TimeoutExpired:
                raise BenchFailure(f"writer: not done in {READER_TIMEOUT_S:g} s") from None
            if process.returncode:
                raise BenchFailure(f"writer: {errors.strip().splitlines()[-1:]}")
            return [float(line) for line in printed.split()]

        try:
            assert process.stdout is not None
            process.stdout.readline()
            yield write
        finally:
            process.kill()


def _putting(server: Server) -> Callable[[str, Path], None]:
    """A function that uploads a file into the emptied folder, by a client of the cloud."""
    _made(server)
    objects = bucket(server.endpoint)
    return lambda name, source: objects.put(f"{WRITTEN}/{name}", source)
