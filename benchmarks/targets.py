"""The required values, and whether a result reaches them.

Ratios are our median divided by theirs, within one run. Ours is the kernel transport, for
``after-restart`` with a disk cache.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from benchmarks import metadata, models, reading, small_files, startup
from benchmarks.measure import CPU, FILES, FIRST_READS, FLOOR, PEAK_PSS, READS, THROUGHPUT, Metric
from benchmarks.peers import OUR_DISK_CACHE, OUR_MOUNTS
from benchmarks.ratios import Row, measured, ratio
from sidecar.mounter.system.resource_limits import MOST_MEMORY_BYTES

BEST_PEER = "best peer"
PEERS = ("s3fs-fuse", "rclone mount", "fsspec.fuse")
BASE_MIB = 150.0
"""Memory that a mount may use beside its read and write buffers."""


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
    _at_least("sequential-read", THROUGHPUT, 0.5, FLOOR),
    Target("sequential-read", CPU, "at most", 2.0, FLOOR),
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
    _at_least("small-files-16", FILES, 0.55, FLOOR),
    _at_least("loader", small_files.FIRST_EPOCH, 2.0, BEST_PEER),
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
    _at_least("sequential-read-20ms", THROUGHPUT, 0.8, reading.UNDELAYED),
    _at_least("random-read-16-20ms", READS, 0.8, FLOOR),
    _at_least("small-files-16-20ms", FILES, 0.8, FLOOR),
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
_MODELS = ("load-", "save-and-restore")


def judge(rows: Sequence[Row], workloads: Sequence[str]) -> list[dict[str, Any]]:
    """Every target of the workloads, with what was reached.

    Each has ``workload``, ``metric`` (its title), ``ours``, ``against``, ``required``,
    ``reached`` (median, min and max of the ratio or the value) and ``passed``; the last two
    are None if a side of the comparison was not measured.
    """
    limit_mib = BASE_MIB + MOST_MEMORY_BYTES / (1024 * 1024)
    memory = tuple(
        Target(name, PEAK_PSS, "at most", limit_mib, ours=_ours(name))
        for name in workloads
        # Its mounts are five, each with its own buffers; nobody measures that of the loads.
        if name != "time-to-ready" and not name.startswith(_MODELS)
    )
    return [
        _judged(target, measured(rows, target.workload))
        for target in (*TARGETS, *memory)
        if target.workload in workloads
    ]


def _ours(workload: str) -> str:
    """Which of our mounts is judged in a workload."""
    return (OUR_DISK_CACHE if workload == "after-restart" else OUR_MOUNTS[0]).name


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
