"""A result document as text: one table for each workload, then our ratios to the others."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

OURS = "mount-sidecar"


def text(document: dict[str, Any]) -> str:
    """The report, for a terminal of about 100 columns."""
    host, options = document["host"], document["options"]
    lines = [
        f"{document['started']}, commit {host['commit']}, {host['cores']} x {host['processor']}",
        f"Linux {host['kernel']}, Python {host['python']}, {document['server']['version']}",
        f"medians of {options['rounds']} interleaved rounds [min - max]",
        "CPU and memory: the mount's whole process tree, or the floor client itself",
        "",
        *(f"{one['name']}: {one['version']}; {one['settings']}" for one in document["contenders"]),
        *(f"not measured: {one['name']}: {one['why']}" for one in document["skipped"]),
    ]
    for workload in document["workloads"]:
        rows = [row for row in document["rows"] if row["workload"] == workload["name"]]
        lines += ["", f"{workload['name']}: {workload['title']}", ""]
        lines += _table(workload["metrics"], rows)
        lines += _ratios(workload["metrics"], rows)
    return "\n".join(lines) + "\n"


def _table(metrics: Sequence[dict[str, str]], rows: Sequence[dict[str, Any]]) -> list[str]:
    cells = [["", *(metric["title"] for metric in metrics)]]
    for row in rows:
        if "error" in row:
            cells.append([row["contender"], f"failed: {row['error']}"])
        else:
            values = (row["metrics"].get(metric["name"]) for metric in metrics)
            cells.append([row["contender"], *(_range(value) for value in values)])
    widths = [
        max((len(line[column]) for line in cells if len(line) == len(metrics) + 1), default=0)
        for column in range(len(metrics) + 1)
    ]
    widths[0] = max(len(line[0]) for line in cells)
    return [
        "  ".join(
            cell.ljust(width) if column == 0 else cell.rjust(width)
            for column, (cell, width) in enumerate(zip(line, widths, strict=False))
        ).rstrip()
        for line in cells
    ]


def _range(value: dict[str, float] | None) -> str:
    if value is None:
        return "-"
    return f"{value['median']:.4g} [{value['min']:.4g} - {value['max']:.4g}]"


def _ratios(metrics: Sequence[dict[str, str]], rows: Sequence[dict[str, Any]]) -> list[str]:
    """Our median over each other one's; above 1 is a lead where more is better.

    With the least and the largest ratio within one round: where they lie on both sides of
    1, the medians do not show who is ahead.
    """
    measured = [row for row in rows if "metrics" in row]
    ours = [row for row in measured if row["contender"].startswith(OURS)]
    lines: list[str] = []
    for mine in ours:
        lines += ["", f"{mine['contender']} relative to (medians, range within rounds)"]
        for other in measured:
            if other is not mine:
                parts = [
                    f"{metric['title']} {ratio}"
                    for metric in metrics
                    if (ratio := _ratio(mine, other, metric["name"])) is not None
                ]
                lines.append(f"  {other['contender']}: {', '.join(parts)}")
    return lines


def _ratio(mine: dict[str, Any], other: dict[str, Any], metric: str) -> str | None:
    if metric not in mine["metrics"] or metric not in other["metrics"]:
        return None
    ours, theirs = mine["metrics"][metric], other["metrics"][metric]
    if not all(theirs["values"]):
        return None  # Below what the kernel's clock of 10 ms resolves.
    by_round = [a / b for a, b in zip(ours["values"], theirs["values"], strict=True)]
    ratio = ours["median"] / theirs["median"]
    return f"{ratio:.2f}x [{min(by_round):.2f} - {max(by_round):.2f}]"
