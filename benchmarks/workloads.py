"""What is done and measured.

Adding a row means adding a class here and naming it in :func:`all_workloads`.
A workload brings its own data, and does the same thing twice: through a mounted directory,
with cheap programs as readers, and with the floor client. Each run is on a fresh mount; a
workload that needs a second epoch or a restart does that itself and reports metrics of its
own for it.
"""

# ruff: noqa: D102 - what each method does is said once, in the protocol.

from __future__ import annotations

import os
import random
import resource
import subprocess
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Protocol

from benchmarks import floor
from benchmarks.failure import BenchFailure
from benchmarks.peers import Mount
from benchmarks.servers import Server, write_random

MIB = 1024 * 1024
MB = 1_000_000
GB = 1_000_000_000

READER_TIMEOUT_S = 600.0
SAMPLES = 16
SAMPLE_BYTES = 64 * 1024

Values = Mapping[str, float]
"""Metric name to value, in the unit that the name ends in."""


@dataclass(frozen=True, slots=True)
class Metric:
    """One column of a result.

    Attributes:
        name: key in the JSON, with its unit.
        title: heading in the table, with its unit.
        better: whether more or less is better.
    """

    name: str
    title: str
    better: Literal["higher", "lower"]


THROUGHPUT = Metric("throughput_mb_s", "MB/s", "higher")
CPU = Metric("cpu_s_per_gb", "CPU-s/GB", "lower")
READER_CPU = Metric("reader_cpu_s_per_gb", "reader CPU-s/GB", "lower")
PEAK_RSS = Metric("peak_rss_mib", "peak RSS MiB", "lower")


class Workload(Protocol):
    """One row of the report. The first metric is the one that ratios are about.

    Attributes:
        name: key in the JSON and on the command line.
        title: what it does, for people.
        metrics: what :meth:`on_mount` gives; :meth:`on_floor` may leave some out.
        writable: whether it needs a writable mount.
    """

    @property
    def name(self) -> str: ...

    @property
    def title(self) -> str: ...

    @property
    def metrics(self) -> Sequence[Metric]: ...

    @property
    def writable(self) -> bool: ...

    def seed(self, data: Path) -> None:
        """Put its objects into the bucket's folder, below names of its own."""

    def on_mount(self, mount: Mount, server: Server) -> Values:
        """Run through a mounted bucket. Raises BenchFailure, also for wrong bytes."""

    def on_floor(self, server: Server) -> Values:
        """Run with the floor client. Raises BenchFailure."""


@dataclass(frozen=True, slots=True)
class SequentialRead:
    """One reader takes one large object from start to end, cold.

    Attributes:
        size_bytes: of the object.
    """

    size_bytes: int
    name: str = "sequential-read"
    metrics: tuple[Metric, ...] = (THROUGHPUT, CPU, READER_CPU, PEAK_RSS)
    writable: bool = False

    # What measured fastest for one object on two cores.
    FLOOR_CONNECTIONS = 2
    FLOOR_PART_BYTES = 8 * MIB

    _KEY = "sequential-read/object.bin"

    @property
    def title(self) -> str:
        return f"one reader, one object of {self.size_bytes / MIB:.0f} MiB, cold"

    def seed(self, data: Path) -> None:
        write_random(data / self._KEY, self.size_bytes)

    def on_mount(self, mount: Mount, server: Server) -> Values:
        path = mount.path / self._KEY
        reader = ["dd", f"if={path}", "of=/dev/null", "bs=1M", "status=none"]
        values = measure_reading(mount, self.size_bytes, [reader])
        require_equal(path, server.data / self._KEY)
        return values

    def on_floor(self, server: Server) -> Values:
        url = server.endpoint.presigned(self._KEY)
        gets = floor.sequential(url, self.size_bytes, self.FLOOR_PART_BYTES)
        return floor_values(floor.run(server.endpoint, gets, self.FLOOR_CONNECTIONS))


def floor_values(outcome: floor.Outcome) -> Values:
    """The floor client's outcome in the mounts' metrics. It has no reader beside it."""
    return {
        THROUGHPUT.name: outcome.size_bytes / MB / outcome.wall_s,
        CPU.name: outcome.cpu_s / (outcome.size_bytes / GB),
        PEAK_RSS.name: outcome.peak_rss_bytes / MIB,
    }


def measure_reading(mount: Mount, size_bytes: int, readers: Sequence[Sequence[str]]) -> Values:
    """Run reader programs side by side, which together read ``size_bytes`` through the mount.

    Raises:
        BenchFailure: one fails, READER_TIMEOUT_S passes, or the mount's process ends.
    """
    usage = mount.process.usage()
    reader_cpu_s = _children_cpu_s()
    start_s = time.perf_counter()
    run_all(readers)
    wall_s = time.perf_counter() - start_s
    reader_cpu_s = _children_cpu_s() - reader_cpu_s
    used = mount.process.usage()
    return {
        THROUGHPUT.name: size_bytes / MB / wall_s,
        CPU.name: (used.cpu_s - usage.cpu_s) / (size_bytes / GB),
        READER_CPU.name: reader_cpu_s / (size_bytes / GB),
        PEAK_RSS.name: used.peak_rss_bytes / MIB,
    }


def require_equal(path: Path, original: Path) -> None:
    """Compare size, start, end and samples between: a fast answer must be a right one.

    Not timed, and after the clock: it sees the pages that the reader was given.

    Raises:
        BenchFailure: they differ.
    """
    size_bytes = original.stat().st_size
    if path.stat().st_size != size_bytes:
        raise BenchFailure(f"{path.name}: size {path.stat().st_size}, not {size_bytes}")
    last = max(0, size_bytes - SAMPLE_BYTES)
    offsets = [0, last, *(random.randint(0, last) for _ in range(SAMPLES))]
    with path.open("rb", buffering=0) as copy, original.open("rb", buffering=0) as source:
        for offset in offsets:
            length = min(SAMPLE_BYTES, size_bytes - offset)
            if os.pread(copy.fileno(), length, offset) != os.pread(source.fileno(), length, offset):
                raise BenchFailure(f"{path.name}: wrong bytes in the {length} from {offset}")


def run_all(commands: Sequence[Sequence[str]]) -> None:
    """Run programs side by side.

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


def _children_cpu_s() -> float:
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def all_workloads(size_bytes: int) -> tuple[Workload, ...]:
    """Every workload, in the report's order.

    Args:
        size_bytes: of the large objects.
    """
    return (SequentialRead(size_bytes),)
