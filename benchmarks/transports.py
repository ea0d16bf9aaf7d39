"""Compares the two transports: ``python -m benchmarks.transports``.

Both serve the same file system over a store in the server's memory, so that only the way
between kernel and file system differs. Clients are cheap: dd, ls, and loops of one system
call in two processes (:mod:`benchmarks.clients`).
"""

from __future__ import annotations

import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click

from benchmarks import host, report, runner
from benchmarks.cli import leave
from benchmarks.failure import BenchFailure
from benchmarks.measure import CPU, GB, MB, THROUGHPUT, Metric, Values, run_all
from benchmarks.peers import OURS, Launch, Mount, running
from sidecar.mounter.system import mounts
from sidecar.units import MIB

TRANSPORTS = ("kernel", "libfuse")
LATEST = Path(__file__).resolve().parent / "results" / "transports.json"
CLIENTS = 2
"""Client processes; on two cores, two are as fast as four."""
TTL_S = 600.0
"""Lifetime of metadata: nothing expires within a round."""
IDLE_S = 0.1
"""A server that used no CPU time for this long, ten ticks of its clock, is idle."""
OPERATION_CPU = Metric("cpu_us_per_operation", "server CPU-us each", "lower")


@dataclass(frozen=True, slots=True)
class Sizes:
    """Sizes of a round.

    Attributes:
        file_mib: size of the large file.
        files: entries of the directory.
    """

    file_mib: int
    files: int


@dataclass(frozen=True, slots=True)
class Measure:
    """One table of the report; ``run`` gets a fresh mount with cold kernel caches."""

    name: str
    title: str
    metrics: tuple[Metric, ...]
    run: Callable[[Mount, Sizes], Values]


def _sequential(mount: Mount, sizes: Sizes) -> Values:
    size_bytes = sizes.file_mib * MIB
    reader = ["dd", f"if={mount.path / 'large'}", "of=/dev/null", "bs=1M", "status=none"]
    wall_s, cpu_s = _timed(mount, lambda: run_all([reader]))
    return {
        THROUGHPUT.name: size_bytes / MB / wall_s,
        CPU.name: cpu_s / (size_bytes / GB),
    }


def _list_long(mount: Mount, sizes: Sizes) -> Values:
    listing = ["ls", "-l", "--color=never", str(mount.path / "many")]
    run_all([listing])  # Fills the server's cache of listings.
    host.drop_caches()
    _wait_idle(mount)
    wall_s, cpu_s = _timed(mount, lambda: run_all([listing]))
    return {
        "entries_per_s": sizes.files / wall_s,
        OPERATION_CPU.name: cpu_s / sizes.files * 1e6,
    }


def _lookups(mount: Mount, sizes: Sizes) -> Values:
    return _by_clients(mount, sizes, "lookups", warm=False)


def _opens(mount: Mount, sizes: Sizes) -> Values:
    return _by_clients(mount, sizes, "opens", warm=True)


def _by_clients(mount: Mount, sizes: Sizes, action: str, *, warm: bool) -> Values:
    """Operations per second of CLIENTS processes, each with its own share of the names.

    Args:
        warm: whether the kernel has the names in its cache.
    """
    directory = mount.path / "many"
    run_all([["ls", "-U", str(directory)]])  # Fills the server's cache of listings.
    host.drop_caches()
    if warm:
        run_all([["ls", "-l", "--color=never", str(directory)]])
    count = sizes.files // CLIENTS
    clients = [
        subprocess.Popen(
            [
                *(sys.executable, "-m", "benchmarks.clients"),
                *(action, str(directory), str(number * count), str(count)),
            ],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        for number in range(CLIENTS)
    ]
    try:
        _expect(clients, "ready")
        _wait_idle(mount)
        wall_s, cpu_s = _timed(mount, lambda: _go(clients))
    finally:
        for client in clients:
            client.kill()
            client.communicate()
    operations = count * CLIENTS
    return {f"{action}_per_s": operations / wall_s, OPERATION_CPU.name: cpu_s / operations * 1e6}


def _go(clients: Sequence[subprocess.Popen[str]]) -> None:
    for client in clients:
        assert client.stdin is not None
        client.stdin.write("\n")
        client.stdin.flush()
    _expect(clients, "done")


def _expect(clients: Sequence[subprocess.Popen[str]], word: str) -> None:
    for client in clients:
        assert client.stdout is not None
        if client.stdout.readline().strip() != word:
            raise BenchFailure(f"a client was not {word}; its error is above")


def _wait_idle(mount: Mount) -> None:
    """Wait until the server has handled the FORGETs of the dropped caches."""
    used_s = -1.0
    while (now_s := mount.process.cpu_s()) != used_s:
        used_s = now_s
        time.sleep(IDLE_S)


def _timed(mount: Mount, action: Callable[[], object]) -> tuple[float, float]:
    """Wall time of an action, and the server's CPU time during it."""
    before_s = mount.process.cpu_s()
    began_s = time.perf_counter()
    action()
    wall_s = time.perf_counter() - began_s
    return wall_s, mount.process.cpu_s() - before_s


MEASURES = (
    Measure("sequential", "dd of one large file, cold", (THROUGHPUT, CPU), _sequential),
    Measure(
        "lookups",
        f"stat of names the kernel does not know, listing cached, {CLIENTS} processes",
        (Metric("lookups_per_s", "lookups/s", "higher"), OPERATION_CPU),
        _lookups,
    ),
    Measure(
        "opens",
        f"open and close of names the kernel knows, {CLIENTS} processes",
        (Metric("opens_per_s", "opens/s", "higher"), OPERATION_CPU),
        _opens,
    ),
    Measure(
        "list-long",
        "ls -l of one directory, listing cached, kernel caches cold",
        (Metric("entries_per_s", "entries/s", "higher"), OPERATION_CPU),
        _list_long,
    ),
)


def measure(
    measures: Sequence[Measure],
    sizes: Sizes,
    rounds: int,
    folder: Path,
    progress: runner.Progress,
) -> dict[str, Any]:
    """Run interleaved rounds of every measure on both transports; see :func:`runner.run`."""
    document: dict[str, Any] = {
        "schema": runner.SCHEMA,
        "started": runner.now(),
        "host": host.facts(),
        "server": {"version": "objects in the serving process's memory", "settings": ""},
        "options": {"file_mib": sizes.file_mib, "files": sizes.files, "rounds": rounds},
        "contenders": [
            {"name": _name(transport), "version": "this tree", "settings": "read-only"}
            for transport in TRANSPORTS
        ],
        "skipped": [],
        "workloads": [runner.describe(one.name, one.title, one.metrics) for one in measures],
        "rows": [],
    }
    for one in measures:
        values: dict[str, list[Values]] = {transport: [] for transport in TRANSPORTS}
        for number in range(1, rounds + 1):
            for transport in TRANSPORTS:
                with (
                    tempfile.TemporaryDirectory(prefix="round-", dir=folder) as scratch,
                    _mounted(transport, sizes, Path(scratch)) as mount,
                ):
                    host.drop_caches()
                    values[transport].append(one.run(mount, sizes))
                outcome = runner.one_line(one.metrics, values[transport][-1])
                progress(f"{one.name} round {number}/{rounds} {transport}: {outcome}")
        document["rows"] += [
            {
                "workload": one.name,
                "contender": _name(transport),
                "metrics": runner.summary(values[transport]),
            }
            for transport in TRANSPORTS
        ]
    document["finished"] = runner.now()
    return document


@contextmanager
def _mounted(transport: str, sizes: Sizes, folder: Path) -> Iterator[Mount]:
    path = folder / "mnt"
    argv = [
        *(sys.executable, "-m", "tests.support.serve", transport, str(path), str(folder / "state")),
        *("--file-mib", str(sizes.file_mib), "--files", str(sizes.files)),
        *("--read-only", "--ttl", str(TTL_S)),
    ]
    environment = {"TMPDIR": str(folder), "PYTHONPATH": str(host.ROOT)}
    with running(Launch(argv, environment, path), transport, folder / "log") as mount:
        if transport == "kernel":
            mounts.Mountpoint(str(path)).raise_readahead()  # As the supervisor does.
        yield mount


def _name(transport: str) -> str:
    return f"{OURS} ({transport})"


@click.command()
@click.option("--file-mib", default=1024, show_default=True, type=click.IntRange(1))
@click.option("--files", default=10_000, show_default=True, type=click.IntRange(CLIENTS))
@click.option("--rounds", default=5, show_default=True, type=click.IntRange(1))
@click.option(
    "--measure",
    "names",
    multiple=True,
    type=click.Choice([one.name for one in MEASURES]),
    help="Run only this one; repeatable.",
)
@click.option(
    "--output",
    default=LATEST,
    show_default="benchmarks/results/transports.json",
    type=click.Path(dir_okay=False, path_type=Path),
    help="JSON file of the result.",
)
@click.option(
    "--work-folder",
    default=Path(tempfile.gettempdir()),
    type=click.Path(exists=True, file_okay=False, path_type=Path),
    help="Folder for the mounts during the run.",
)
def main(
    file_mib: int,
    files: int,
    rounds: int,
    names: tuple[str, ...],
    output: Path,
    work_folder: Path,
) -> None:
    """Measure the kernel transport and libfuse in one run. Needs root."""
    # Unwind through every `finally`, as Ctrl-C does, so that nothing stays mounted.
    signal.signal(signal.SIGTERM, leave)
    chosen = [one for one in MEASURES if not names or one.name in names]
    parent = work_folder.resolve()  # The mount table has paths without symlinks.
    with tempfile.TemporaryDirectory(prefix="sidecar-bench-", dir=parent) as folder:
        try:
            document = measure(
                chosen,
                Sizes(file_mib, files),
                rounds,
                Path(folder),
                progress=lambda line: click.echo(line, err=True),
            )
        except BenchFailure as failure:
            raise click.ClickException(str(failure)) from None
    runner.write(document, output)
    click.echo(report.text(document))


if __name__ == "__main__":
    main()
