"""The list of workloads. A new one is a class in its kind's module and a line here."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from benchmarks import models, reading, writing
from benchmarks.applications import applications
from benchmarks.datasets import LargeObjects, Names, SmallObjects
from benchmarks.measure import BUSY, ON_DISK, Workload
from benchmarks.metadata import Listing
from benchmarks.networks import (
    AZURE,
    AZURE_DELAYED,
    AZURE_DELAYED_NAMES,
    AZURE_NAMES,
    DELAYED,
    FAR,
    GCS,
    GCS_DELAYED,
    GCS_DELAYED_NAMES,
    GCS_NAMES,
    MINIO,
    MINIO_DELAYED,
    S3LIKE_20,
    S3LIKE_85,
    S3LIKE_NEVER,
    S3LIKE_TAIL,
    STRICT,
    TLS,
    Network,
)
from benchmarks.others import ALL, FAST, ON_AZURE, ON_GCS, PATIENT, S3LIKE
from benchmarks.peers import OUR_DISK_CACHE, Peer
from benchmarks.reading import AfterRestart, RandomRead, SecondEpoch, SequentialRead
from benchmarks.round_trips import Places, RoundTrips
from benchmarks.small_files import Loader, SmallFiles
from benchmarks.spool_disk import FREE_DISK, NODE_DISK
from benchmarks.startup import TimeToReady
from benchmarks.writing import Checkpoints, ManyFilesWrite, SequentialWrite, Source
from sidecar.units import MIB

_FEW, _MANY = 4, 16
_WRITERS = (1, _FEW, _MANY)
_FOLDERS = 2
_PLACES = Places(Names(_FOLDERS * 1000, _FOLDERS), SmallObjects(1, folder="cold/colder"))
_FEWER = 10
"""Fewer names to list, by this factor, on servers that look at all names for every page."""


@dataclass(frozen=True, slots=True)
class Sizes:
    """Sizes and counts of the workloads.

    Attributes:
        large_bytes: of the large object.
        parallel_bytes: of each of the four objects that are read at once.
        files: number of small files to read.
        entries: number of objects to list.
        random_s: duration of random reads.
        written_bytes: of the large file to write.
        checkpoint_bytes: of a checkpoint.
        written_files: number of files of 1 MiB to write.
        model_bytes: of the weights that are loaded.
        tree_files: number of files of the tree that applications write.
    """

    large_bytes: int = 2048 * MIB
    parallel_bytes: int = 512 * MIB
    files: int = 5_000
    entries: int = 100_000
    random_s: float = 5.0
    written_bytes: int = 1024 * MIB
    checkpoint_bytes: int = 512 * MIB
    written_files: int = 1_000
    model_bytes: int = 1024 * MIB
    tree_files: int = 300

    def divided(self, divisor: int) -> Sizes:
        """Smaller sizes, for a smoke test."""
        return Sizes(
            large_bytes=max(MIB, self.large_bytes // divisor),
            parallel_bytes=max(MIB, self.parallel_bytes // divisor),
            files=max(_MANY, self.files // divisor),
            entries=max(1, self.entries // divisor // 100) * 100,
            random_s=max(0.5, self.random_s / divisor),
            written_bytes=max(MIB, self.written_bytes // divisor),
            checkpoint_bytes=max(MIB, self.checkpoint_bytes // divisor),
            written_files=max(_MANY, self.written_files // divisor),
            model_bytes=max(16 * MIB, self.model_bytes // divisor),
            tree_files=max(12, self.tree_files // divisor),
        )


def all_workloads(sizes: Sizes) -> Sequence[Workload]:
    """All workloads, in the report's order."""
    large = LargeObjects(sizes.large_bytes)
    parallel = LargeObjects(sizes.parallel_bytes, 4)
    small = SmallObjects(sizes.files)
    fewer = SmallObjects(max(_MANY, sizes.files // 5 * 2))
    return (
        SequentialRead(large, ALL),
        SequentialRead(parallel, FAST),
        RandomRead(large, 1, sizes.random_s),
        RandomRead(large, _MANY, sizes.random_s),
        SmallFiles(small, 1),
        SmallFiles(small, _MANY),
        Loader(small),
        SecondEpoch(large, sizes.random_s),
        AfterRestart(large, sizes.random_s),
        Listing(Names(sizes.entries, 100)),
        Listing(Names(sizes.entries, 1)),
        SequentialRead(large, FAST, DELAYED),
        RandomRead(large, _MANY, sizes.random_s, DELAYED),
        SmallFiles(small, _MANY, DELAYED),
        RoundTrips(_PLACES, DELAYED),
        SequentialRead(large, FAST, FAR),
        SmallFiles(small, _MANY, FAR),
        RoundTrips(_PLACES, FAR),
        SequentialRead(large, FAST, TLS),
        SmallFiles(small, _MANY, TLS),
        *_on_cloud(sizes, GCS, GCS_DELAYED, ON_GCS),
        *_names_on_cloud(sizes, GCS_NAMES, GCS_DELAYED_NAMES, ON_GCS),
        *_on_cloud(sizes, AZURE, AZURE_DELAYED, ON_AZURE),
        *_names_on_cloud(sizes, AZURE_NAMES, AZURE_DELAYED_NAMES, ON_AZURE),
        SequentialWrite(Source(sizes.written_bytes)),
        *(
            SequentialWrite(Source(max(MIB, sizes.written_bytes // writers)), writers, network)
            for network in (MINIO, MINIO_DELAYED)
            for writers in _WRITERS
        ),
        SequentialWrite(Source(max(MIB, sizes.written_bytes // _FEW)), _FEW, STRICT),
        ManyFilesWrite(Source(sizes.written_bytes), sizes.written_files),
        Checkpoints(Source(sizes.checkpoint_bytes)),
        *_s3like(sizes, S3LIKE_20, sizes.large_bytes * 5 // 16),
        *_s3like(sizes, S3LIKE_85, sizes.large_bytes // 2),
        *(
            SequentialWrite(
                Source(3 * sizes.written_bytes),
                network=S3LIKE_85,
                peers=S3LIKE,
                metrics=(*writing.METRICS, ON_DISK, BUSY),
                disk=disk,
            )
            for disk in (NODE_DISK, FREE_DISK)
        ),
        SmallFiles(fewer, _MANY, S3LIKE_TAIL, S3LIKE),
        SmallFiles(fewer, _MANY, S3LIKE_NEVER, PATIENT),
        *applications(sizes.tree_files),
        *(() if models.missing() else models.loads(sizes.model_bytes)),
        TimeToReady(),
    )


def _s3like(sizes: Sizes, network: Network, stream_bytes: int) -> Sequence[Workload]:
    """Workloads for connections that carry little and answers that take their time."""

    def objects(of: int, count: int) -> LargeObjects:
        return LargeObjects(max(MIB, stream_bytes // of), count)

    reads = (objects(1, 1), objects(2, _FEW), objects(8, _MANY))
    writes = ((writers, Source(max(MIB, sizes.written_bytes // writers))) for writers in _WRITERS)
    return (
        *(SequentialRead(dataset, S3LIKE, network, (*reading.METRICS, BUSY)) for dataset in reads),
        *(
            SequentialWrite(source, writers, network, S3LIKE, (*writing.METRICS, BUSY))
            for writers, source in writes
        ),
    )


def _on_cloud(
    sizes: Sizes, network: Network, delayed: Network, peers: Sequence[Peer]
) -> Sequence[Workload]:
    """The same workloads on another cloud's server, smaller, since these servers are slow."""
    large = LargeObjects(sizes.parallel_bytes)
    few = LargeObjects(max(MIB, sizes.parallel_bytes // _FEW), _FEW)
    small = SmallObjects(sizes.files)
    with_disk = (*peers, OUR_DISK_CACHE)
    return (
        SequentialRead(large, peers, network),
        SequentialRead(few, peers, network),
        RandomRead(large, 1, sizes.random_s, network, peers),
        RandomRead(large, _MANY, sizes.random_s, network, peers),
        SmallFiles(small, 1, network, peers),
        SmallFiles(small, _MANY, network, peers),
        Loader(small, network, with_disk),
        SecondEpoch(large, sizes.random_s, network, with_disk),
        AfterRestart(large, sizes.random_s, network, (OUR_DISK_CACHE,)),
        SequentialRead(large, peers, delayed),
        RandomRead(large, _MANY, sizes.random_s, delayed, peers),
        SmallFiles(small, _MANY, delayed, peers),
        *(
            SequentialWrite(
                Source(max(MIB, sizes.checkpoint_bytes // writers)), writers, network, peers
            )
            for writers in _WRITERS
        ),
        ManyFilesWrite(
            Source(sizes.checkpoint_bytes), max(_MANY, sizes.written_files // 2), network, peers
        ),
        Checkpoints(Source(max(MIB, sizes.checkpoint_bytes // 2)), network, peers),
    )


def _names_on_cloud(
    sizes: Sizes, network: Network, delayed: Network, peers: Sequence[Peer]
) -> Sequence[Workload]:
    return (
        Listing(Names(max(1, sizes.entries // _FEWER // 100) * 100, 100), network, peers),
        RoundTrips(_PLACES, delayed, peers),
    )
