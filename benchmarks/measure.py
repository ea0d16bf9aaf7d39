"""The interface of a workload, its metrics, and how CPU and memory are measured."""

# ruff: noqa: D102 - the protocol documents the methods.

from __future__ import annotations

import resource
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, Protocol, TypeVar

from benchmarks.datasets import Dataset
from benchmarks.failure import BenchFailure
from benchmarks.networks import Network
from benchmarks.peers import Mount, Peer, Place
from benchmarks.servers import Server
from sidecar.units import MIB

MB = 1_000_000
GB = 1_000_000_000

READER_TIMEOUT_S = 900.0
AS_MANY_AS_IT_LIKES = (8, 16, 32, 64)
"""Connections of the floor client if one carries little; the best number counts."""

FLOOR = "floor client"
"""Name of the contender in :mod:`benchmarks.floor`."""

Values = Mapping[str, float]
"""Metric name to value, in the unit at the end of the name."""

Baseline = Callable[[Server], Values]
"""Runs a workload without a mount. Raises BenchFailure."""

Result = TypeVar("Result")


@dataclass(frozen=True, slots=True)
class Metric:
    """One column of a result.

    Attributes:
        name: key in the JSON, with its unit.
        title: heading in the table, with its unit.
        better: which values are better.
    """

    name: str
    title: str
    better: Literal["higher", "lower"]


THROUGHPUT = Metric("throughput_mb_s", "MB/s", "higher")
FIRST_READS = Metric("first_reads_per_s", "first reads/s", "higher")
READS = Metric("reads_per_s", "reads/s", "higher")
FILES = Metric("files_per_s", "files/s", "higher")
CPU = Metric("cpu_s_per_gb", "CPU-s/GB", "lower")
CPU_EACH = Metric("cpu_ms_each", "CPU-ms each", "lower")
READER_CPU = Metric("reader_cpu_s_per_gb", "reader CPU-s/GB", "lower")
PEAK_PSS = Metric("peak_pss_mib", "peak PSS MiB", "lower")
SPOOLED = Metric("spooled_mb", "MB for the disk", "lower")
"""Written to files of a disk. Files that are deleted soon may never get there."""
ON_DISK = Metric("on_disk_mb", "MB on the disk", "lower")
"""Bytes that had reached the spool's disk when the store had everything."""
BUSY = Metric("busy_connections", "connections busy", "lower")
"""The mean number while there was at least one."""


class Workload(Protocol):
    """What all contenders do; one table of the report. Plots show the first metric.

    Attributes:
        name: key in the JSON and on the command line.
        title: one line for the report.
        metrics: measured by :meth:`on_peer` and baselines, which may leave some out.
        dataset: the objects it needs.
        network: how the server is reached.
        peers: the mounts that take part.
    """

    @property
    def name(self) -> str: ...

    @property
    def title(self) -> str: ...

    @property
    def metrics(self) -> Sequence[Metric]: ...

    @property
    def dataset(self) -> Dataset: ...

    @property
    def network(self) -> Network: ...

    @property
    def peers(self) -> Sequence[Peer]: ...

    def on_peer(self, place: Place) -> Values:
        """Run on a peer's mount. Raises BenchFailure, also for wrong bytes."""

    def baselines(self) -> Mapping[str, Baseline]:
        """The same work without a mount, by contender's name."""


@dataclass(frozen=True, slots=True)
class Cost:
    """Time and memory of an action on a mount.

    Attributes:
        cpu_s: user and system time of the mount's process tree.
        reader_cpu_s: user and system time of the programs that the action ran.
        peak_pss_mib: memory of the mount's process tree.
        spooled_mb: what the mount's process tree wrote to files of a disk.
    """

    wall_s: float
    cpu_s: float
    reader_cpu_s: float
    peak_pss_mib: float
    spooled_mb: float


def cost(mount: Mount, action: Callable[[], Result]) -> tuple[Result, Cost]:
    """Run an action and measure its cost. Raises BenchFailure if the mount's process ends."""
    with mount.process.watching_memory() as memory:
        reader_cpu_s, cpu_s = _children_cpu_s(), mount.process.cpu_s()
        disk_bytes = mount.process.disk_bytes()
        began_s = time.perf_counter()
        result = action()
        wall_s = time.perf_counter() - began_s
        cpu_s = mount.process.cpu_s() - cpu_s
        reader_cpu_s = _children_cpu_s() - reader_cpu_s
        spooled_mb = (mount.process.disk_bytes() - disk_bytes) / MB
    return result, Cost(wall_s, cpu_s, reader_cpu_s, memory.peak_bytes / MIB, spooled_mb)


def busy(network: Network, server: Server) -> Values:
    """BUSY since :attr:`Server.count_anew`, on a store that counts it."""
    return {BUSY.name: server.busy()} if network.behaviour else {}


def best(rounds: Sequence[Values]) -> Values:
    """The best round of the floor client with several numbers of connections."""
    return max(rounds, key=lambda values: values[THROUGHPUT.name])


def run_all(commands: Sequence[Sequence[str]]) -> None:
    """Run programs concurrently.

    Raises:
        BenchFailure: one fails, or READER_TIMEOUT_S passes.
    """
    running = [
        subprocess.Popen(
            argv,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
        )
        for argv in commands
    ]
    deadline_s = time.monotonic() + READER_TIMEOUT_S
    try:
        for process in running:
            _, errors = process.communicate(timeout=max(0.0, deadline_s - time.monotonic()))
            if process.returncode != 0:
                raise BenchFailure(f"reader: {errors.strip() or process.returncode}")
    except subprocess.TimeoutExpired:
        raise BenchFailure(f"reader: not done within {READER_TIMEOUT_S:.0f} s") from None
    finally:
        for process in running:
            process.kill()
            process.communicate()


def timed(action: Callable[[], object]) -> float:
    """Seconds that an action took."""
    began_s = time.perf_counter()
    action()
    return time.perf_counter() - began_s


def _children_cpu_s() -> float:
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime
