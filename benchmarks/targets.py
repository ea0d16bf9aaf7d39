"""The required values, and whether a result reaches them.

Ratios are our median divided by theirs, within one run. Ours is the kernel transport, for
``after-restart`` with a disk cache.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from benchmarks import applications, metadata, models, reading, round_trips, small_files, startup
from benchmarks.measure import CPU, FILES, FIRST_READS, FLOOR, PEAK_PSS, READS, THROUGHPUT, Metric
from benchmarks.peers import OUR_DISK_CACHE, OUR_MOUNTS
from benchmarks.ratios import Row, measured, ratio
from sidecar.mounter.system.resource_limits import MOST_MEMORY_BYTES
from sidecar.units import MIB

BEST_PEER = "best peer"
PEERS = ("mountpoint-s3", "geesefs", "gcsfuse", "s3fs-fuse", "rclone mount", "fsspec.fuse")
WAITING_PEERS = ("mountpoint-s3", "geesefs", "s3fs-fuse")
"""Their close(2) returns when the store has the file."""
BASE_MIB = 150.0
"""Memory that a mount may use beside its read and write buffers."""
_LEAST_MIB = {
    "sequential-read": 100.0,
    "parallel-read": 200.0,
    "small-files-1": 60.0,
    "small-files-16": 60.0,
    "list-tree": 120.0,
}
"""How much a workload may use, if that is less."""


@dataclass(frozen=True, slots=True)
class Target:
    """One bound on a ratio or on a value.

    Attributes:
        against: the contender that ours is divided by; None: the bound is for our value.
    """

    workload: str
    metric: Metric
    direction: Literal["at least", "at most"]
    bound: float
    against: str | None = None
    ours: str = OUR_MOUNTS[0].name


def _at_least(workload: str, metric: Metric, bound: float, against: str) -> Target:
    return Target(workload, metric, "at least", bound, against)


_FROM_DISK = (reading.DISK_COLD, reading.DISK_WARM, reading.RANDOM_4K)
_RANDOM_THREADS = (1, 16)

TARGETS: tuple[Target, ...] = (
    _at_least("sequential-read", THROUGHPUT, 2.0, "s3fs-fuse"),
    _at_least("sequential-read", THROUGHPUT, 2.5, "rclone mount"),
    _at_least("sequential-read", THROUGHPUT, 1.75, "mountpoint-s3"),
    *(
        target
        for name in ("sequential-read", "sequential-read-tls")
        for target in (
            _at_least(name, THROUGHPUT, 0.72, FLOOR),
            Target(name, CPU, "at most", 1.5, FLOOR),
        )
    ),
    _at_least("parallel-read", THROUGHPUT, 0.6, FLOOR),
    *(
        _at_least(f"random-read-{n}", metric, bound, against)
        for n in _RANDOM_THREADS
        for metric in (FIRST_READS, READS)
        for bound, against in ((5.0, BEST_PEER), (0.7, FLOOR))
    ),
    _at_least("small-files-1", FILES, 1.4, BEST_PEER),
    _at_least("small-files-1", FILES, 0.55, FLOOR),
    _at_least("small-files-16", FILES, 2.5, BEST_PEER),
    _at_least("small-files-16", FILES, 0.75, FLOOR),
    _at_least("small-files-16-tls", FILES, 0.75, FLOOR),
    _at_least("loader", small_files.FIRST_EPOCH, 2.0, BEST_PEER),
    _at_least("loader", small_files.FIRST_EPOCH, 0.75, FLOOR),
    Target(
        "loader", small_files.FIRST_EPOCH, "at least", 0.9, OUR_MOUNTS[0].name, OUR_DISK_CACHE.name
    ),
    _at_least("loader", small_files.SECOND_EPOCH, 0.8, small_files.LOCAL_FILES),
    _at_least("second-epoch", reading.SECOND_EPOCH, 0.9, reading.LOCAL_FILE),
    _at_least("second-epoch", reading.RANDOM_4K, 0.9, reading.LOCAL_FILE),
    *(
        Target("after-restart", metric, "at least", 0.9, reading.LOCAL_FILE, OUR_DISK_CACHE.name)
        for metric in _FROM_DISK
    ),
    *(
        Target(name, metadata.LISTING, "at most", 1.3, metadata.RAW_LIST)
        for name in ("list-tree", "list-flat")
    ),
    *(Target(name, metadata.HEADS, "at most", 0.0) for name in ("list-tree", "list-flat")),
    _at_least("random-read-16-20ms", READS, 0.8, FLOOR),
    *(
        target
        for delay in ("20ms", "80ms")
        for target in (
            _at_least(f"sequential-read-{delay}", THROUGHPUT, 0.72, FLOOR),
            _at_least(f"small-files-16-{delay}", FILES, 0.95, FLOOR),
            # One round trip more than a GET, two for a directory, and half of one for the rest.
            Target(f"round-trips-{delay}", round_trips.FIRST_BYTE, "at most", 2.5),
            Target(f"round-trips-{delay}", round_trips.LISTED, "at most", 2.5),
        )
    ),
    *(
        _at_least(f"{name}-{cloud}{delay}", metric, 1.0, BEST_PEER)
        for cloud in ("gcs", "azure")
        for name, metric, delay in (
            ("sequential-read", THROUGHPUT, ""),
            ("parallel-read", THROUGHPUT, ""),
            ("random-read-1", FIRST_READS, ""),
            ("random-read-16", FIRST_READS, ""),
            ("small-files-1", FILES, ""),
            ("small-files-16", FILES, ""),
            ("loader", small_files.FIRST_EPOCH, ""),
            ("sequential-read", THROUGHPUT, "-20ms"),
            ("random-read-16", FIRST_READS, "-20ms"),
            ("small-files-16", FILES, "-20ms"),
            ("sequential-write", THROUGHPUT, ""),
            ("parallel-write-4", THROUGHPUT, ""),
            ("parallel-write-16", THROUGHPUT, ""),
        )
    ),
    *(
        Target(f"application-{name}", applications.requests(step), "at most", 3.0)
        for name, step in (
            ("tar", "tar"),
            ("unzip", "unzip"),
            ("cp", "cp"),
            ("rsync", "rsync"),
            ("npm", "npm"),
        )
    ),
    Target("application-rsync", applications.requests("rsync again"), "at most", 1.0),
    Target("application-git", applications.requests("status"), "at most", 1.0),
    *(
        target
        for network in ("minio", "minio-20ms")
        for writers in ("sequential-write", "parallel-write-4", "parallel-write-16")
        for target in (
            _at_least(f"{writers}-{network}", THROUGHPUT, 0.9, FLOOR),
            Target(f"{writers}-{network}", CPU, "at most", 2.0, FLOOR),
            *(_at_least(f"{writers}-{network}", THROUGHPUT, 1.0, peer) for peer in WAITING_PEERS),
        )
    ),
    *(
        _at_least(name, metric, bound, against)
        for name, metric in (
            ("sequential-write", THROUGHPUT),
            ("small-writes", FILES),
            ("checkpoints", THROUGHPUT),
        )
        for bound, against in ((2.0, "s3fs-fuse"), (1.2, "rclone mount"), (0.7, FLOOR))
    ),
    Target("time-to-ready", startup.READY, "at most", 1.5),
    *(
        Target(f"load-{name}", models.LOADED, "at most", 0.6, models.DOWNLOAD)
        for name in ("safetensors-mmap", "safetensors-read", "torch-load", "torch-load-mmap")
    ),
)
_WITHOUT_MEMORY = ("application-", "load-", "save-and-restore", "round-trips-", "time-to-ready")
"""The memory of the first four is not measured; the last has five mounts, each with its buffers."""


def judge(rows: Sequence[Row], workloads: Sequence[str]) -> list[dict[str, Any]]:
    """Every target of the workloads, with what was reached.

    Each has ``workload``, ``metric`` (its title), ``ours``, ``against``, ``required``,
    ``reached`` (median, min and max of the ratio or the value) and ``passed``; the last two
    are None if a side of the comparison was not measured.
    """
    usual_mib = BASE_MIB + MOST_MEMORY_BYTES / MIB
    memory = tuple(
        Target(name, PEAK_PSS, "at most", _LEAST_MIB.get(name, usual_mib), ours=_ours(name))
        for name in workloads
        if not name.startswith(_WITHOUT_MEMORY)
    )
    return [
        _judged(target, measured(rows, target.workload))
        for target in (*TARGETS, *memory)
        if target.workload in workloads
    ]


def _ours(workload: str) -> str:
    """Which of our mounts is judged in a workload."""
    is_from_disk = workload.startswith("after-restart")
    return (OUR_DISK_CACHE if is_from_disk else OUR_MOUNTS[0]).name


def _judged(target: Target, rows: Sequence[Row]) -> dict[str, Any]:
    reached = _reached(target, rows)
    within: Callable[[float, float], bool] = (
        float.__ge__ if target.direction == "at least" else float.__le__
    )
    return {
        "workload": target.workload,
        "metric": target.metric.title,
        "ours": target.ours,
        "against": target.against,
        "required": f"{target.direction} {target.bound:g}{'x' if target.against else ''}",
        "reached": reached,
        "passed": None if reached is None else within(reached["median"], target.bound),
    }


def _reached(target: Target, rows: Sequence[Row]) -> dict[str, float] | None:
    by_name = {row["contender"]: row for row in rows}
    mine = by_name.get(target.ours)
    if mine is None:
        return None
    if target.against is None:
        value = mine["metrics"].get(target.metric.name)
    else:
        other = (
            _best(target.metric, rows)
            if target.against == BEST_PEER
            else by_name.get(target.against)
        )
        value = ratio(mine, other, target.metric.name) if other else None
    return None if value is None else {key: float(value[key]) for key in ("median", "min", "max")}


def _best(metric: Metric, rows: Sequence[Row]) -> Row | None:
    peers = [row for row in rows if row["contender"] in PEERS and metric.name in row["metrics"]]
    choose = max if metric.better == "higher" else min
    return choose(peers, key=lambda row: row["metrics"][metric.name]["median"], default=None)
