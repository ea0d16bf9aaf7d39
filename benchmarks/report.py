"""A result document as text: the targets, then one table for each workload."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from benchmarks.ratios import is_ours, ratio


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
    if targets := document.get("targets"):
        lines += ["", "What is required, and what was reached", "", *_targets(targets)]
    for workload in document["workloads"]:
        rows = [row for row in document["rows"] if row["workload"] == workload["name"]]
        lines += ["", f"{workload['name']}: {workload['title']}", ""]
        lines += _table(workload["metrics"], rows)
        lines += _ratios(workload["metrics"], rows)
    return "\n".join(lines) + "\n"


def _targets(targets: Sequence[dict[str, Any]]) -> list[str]:
    words = {True: "pass", False: "lose", None: "not measured"}
    cells = [["", "", "against", "required", "reached [range within rounds]", ""]]
    cells += [
        [
            target["workload"],
            target["metric"],
            target["against"] or "",
            target["required"],
            _reached(target),
            words[target["passed"]],
        ]
        for target in targets
    ]
    return _aligned(cells, left=len(cells[0]))


def _reached(target: dict[str, Any]) -> str:
    if (value := target["reached"]) is None:
        return "-"
    unit = "x" if target["against"] else ""
    return f"{value['median']:.4g}{unit} [{value['min']:.4g} - {value['max']:.4g}]"


def _table(metrics: Sequence[dict[str, str]], rows: Sequence[dict[str, Any]]) -> list[str]:
    cells = [["", *(metric["title"] for metric in metrics)]]
    for row in rows:
        if "error" in row:
            cells.append([row["contender"], f"failed: {row['error']}"])
        else:
            values = (row["metrics"].get(metric["name"]) for metric in metrics)
            cells.append([row["contender"], *(_range(value) for value in values)])
    return _aligned(cells, left=1)


def _aligned(cells: Sequence[Sequence[str]], left: int) -> list[str]:
    """Lines of aligned columns, the first ``left`` to the left. Shorter rows are messages."""
    columns = len(cells[0])
    widths = [
        max((len(line[column]) for line in cells if len(line) == columns), default=0)
        for column in range(columns)
    ]
    widths[0] = max(len(line[0]) for line in cells)
    return [
        "  ".join(
            cell.ljust(width) if column < left else cell.rjust(width)
            for column, (cell, width) in enumerate(zip(line, widths, strict=False))
        ).rstrip()
        for line in cells
    ]


def _range(value: dict[str, float] | None) -> str:
    if value is None:
        return "-"
    return f"{value['median']:.4g} [{value['min']:.4g} - {value['max']:.4g}]"


def _ratios(metrics: Sequence[dict[str, str]], rows: Sequence[dict[str, Any]]) -> list[str]:
    """The ratio of our median to each other contender's, and the range of ratios by round.

    If the range includes 1, the medians do not show which is ahead.
    """
    measured = [row for row in rows if "metrics" in row]
    lines: list[str] = []
    for mine in filter(is_ours, measured):
        compared = []
        for other in measured:
            parts = [
                f"{metric['title']} {value['median']:.2f}x "
                f"[{value['min']:.2f} - {value['max']:.2f}]"
                for metric in metrics
                if other is not mine and (value := ratio(mine, other, metric["name"])) is not None
            ]
            if parts:
                compared.append(f"  {other['contender']}: {', '.join(parts)}")
        if compared:
            lines += ["", f"{mine['contender']} relative to (medians, range within rounds)"]
            lines += compared
    return lines
