"""The list of workloads. A new one is a class in its kind's module and a line here."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from benchmarks import gcs, models
from benchmarks.datasets import LargeObjects, Names, SmallObjects
from benchmarks.measure import MIB, Workload
from benchmarks.metadata import Listing
from benchmarks.networks import DELAYED, FAR, GCS, MINIO, MINIO_DELAYED, STRICT, TLS
from benchmarks.peers import ALL, FAST
from benchmarks.reading import AfterRestart, RandomRead, SecondEpoch, SequentialRead
from benchmarks.round_trips import Places, RoundTrips
from benchmarks.small_files import Loader, SmallFiles
from benchmarks.startup import TimeToReady
from benchmarks.writing import Checkpoints, ManyFilesWrite, SequentialWrite, Source

_FEW, _MANY = 4, 16
_FOLDERS = 2


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
        )


def all_workloads(sizes: Sizes) -> Sequence[Workload]:
    """In the report's order."""
    large = LargeObjects(sizes.large_bytes)
    parallel = LargeObjects(sizes.parallel_bytes, 4)
    one_large = LargeObjects(sizes.parallel_bytes)
    small = SmallObjects(sizes.files)
    round_trips = Places(Names(_FOLDERS * 1000, _FOLDERS), SmallObjects(1, folder="cold/colder"))
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
        RoundTrips(round_trips, DELAYED),
        SequentialRead(large, FAST, FAR),
        SmallFiles(small, _MANY, FAR),
        RoundTrips(round_trips, FAR),
        SequentialRead(large, FAST, TLS),
        SmallFiles(small, _MANY, TLS),
        SequentialRead(one_large, gcs.MOUNTS, GCS),
        RandomRead(one_large, 1, sizes.random_s, GCS, gcs.MOUNTS),
        SmallFiles(small, 1, GCS, gcs.MOUNTS),
        SmallFiles(small, _MANY, GCS, gcs.MOUNTS),
        gcs.Write(one_large),
        SequentialWrite(Source(sizes.written_bytes)),
        *(
            SequentialWrite(Source(max(MIB, sizes.written_bytes // writers)), writers, network)
            for network in (MINIO, MINIO_DELAYED)
            for writers in (1, _FEW, _MANY)
        ),
        SequentialWrite(Source(max(MIB, sizes.written_bytes // _FEW)), _FEW, STRICT),
        ManyFilesWrite(Source(sizes.written_bytes), sizes.written_files),
        Checkpoints(Source(sizes.checkpoint_bytes)),
        *(() if models.missing() else models.loads(sizes.model_bytes)),
        TimeToReady(),
    )
