"""How many round trips a program waits for: the first byte of a file, a directory, absent names."""

# ruff: noqa: D102 - the protocol Workload documents the methods.

from __future__ import annotations

import os
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from benchmarks import floor
from benchmarks.buckets import bucket
from benchmarks.datasets import Names, SmallObjects
from benchmarks.failure import BenchFailure
from benchmarks.measure import Baseline, Metric, Values, run_all, timed
from benchmarks.networks import DELAYED, Network
from benchmarks.others import FAST
from benchmarks.peers import Peer, Place
from benchmarks.servers import Server

RAW_GET = "raw GET"

FIRST_BYTE = Metric("first_byte_round_trips", "first byte", "lower")
LISTED = Metric("listed_round_trips", "ls -l", "lower")
ABSENT = Metric("absent_round_trips", "absent names", "lower")


@dataclass(frozen=True, slots=True)
class Places:
    """A file, a directory to list, and one to look names up in: each in its own folder."""

    names: Names
    file: SmallObjects

    def seed(self, data: Path) -> None:
        self.names.seed(data)
        self.file.seed(data)

    def warm(self, data: Path) -> None:
        self.names.warm(data)
        self.file.warm(data)


@dataclass(frozen=True, slots=True)
class RoundTrips:
    """Times on fresh mounts, divided by the delay of the network.

    So 1.1 is one round trip and a tenth of its time for everything else.
    """

    dataset: Places
    network: Network = DELAYED
    peers: Sequence[Peer] = FAST
    metrics: tuple[Metric, ...] = (FIRST_BYTE, LISTED, ABSENT)

    @property
    def name(self) -> str:
        return f"round-trips{self.network.suffix}"

    @property
    def title(self) -> str:
        count = self.dataset.names.count // self.dataset.names.directories
        return (
            f"round trips until a new file's first byte, until `ls -l` of a new directory of "
            f"{count} names is done, and for {count} names that are absent in another"
            f"{self.network.words}"
        )

    def on_peer(self, place: Place) -> Values:
        names, file = self.dataset.names, self.dataset.file
        listed, absent, *_ = names.prefixes
        with place.mounted() as mount:
            folder = mount.path / names.folder
            first_byte_s = timed(lambda: _first_byte(mount.path / file.folder / file.names[0]))
            command = ["ls", "-l", "--color=never", str(folder / listed)]
            ls_s = timed(lambda: run_all([command]))
            count = names.count // names.directories
            absent_s = timed(lambda: _look_for(folder / absent, count))
        return {
            FIRST_BYTE.name: first_byte_s / self.network.delay_s,
            LISTED.name: ls_s / self.network.delay_s,
            ABSENT.name: absent_s / self.network.delay_s,
        }

    def baselines(self) -> Mapping[str, Baseline]:
        return {RAW_GET: self._get}

    def _get(self, server: Server) -> Values:
        url = bucket(server.endpoint).presigned(
            f"{self.dataset.file.folder}/{self.dataset.file.names[0]}"
        )
        connection = floor.connect(server.endpoint.address, None)
        began_s = time.perf_counter()
        connection.request("GET", url)
        connection.getresponse().read(1)
        taken_s = time.perf_counter() - began_s
        connection.close()
        return {FIRST_BYTE.name: taken_s / self.network.delay_s}


def _first_byte(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        if len(os.pread(descriptor, 1, 0)) != 1:
            raise BenchFailure(f"`{path.name}` is empty")
    finally:
        os.close(descriptor)


def _look_for(folder: Path, count: int) -> None:
    """Look names up as ``git status`` and ``import`` do."""
    for number in range(count):
        if (folder / f"absent-{number}").exists():
            raise BenchFailure(f"`absent-{number}` is there")
