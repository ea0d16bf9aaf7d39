"""The tables of README.md, from result documents."""

from __future__ import annotations

from typing import Any

import pytest

from benchmarks import readme
from benchmarks.workloads import Sizes, all_workloads

PLACE = "<!-- writing: begin -->\nold\n<!-- writing: end -->\n"


def row(contender: str, workload: str, metric: str, median: float) -> dict[str, Any]:
    return {
        "workload": workload,
        "contender": contender,
        "metrics": {metric: {"median": median, "min": median, "max": median, "values": [median]}},
    }


DOCUMENT: dict[str, Any] = {
    "started": "2026-01-02T00:00:00+00:00",
    "host": {"commit": "abc", "cores": 2, "processor": "P", "kernel": "6.1", "python": "3.11"},
    "options": {"rounds": 5, "divisor": 4},
    "rows": [
        row("mount-sidecar (kernel)", "sequential-write-minio", "throughput_mb_s", 250.4),
        row("geesefs", "sequential-write-minio", "throughput_mb_s", 99.94),
        row("floor client", "sequential-write-minio", "throughput_mb_s", 300.0),
        {"workload": "sequential-write-minio", "contender": "s3fs-fuse", "error": "EIO"},
    ],
}


def test_a_table_is_drawn_between_its_marks() -> None:
    text = readme.drawn(f"before\n{PLACE}after\n", {"writing": DOCUMENT})
    assert text.startswith("before\n<!-- writing: begin -->\n2 cores (P), Linux 6.1, Python 3.11, ")
    assert text.endswith("<!-- writing: end -->\nafter\n")
    assert "old" not in text
    # The best mount is bold; a peer that failed says so, one that took no part nothing.
    [line] = [line for line in text.splitlines() if line.startswith("| a large file, MB/s")]
    assert line == "| a large file, MB/s | **250** |  | 99.9 | fails |  | 300 |"
    assert readme.drawn(text, {"writing": DOCUMENT}) == text


def test_a_table_without_a_result_stays() -> None:
    assert readme.drawn(PLACE, {}) == PLACE


def test_a_table_without_a_place_is_an_error() -> None:
    with pytest.raises(ValueError, match="writing"):
        readme.drawn("", {"writing": DOCUMENT})


def test_every_line_is_of_a_workload_that_measures_it() -> None:
    measured = {one.name: set(one.metrics) for one in all_workloads(Sizes())}
    for table in readme.TABLES:
        for line in table.lines:
            assert line.metric in measured[line.workload], line
