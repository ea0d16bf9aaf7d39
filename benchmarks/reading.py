"""Reads of large objects: sequential, random, a second time, and after a restart."""

# ruff: noqa: D102 - the protocol Workload documents the methods.

from __future__ import annotations

import json
import random
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from benchmarks import floor, host, page, readers
from benchmarks.buckets import bucket
from benchmarks.crew import Outcome
from benchmarks.datasets import LargeObjects, require_equal
from benchmarks.failure import BenchFailure
from benchmarks.measure import (
    AS_MANY_AS_IT_LIKES,
    CPU,
    CPU_EACH,
    FIRST_READS,
    FLOOR,
    GB,
    MB,
    PEAK_PSS,
    READER_CPU,
    READS,
    THROUGHPUT,
    Baseline,
    Metric,
    Values,
    best,
    busy,
    cost,
    run_all,
    timed,
)
from benchmarks.networks import PLAIN, Network
from benchmarks.others import DISK_CACHES, FAST
from benchmarks.peers import OUR_DISK_CACHE, Mount, Peer, Place
from benchmarks.processes import find_program
from benchmarks.servers import Server
from sidecar.units import MIB

PART_BYTES = 8 * MIB
_FEW = 4
BLOCK_BYTES = 128 * 1024
FLOOR_CONNECTIONS = 2
"""The fastest number in measurements of one object on two cores."""
DELAYED_CONNECTIONS = 16
"""Enough to reach loopback's bandwidth with 20 ms of latency for each part."""
UNDELAYED = "floor client, no delay"
LOCAL_FILE = "local file"

SECOND_EPOCH = Metric("second_epoch_mb_s", "2nd epoch MB/s", "higher")
RANDOM_4K = Metric("random_4k_per_s", "random 4 KiB/s", "higher")
DISK_COLD = Metric("from_disk_mb_s", "from disk MB/s", "higher")
DISK_WARM = Metric("warm_mb_s", "warm MB/s", "higher")
FETCHED = Metric("fetched_mb", "fetched MB", "lower")
PASSTHROUGH = Metric("passthrough_opens", "passthrough opens", "higher")

METRICS = (THROUGHPUT, CPU, READER_CPU, PEAK_PSS)
"""The metrics of a sequential read, on any store."""

_PRIMING_READS = 8
_FIRST_READS = 320
_SEAL_PAUSE_S = 1.0
_FIO_ENDS_S = 60.0
"""Seen: a mount that gave fio no answer for many minutes."""


@dataclass(frozen=True, slots=True)
class SequentialRead:
    """One reader for each object reads it from start to end, cold."""

    dataset: LargeObjects
    peers: Sequence[Peer]
    network: Network = PLAIN
    metrics: tuple[Metric, ...] = METRICS

    @property
    def name(self) -> str:
        names = {1: "sequential-read", _FEW: "parallel-read"}
        name = names.get(self.dataset.count, f"parallel-read-{self.dataset.count}")
        return f"{name}{self.network.suffix}"

    @property
    def title(self) -> str:
        size = f"{self.dataset.size_bytes / MIB:.0f} MiB"
        count = self.dataset.count
        what = f"one reader, one object of {size}" if count == 1 else f"{count} readers of {size}"
        return f"{what}, cold{self.network.words}"

    def on_peer(self, place: Place) -> Values:
        with place.mounted() as mount:
            paths = [mount.path / key for key in self.dataset.keys]
            place.server.count_anew()
            _, taken = cost(mount, lambda: run_all([_dd(path) for path in paths]))
            busy_mean = busy(self.network, place.server)
            for key in self.dataset.keys:
                require_equal(mount.path / key, place.server.data / key)
        size_bytes = self.dataset.size_bytes * self.dataset.count
        return {
            THROUGHPUT.name: size_bytes / MB / taken.wall_s,
            CPU.name: taken.cpu_s / (size_bytes / GB),
            READER_CPU.name: taken.reader_cpu_s / (size_bytes / GB),
            PEAK_PSS.name: taken.peak_pss_mib,
            **busy_mean,
        }

    def baselines(self) -> Mapping[str, Baseline]:
        if self.network.behaviour:
            return {
                FLOOR: lambda server: best(
                    [self._on_floor(server, connections) for connections in AS_MANY_AS_IT_LIKES]
                )
            }
        if self.network.delay_s:
            return {
                FLOOR: lambda server: self._on_floor(server, DELAYED_CONNECTIONS),
                UNDELAYED: lambda server: self._on_floor(
                    Server(server.undelayed, server.data, server.undelayed), FLOOR_CONNECTIONS
                ),
            }
        connections = max(FLOOR_CONNECTIONS, self.dataset.count)
        return {FLOOR: lambda server: self._on_floor(server, connections)}

    def _on_floor(self, server: Server, connections: int) -> Values:
        gets = [
            get
            for key in self.dataset.keys
            for get in floor.sequential(
                bucket(server.endpoint).presigned(key), self.dataset.size_bytes, PART_BYTES
            )
        ]
        server.count_anew()
        outcome = floor.run(server.endpoint, gets, connections)
        return {
            THROUGHPUT.name: outcome.size_bytes / MB / outcome.wall_s,
            CPU.name: outcome.cpu_s / (outcome.size_bytes / GB),
            **busy(self.network, server),
        }


@dataclass(frozen=True, slots=True)
class RandomRead:
    """Blocks of 128 KiB of one object in random order, none twice, until time is up.

    The first _FIRST_READS, 2 % of 2 GiB, are a separate metric: some contenders soon have the
    whole object on local disk, which is not possible for an object larger than the disk.
    """

    dataset: LargeObjects
    threads: int
    duration_s: float
    network: Network = PLAIN
    peers: Sequence[Peer] = FAST
    metrics: tuple[Metric, ...] = (FIRST_READS, READS, CPU_EACH, PEAK_PSS)

    @property
    def name(self) -> str:
        return f"random-read-{self.threads}{self.network.suffix}"

    @property
    def title(self) -> str:
        size = f"{self.dataset.size_bytes / MIB:.0f} MiB"
        return (
            f"random 128 KiB of one object of {size}, {threads(self.threads)}, "
            f"{self.duration_s:g} s, cold{self.network.words}"
        )

    def on_peer(self, place: Place) -> Values:
        (key,) = self.dataset.keys
        with place.mounted() as mount:
            path = mount.path / key

            def read(offsets: Sequence[int]) -> Outcome:
                return readers.blocks(
                    path, offsets, BLOCK_BYTES, threads=self.threads, duration_s=self.duration_s
                )

            (first, rest), taken = cost(mount, lambda: self._in_two(read))
            require_equal(path, place.server.data / key)
        operations = first.operations + rest.operations
        return {
            **_rates(first, rest),
            CPU_EACH.name: taken.cpu_s * 1000 / operations,
            PEAK_PSS.name: taken.peak_pss_mib,
        }

    def baselines(self) -> Mapping[str, Baseline]:
        return {FLOOR: self._on_floor}

    def _on_floor(self, server: Server) -> Values:
        (key,) = self.dataset.keys
        url = bucket(server.endpoint).presigned(key)

        def read(offsets: Sequence[int]) -> Outcome:
            gets = [floor.Get(url, offset, BLOCK_BYTES) for offset in offsets]
            return floor.run(server.endpoint, gets, self.threads, duration_s=self.duration_s)

        first, rest = self._in_two(read)
        cpu_s = first.cpu_s + rest.cpu_s
        operations = first.operations + rest.operations
        return {**_rates(first, rest), CPU_EACH.name: cpu_s * 1000 / operations}

    def _in_two(self, read: Callable[[Sequence[int]], Outcome]) -> tuple[Outcome, Outcome]:
        offsets = self._offsets()
        first = min(_FIRST_READS, len(offsets) // 2)
        return read(offsets[:first]), read(offsets[first:])

    def _offsets(self) -> list[int]:
        offsets = list(range(0, self.dataset.size_bytes - BLOCK_BYTES + 1, BLOCK_BYTES))
        random.Random(self.threads).shuffle(offsets)
        return offsets


def _rates(first: Outcome, rest: Outcome) -> Values:
    both_s = first.wall_s + rest.wall_s
    return {
        FIRST_READS.name: first.operations / first.wall_s,
        READS.name: (first.operations + rest.operations) / both_s,
    }


@dataclass(frozen=True, slots=True)
class SecondEpoch:
    """One object read a second time on the same mount, then random reads of 4 KiB."""

    dataset: LargeObjects
    duration_s: float
    network: Network = PLAIN
    peers: Sequence[Peer] = (*FAST, OUR_DISK_CACHE)
    metrics: tuple[Metric, ...] = (SECOND_EPOCH, RANDOM_4K, PEAK_PSS)

    @property
    def name(self) -> str:
        return f"second-epoch{self.network.suffix}"

    @property
    def title(self) -> str:
        size = f"{self.dataset.size_bytes / MIB:.0f} MiB"
        what = f"second epoch of one object of {size} on the same mount, then random 4 KiB in it"
        return f"{what}{self.network.words}"

    def on_peer(self, place: Place) -> Values:
        (key,) = self.dataset.keys
        with place.mounted() as mount:
            path = mount.path / key
            run_all([_dd(path)])
            values, taken = cost(mount, lambda: self._again(path))
            require_equal(path, place.server.data / key)
        return {**values, PEAK_PSS.name: taken.peak_pss_mib}

    def baselines(self) -> Mapping[str, Baseline]:
        (key,) = self.dataset.keys
        return {LOCAL_FILE: lambda server: self._again(server.data / key)}

    def _again(self, path: Path) -> Values:
        wall_s = timed(lambda: run_all([_dd(path)]))
        return {
            SECOND_EPOCH.name: self.dataset.size_bytes / MB / wall_s,
            RANDOM_4K.name: _random_4k(path, self.duration_s),
        }


@dataclass(frozen=True, slots=True)
class AfterRestart:
    """One object from the previous mount's disk cache: with page cache dropped, then warm."""

    dataset: LargeObjects
    duration_s: float
    network: Network = PLAIN
    peers: Sequence[Peer] = DISK_CACHES
    metrics: tuple[Metric, ...] = (
        DISK_COLD,
        DISK_WARM,
        RANDOM_4K,
        FETCHED,
        PASSTHROUGH,
        PEAK_PSS,
    )

    @property
    def name(self) -> str:
        return f"after-restart{self.network.suffix}"

    @property
    def title(self) -> str:
        size = f"{self.dataset.size_bytes / MIB:.0f} MiB"
        what = f"one object of {size} on disk, mounted anew: caches dropped, warm, random 4 KiB"
        return f"{what}{self.network.words}"

    def on_peer(self, place: Place) -> Values:
        (key,) = self.dataset.keys
        with place.mounted() as mount:
            _fill_disk_cache(mount, mount.path / key)
        with place.mounted() as mount:
            path = mount.path / key
            values, taken = cost(mount, lambda: self._from_disk(path))
            require_equal(path, place.server.data / key)
            own = _own_counts(mount)
        return {**values, **own, PEAK_PSS.name: taken.peak_pss_mib}

    def baselines(self) -> Mapping[str, Baseline]:
        (key,) = self.dataset.keys
        return {LOCAL_FILE: lambda server: self._from_disk(server.data / key)}

    def _from_disk(self, path: Path) -> Values:
        host.drop_caches()
        cold_s, warm_s = (timed(lambda: run_all([_dd(path)])) for _ in range(2))
        return {
            DISK_COLD.name: self.dataset.size_bytes / MB / cold_s,
            DISK_WARM.name: self.dataset.size_bytes / MB / warm_s,
            RANDOM_4K.name: _random_4k(path, self.duration_s),
        }


def threads(count: int) -> str:
    """A number of threads, for titles."""
    return "1 thread" if count == 1 else f"{count} threads"


def _dd(path: Path) -> list[str]:
    return ["dd", f"if={path}", "of=/dev/null", "bs=1M", "status=none"]


def _random_4k(path: Path, duration_s: float) -> float:
    """Reads per second, by fio: at this size, a reader in Python would be the bottleneck."""
    program = find_program("fio")
    if program is None:
        raise BenchFailure("`fio` is not installed (Debian: fio)")
    argv = [
        *(program, "--name=r", f"--filename={path}", "--readonly", "--rw=randread", "--bs=4k"),
        *("--ioengine=psync", "--time_based", f"--runtime={duration_s:g}", "--norandommap"),
        # By default fio drops the file's pages first and calls fadvise; programs seldom do.
        *("--invalidate=0", "--fadvise_hint=0", "--thread", "--output-format=json"),
    ]
    try:
        done = subprocess.run(
            argv, capture_output=True, text=True, timeout=duration_s + _FIO_ENDS_S, check=False
        )
    except subprocess.TimeoutExpired:
        raise BenchFailure(f"fio: no answer for {_FIO_ENDS_S:g} s") from None
    if done.returncode != 0:
        raise BenchFailure(f"fio: {done.stderr.strip() or done.returncode}")
    return float(json.loads(done.stdout)["jobs"][0]["read"]["iops"])


def _fill_disk_cache(mount: Mount, path: Path) -> None:
    """Read until the disk cache has the whole object.

    Ours has it when an open uses passthrough. That can take several reads: it skips ranges that the
    disk is too slow to store, and checks the whole file in the background before passthrough.
    The others get two reads.
    """
    run_all([_dd(path)])
    for _ in range(_PRIMING_READS):
        host.drop_caches()
        run_all([_dd(path)])
        if mount.status_file is None or _own_counts(mount)[PASSTHROUGH.name]:
            return
        time.sleep(_SEAL_PAUSE_S)


def _own_counts(mount: Mount) -> dict[str, float]:
    if mount.status_file is None:
        return {}
    return {
        FETCHED.name: page.total(mount, "mount_sidecar_fetched_bytes_total") / MB,
        PASSTHROUGH.name: page.total(mount, "mount_sidecar_passthrough_opens_total"),
    }
