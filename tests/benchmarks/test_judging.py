"""Ratios, targets and the report's text, from a result document."""

from __future__ import annotations

import statistics
from typing import Any

from benchmarks import ratios, targets
from benchmarks.report import text

KERNEL = "mount-sidecar (kernel)"


def row(workload: str, contender: str, **metrics: list[float]) -> dict[str, Any]:
    return {
        "workload": workload,
        "contender": contender,
        "metrics": {
            name: {
                "median": statistics.median(values),
                "min": min(values),
                "max": max(values),
                "values": values,
            }
            for name, values in metrics.items()
        },
    }


def judged(rows: list[dict[str, Any]], workload: str) -> dict[tuple[str, str | None], Any]:
    return {
        (one["metric"], one["against"]): one["passed"] for one in targets.judge(rows, [workload])
    }


def test_the_report_shows_ratios_targets_and_failures() -> None:
    rows = [
        row("w", KERNEL, x=[30.0, 15.0, 45.0]),
        row("w", "peer", x=[20.0, 30.0, 15.0]),
        {"workload": "w", "contender": "broken", "error": "boom"},
    ]
    target = {
        "workload": "w",
        "metric": "X",
        "ours": KERNEL,
        "against": "peer",
        "required": "at least 2x",
        "reached": {"median": 1.5, "min": 0.5, "max": 3.0},
        "passed": False,
    }
    document = {
        "started": "2026-01-01T00:00:00+00:00",
        "host": {"commit": "abc", "cores": 2, "processor": "p", "kernel": "k", "python": "3"},
        "server": {"version": "s"},
        "options": {"rounds": 3},
        "contenders": [],
        "skipped": [{"name": "other", "why": "absent"}],
        "workloads": [
            {
                "name": "w",
                "title": "t",
                "metrics": [{"name": "x", "title": "X", "better": "higher"}],
            }
        ],
        "rows": rows,
        "targets": [target],
    }
    report = text(document)
    assert "peer: X 1.50x [0.50 - 3.00]" in report
    assert "failed: boom" in report
    assert "not measured: other: absent" in report
    line = next(line for line in report.splitlines() if "at least 2x" in line)
    assert "1.5x [0.5 - 3]" in line
    assert line.endswith("lose")


def test_ratios_are_of_medians_with_the_range_by_round() -> None:
    rows = [
        row("w", KERNEL, x=[30.0, 15.0, 45.0], y=[1.0, 1.0, 1.0]),
        row("w", "peer", x=[20.0, 30.0, 15.0], y=[0.0, 1.0, 1.0]),
        row("other", "peer", x=[1.0, 1.0, 1.0]),
    ]
    assert ratios.every(rows) == [
        {
            "workload": "w",
            "metric": "x",
            "ours": KERNEL,
            "other": "peer",
            "median": 1.5,
            "min": 0.5,
            "max": 3.0,
            "values": [1.5, 0.5, 3.0],
        }
    ]


def test_lower_bounds_pass_at_their_bound_and_lose_below_it() -> None:
    def both(rate: float) -> dict[str, list[float]]:
        return {"first_reads_per_s": [rate], "reads_per_s": [rate]}

    def random_read(ours: float) -> dict[tuple[str, str | None], Any]:
        rows = [
            row("random-read-1", KERNEL, **both(ours), peak_pss_mib=[406.0]),
            row("random-read-1", "s3fs-fuse", **both(90.0)),
            row("random-read-1", "rclone mount", **both(100.0)),
            row("random-read-1", "floor client", **both(1000.0)),
        ]
        return judged(rows, "random-read-1")

    # Required: 5 times the better peer (100), and 0.7 of the floor (1000).
    assert random_read(700.0) == {
        ("first reads/s", "best peer"): True,
        ("first reads/s", "floor client"): True,
        ("reads/s", "best peer"): True,
        ("reads/s", "floor client"): True,
        ("peak PSS MiB", None): True,
    }
    assert random_read(500.0)["reads/s", "best peer"] is True
    assert random_read(699.0)["reads/s", "floor client"] is False
    assert random_read(499.0)["reads/s", "best peer"] is False


def test_upper_bounds_pass_at_their_bound_and_lose_above_it() -> None:
    def listing(seconds: float, heads: float, pss_mib: float) -> list[bool | None]:
        rows = [
            row(
                "list-flat",
                KERNEL,
                listing_s=[seconds],
                head_requests=[heads],
                peak_pss_mib=[pss_mib],
            ),
            row("list-flat", "raw LIST", listing_s=[10.0]),
        ]
        return list(judged(rows, "list-flat").values())

    assert listing(13.0, 0.0, 406.0) == [True, True, True]
    assert listing(13.1, 1.0, 407.0) == [False, False, False]


def test_a_target_that_was_not_measured_has_neither_passed_nor_lost() -> None:
    rows = [
        {"workload": "parallel-read", "contender": KERNEL, "error": "boom"},
        row("parallel-read", "floor client", throughput_mb_s=[1.0]),
    ]
    assert set(judged(rows, "parallel-read").values()) == {None}
    rows = [row("parallel-read", KERNEL, throughput_mb_s=[1.0], peak_pss_mib=[1.0])]
    assert judged(rows, "parallel-read") == {
        ("MB/s", "floor client"): None,
        ("peak PSS MiB", None): True,
    }
