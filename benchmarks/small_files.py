"""Reads of many small files: in random order, and by a data loader."""

# ruff: noqa: D102 - the protocol Workload documents the methods.

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from benchmarks import epochs, floor, readers
from benchmarks.buckets import bucket
from benchmarks.datasets import SmallObjects, require_equal
from benchmarks.failure import BenchFailure
from benchmarks.measure import CPU_EACH, FILES, FLOOR, PEAK_PSS, Baseline, Metric, Values, cost
from benchmarks.networks import PLAIN, Network
from benchmarks.others import FAST
from benchmarks.peers import OUR_DISK_CACHE, Peer, Place
from benchmarks.reading import threads
from benchmarks.servers import Server

LOCAL_FILES = "local files"

FIRST_EPOCH = Metric("first_epoch_files_per_s", "1st epoch files/s", "higher")
SECOND_EPOCH = Metric("second_epoch_files_per_s", "2nd epoch files/s", "higher")

_COMPARED = 32
_TAIL_PATIENCE_S = 2.0
"""Fewer than one in a thousand answers comes later than this."""


@dataclass(frozen=True, slots=True)
class SmallFiles:
    """Every file once, in random order: open, read to the end, close."""

    dataset: SmallObjects
    threads: int
    network: Network = PLAIN
    peers: Sequence[Peer] = FAST
    metrics: tuple[Metric, ...] = (FILES, CPU_EACH, PEAK_PSS)

    @property
    def name(self) -> str:
        return f"small-files-{self.threads}{self.network.suffix}"

    @property
    def title(self) -> str:
        return (
            f"{self.dataset.count} files of {self.dataset.size_bytes // 1000} kB in random order, "
            f"{threads(self.threads)}, cold{self.network.words}"
        )

    def on_peer(self, place: Place) -> Values:
        names = self.dataset.names
        with place.mounted() as mount:
            folder = mount.path / self.dataset.folder
            outcome, taken = cost(mount, lambda: readers.files(folder, names, threads=self.threads))
            _require_whole(self.dataset, outcome.operations, outcome.size_bytes)
            _compare(self.dataset, folder, place.server)
        return {
            FILES.name: outcome.operations / outcome.wall_s,
            CPU_EACH.name: taken.cpu_s * 1000 / outcome.operations,
            PEAK_PSS.name: taken.peak_pss_mib,
        }

    def baselines(self) -> Mapping[str, Baseline]:
        return {FLOOR: self._on_floor}

    def _on_floor(self, server: Server) -> Values:
        outcome = floor.run(
            server.endpoint,
            _gets(self.dataset, server),
            self.threads,
            patience_s=_TAIL_PATIENCE_S if self.network.behaviour else floor.PATIENCE_S,
        )
        return {
            FILES.name: outcome.operations / outcome.wall_s,
            CPU_EACH.name: outcome.cpu_s * 1000 / outcome.operations,
        }


@dataclass(frozen=True, slots=True)
class Loader:
    """Two shuffled epochs by the workers of a PyTorch-style loader."""

    dataset: SmallObjects
    network: Network = PLAIN
    peers: Sequence[Peer] = (*FAST, OUR_DISK_CACHE)
    metrics: tuple[Metric, ...] = (FIRST_EPOCH, SECOND_EPOCH, PEAK_PSS)

    @property
    def name(self) -> str:
        return f"loader{self.network.suffix}"

    @property
    def title(self) -> str:
        return (
            f"data loader, {epochs.WORKERS} worker processes, shuffled, {epochs.EPOCHS} epochs "
            f"of {self.dataset.count} files of {self.dataset.size_bytes // 1000} kB"
            f"{self.network.words}"
        )

    def on_peer(self, place: Place) -> Values:
        with place.mounted() as mount:
            folder = mount.path / self.dataset.folder
            values, taken = cost(mount, lambda: self._load(folder))
            _compare(self.dataset, folder, place.server)
        return {**values, PEAK_PSS.name: taken.peak_pss_mib}

    def baselines(self) -> Mapping[str, Baseline]:
        return {
            FLOOR: self._on_floor,
            LOCAL_FILES: lambda server: self._load(server.data / self.dataset.folder),
        }

    def _load(self, folder: Path) -> Values:
        first, second = epochs.load(folder, self.dataset.names)
        for epoch in (first, second):
            _require_whole(self.dataset, epoch.files, epoch.size_bytes)
        return {
            FIRST_EPOCH.name: first.files / first.wall_s,
            SECOND_EPOCH.name: second.files / second.wall_s,
        }

    def _on_floor(self, server: Server) -> Values:
        """The first epoch only, with one connection for each worker."""
        outcome = floor.run(
            server.endpoint,
            _gets(self.dataset, server),
            epochs.WORKERS,
        )
        return {FIRST_EPOCH.name: outcome.operations / outcome.wall_s}


def _gets(dataset: SmallObjects, server: Server) -> list[floor.Get]:
    objects = bucket(server.endpoint)
    return [
        floor.Get(objects.presigned(f"{dataset.folder}/{name}"), 0, dataset.size_bytes)
        for name in dataset.names
    ]


def _require_whole(dataset: SmallObjects, files: int, size_bytes: int) -> None:
    if (files, size_bytes) != (dataset.count, dataset.count * dataset.size_bytes):
        raise BenchFailure(f"read {files} files and {size_bytes} bytes, not all of them")


def _compare(dataset: SmallObjects, folder: Path, server: Server) -> None:
    for name in dataset.names[:_COMPARED]:
        require_equal(folder / name, server.data / dataset.folder / name)
