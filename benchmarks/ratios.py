"""Our value divided by theirs: the ratio of medians, and the range of ratios by round."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from benchmarks.peers import OURS

Row = dict[str, Any]


def ratio(mine: Row, other: Row, metric: str) -> dict[str, Any] | None:
    """Our value divided by the other's: ``median``, ``min``, ``max``, and ``values`` by round.

    None if one of them lacks the metric, or the other's was measured as zero.
    """
    if metric not in mine["metrics"] or metric not in other["metrics"]:
        return None
    ours, theirs = mine["metrics"][metric], other["metrics"][metric]
    if not all(theirs["values"]):
        return None
    by_round = [a / b for a, b in zip(ours["values"], theirs["values"], strict=True)]
    median = ours["median"] / theirs["median"]
    if not all(map(math.isfinite, [median, *by_round])):
        return None
    return {"median": median, "min": min(by_round), "max": max(by_round), "values": by_round}


def measured(rows: Sequence[Row], workload: str) -> list[Row]:
    """The rows of a workload that did not fail."""
    return [row for row in rows if row["workload"] == workload and "metrics" in row]


def is_ours(row: Row) -> bool:
    """Whether a row is of one of our mounts."""
    return str(row["contender"]).startswith(OURS)


def every(rows: Sequence[Row]) -> list[dict[str, Any]]:
    """The ratios of each of our mounts to each other contender, by workload and metric."""
    found = []
    for workload in dict.fromkeys(row["workload"] for row in rows):
        here = measured(rows, workload)
        for mine in filter(is_ours, here):
            for other in here:
                for metric in mine["metrics"]:
                    value = ratio(mine, other, metric) if other is not mine else None
                    if value is not None:
                        found.append(
                            {
                                "workload": workload,
                                "metric": metric,
                                "ours": mine["contender"],
                                "other": other["contender"],
                                **value,
                            }
                        )
    return found
