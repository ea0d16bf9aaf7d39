"""What one mount can do on this machine when the store costs next to nothing.

``python -m benchmarks.node`` reads 1, 2, 4, … large files at once, and small files, beside a client
without a mount. It prints the CPU time of the mount's processes, the busiest thread, and the rate
at which a process would hold its interpreter's lock all the time (user time is the most that it can
hold the lock). The store is on loopback. Store, mount and readers have cores of their own if there
are four or more. docs/performance-at-scale.md explains the figures.
"""

from __future__ import annotations

import json
import math
import os
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

import click

from benchmarks import floor, host, readers
from benchmarks.buckets import Endpoint
from benchmarks.cli import leave
from benchmarks.failure import BenchFailure
from benchmarks.measure import GB, run_all
from benchmarks.memory_objects import BLOCK
from benchmarks.networks import (
    PLAIN,
    S3LIKE_20,
    S3LIKE_85,
    S3LIKE_NEVER,
    S3LIKE_TAIL,
    Network,
)
from benchmarks.peers import OUR_MOUNTS, Mount, mounted
from benchmarks.processes import Child
from benchmarks.sendfile_server import HOST
from sidecar.units import MIB

SMALL_BYTES: Final = 110_000
_PART_BYTES: Final = 8 * MIB
_NEAR_CONNECTIONS: Final = 4
"""For the client without a mount, for each file."""
_FAR_CONNECTIONS: Final = 64
"""The same, if a connection carries little."""
_MOST_CONNECTIONS: Final = 256
_NETWORKS: Final = {one.name: one for one in (S3LIKE_20, S3LIKE_85, S3LIKE_TAIL, S3LIKE_NEVER)}
_SERVER_START_S: Final = 30.0


@dataclass(frozen=True, slots=True)
class Cores:
    """Which cores the store, the mount and the readers may use; all of them if they are few."""

    store: set[int]
    mount: set[int]
    readers: set[int]

    @classmethod
    def divided(cls) -> Cores:
        """A quarter for the store, as many for the readers, and the rest for the mount."""
        every = sorted(os.sched_getaffinity(0))
        quarter = len(every) // 4
        if not quarter:
            return cls(set(every), set(every), set(every))
        return cls(set(every[:quarter]), set(every[2 * quarter :]), set(every[quarter:][:quarter]))


@contextmanager
def on(cores: set[int]) -> Iterator[None]:
    """A block in which processes are started on these cores."""
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, cores)
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


@dataclass(frozen=True, slots=True)
class Row:
    """One measurement.

    Attributes:
        what: such as ``4 files``.
        gb_per_s: all readers together.
        floor_gb_per_s: of the client without a mount.
        worker, readers: CPU seconds for each GB, user and system, of the process that reads
            requests, and of the reader processes together.
        busiest: the thread of the mount that had most CPU time: its process's name.
        busiest_share: of a core.
    """

    what: str
    gb_per_s: float
    floor_gb_per_s: float
    worker: tuple[float, float]
    readers: tuple[float, float]
    busiest: str
    busiest_share: float

    @property
    def most_of_worker(self) -> float:
        """GB/s at which the worker would hold its interpreter's lock all the time."""
        return 1 / self.worker[0] if self.worker[0] else math.inf

    @property
    def most_of_a_reader(self) -> float:
        """GB/s at which one reader process would hold its interpreter's lock all the time."""
        return 1 / self.readers[0] if self.readers[0] else math.inf


class Bench:
    """The store and the mounts of one run."""

    def __init__(self, folder: Path, endpoint: Endpoint, cores: Cores, connections: int) -> None:
        """``connections``: of the client without a mount, for each file."""
        self._connections = connections
        self._folder = folder
        self._endpoint = endpoint
        self._cores = cores
        self._mounts = 0

    def large(self, files: int, size: int) -> Row:
        """Read so many files from start to end, each by a reader of its own."""

        def read(mount: Mount) -> int:
            paths = [mount.path / f"large-{number}" for number in range(files)]
            run_all([["dd", f"if={path}", "of=/dev/null", "bs=1M"] for path in paths])
            return files * size

        gets = [
            get
            for number in range(files)
            for get in floor.sequential(self._url(f"large-{number}"), size, _PART_BYTES)
        ]
        connections = min(files * self._connections, _MOST_CONNECTIONS)
        return self._row(f"{files} file{'s'[: files > 1]}", read, gets, connections)

    def small(self, threads: int, count: int) -> Row:
        """Read so many small files, by so many threads."""

        def read(mount: Mount) -> int:
            names = [str(number) for number in range(count)]
            return readers.files(mount.path / "small", names, threads=threads).size_bytes

        gets = [floor.Get(self._url(f"small/{number}"), 0, SMALL_BYTES) for number in range(count)]
        return self._row(f"small files, {threads} threads", read, gets, threads)

    def _url(self, key: str) -> str:
        return f"/{self._endpoint.bucket}/{self._endpoint.prefix}{key}"

    def _row(
        self,
        what: str,
        read: Callable[[Mount], int],
        gets: Sequence[floor.Get],
        connections: int,
    ) -> Row:
        with on(self._cores.readers | self._cores.mount):
            without = floor.run(self._endpoint, gets, connections)
        self._mounts += 1
        folder = self._folder / f"mount{self._mounts}"
        with ExitStack() as stack:
            with on(self._cores.mount):
                mount = stack.enter_context(mounted(OUR_MOUNTS[0], self._endpoint, folder))
            before = mount.process.thread_times()
            with on(self._cores.readers):
                began_s = time.perf_counter()
                moved = read(mount)
                wall_s = time.perf_counter() - began_s
            after = mount.process.thread_times()
            _check(mount)
        used = [taken.since(before.get(thread)) for thread, taken in after.items()]
        busiest = max(used, key=lambda taken: taken.user_s + taken.system_s)

        def cost_of(name: str) -> tuple[float, float]:
            of_name = [taken for taken in used if taken.name == name]
            user_s = sum(taken.user_s for taken in of_name)
            return user_s / (moved / GB), sum(taken.system_s for taken in of_name) / (moved / GB)

        return Row(
            what,
            moved / GB / wall_s,
            without.size_bytes / GB / without.wall_s,
            cost_of("worker"),
            cost_of("reader"),
            busiest.name,
            (busiest.user_s + busiest.system_s) / wall_s,
        )


def _check(mount: Mount) -> None:
    """Check that the fast answer is also right. Raises BenchFailure."""
    with (mount.path / "large-0").open("rb", buffering=0) as file:
        file.seek(-len(BLOCK), os.SEEK_END)
        if file.read(len(BLOCK)) != BLOCK:
            raise BenchFailure("wrong bytes")


def _table(rows: Sequence[Row]) -> Iterator[str]:
    yield (
        f"{'':24} {'':>7} {'floor':>7} {'worker':>13} {'readers':>13} {'busiest':>12}"
        f" {'at most, GB/s:':>19}"
    )
    yield (
        f"{'':24} {'GB/s':>7} {'GB/s':>7} {'user, system':>13} {'CPU-s/GB':>13} {'thread':>12}"
        f" {'worker, one reader':>19}"
    )
    for row in rows:
        worker, reader = (f"{user:.3f}, {system:.3f}" for user, system in (row.worker, row.readers))
        most = f"{row.most_of_worker:.1f}, {row.most_of_a_reader:.1f}"
        busiest = f"{row.busiest} {row.busiest_share:.0%}"
        yield (
            f"{row.what:24} {row.gb_per_s:7.2f} {row.floor_gb_per_s:7.2f} {worker:>13} {reader:>13}"
            f" {busiest:>12} {most:>19}"
        )


@contextmanager
def _serving(
    folder: Path, cores: Cores, arguments: Sequence[int], network: Network
) -> Iterator[Endpoint]:
    log = folder / "server.log"
    command = [sys.executable, "-m", "benchmarks.sendfile_server", *map(str, arguments)]
    command += network.behaviour.options() if network.behaviour else []
    with on(cores.store):
        child = Child(command, {}, log)
    with child:
        child.wait_until(lambda: log.read_text().endswith("\n"), "the store", _SERVER_START_S)
        yield Endpoint(f"{HOST}:{log.read_text().split()[0]}", "key", "secret", prefix="")


@click.command()
@click.option("--most", default=0, help="Files at once; default: as many as cores, 4 to 32.")
@click.option("--size-mib", default=0, help="Of a file; default: what fits into memory, to 4096.")
@click.option("--small", default=20_000, show_default=True, help="Small files.")
@click.option(
    "--network",
    "network_name",
    type=click.Choice(list(_NETWORKS)),
    help="The store behaves as S3 does: what a connection carries, when an answer comes.",
)
@click.option("--output", type=click.Path(path_type=Path), help="JSON file of the result.")
def main(
    most: int, size_mib: int, small: int, network_name: str | None, output: Path | None
) -> None:
    """Measure one mount on this machine, with a store that costs next to nothing. Needs root."""
    signal.signal(signal.SIGTERM, leave)
    network = _NETWORKS[network_name] if network_name else PLAIN
    cores = Cores.divided()
    most = most or min(32, max(4, len(os.sched_getaffinity(0))))
    memory = os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    size_mib = size_mib or min(4096, memory // MIB // 4 // most)
    rows: list[Row] = []
    document: dict[str, Any] = {
        "host": host.facts(),
        "size_mib": size_mib,
        "network": network.name,
    }
    click.echo(f"{document['host']}\n{most} files of {size_mib} MiB")
    with tempfile.TemporaryDirectory(prefix="bench-node-") as name:
        folder = Path(name)
        served = (most, size_mib * MIB, small, SMALL_BYTES)
        with _serving(folder, cores, served, network) as endpoint:
            connections = _FAR_CONNECTIONS if network.behaviour else _NEAR_CONNECTIONS
            bench = Bench(folder, endpoint, cores, connections)
            files = 1
            while files <= most:
                rows.append(bench.large(files, size_mib * MIB))
                files *= 2
            rows += [bench.small(threads, small) for threads in (1, 16, 64)]
    for line in _table(rows):
        click.echo(line)
    if output is not None:
        document["rows"] = [asdict(row) for row in rows]
        output.write_text(json.dumps(document, indent=2) + "\n")


if __name__ == "__main__":
    main()
