"""A result document as a plot: one panel for each workload, one bar for each contender."""

from __future__ import annotations

import importlib.util
import itertools
from collections.abc import Container, Sequence
from pathlib import Path
from typing import Any

from benchmarks.peers import OURS

_COLUMNS = 3
_PANEL_INCHES = (4.6, 2.0)
_OURS_COLORS = ("#0b5fa5", "#6ba6d6", "#0a8f8f")
_PEER_COLOR = "#b8b8b8"
_BASELINE_COLOR = "#444444"


def missing() -> str | None:
    """Why no plot can be drawn here, or None."""
    if importlib.util.find_spec("matplotlib") is None:
        return "matplotlib is not installed (scripts/install.sh bench)"
    return None


def draw(document: dict[str, Any], path: Path) -> None:
    """Draw median and range of each workload's first metric into an SVG file."""
    import matplotlib as mpl

    mpl.use("svg")
    # A fixed salt and no date: a new run changes only the lines whose values changed.
    mpl.rcParams.update({"svg.hashsalt": "benchmarks", "font.size": 8})
    from matplotlib import pyplot as plt

    workloads = [
        (workload, rows)
        for workload in document["workloads"]
        if (rows := [row for row in document["rows"] if _is_drawn(row, workload)])
    ]
    count = -(-len(workloads) // _COLUMNS)
    figure, grid = plt.subplots(
        count,
        _COLUMNS,
        figsize=(_PANEL_INCHES[0] * _COLUMNS, _PANEL_INCHES[1] * count + 0.6),
        layout="constrained",
        squeeze=False,
    )
    peers = {one["name"] for one in document["contenders"]}
    most = max((len(rows) for _, rows in workloads), default=1)
    for (workload, rows), axes in zip(workloads, grid.flat, strict=False):
        _panel(axes, workload, rows, peers)
        axes.set_ylim(most - 0.5, -0.5)  # First on top; the same bar width in every panel.
    for axes in grid.flat[len(workloads) :]:
        axes.set_axis_off()
    host = document["host"]
    figure.suptitle(
        f"medians and ranges of rounds: {document['options']['rounds']}; "
        f"{host['cores']} cores, Linux {host['kernel']}, commit {host['commit']}\n"
        "blue: ours, light grey: other mounts, dark: without a mount"
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, format="svg", metadata={"Date": None})
    plt.close(figure)


def _is_drawn(row: dict[str, Any], workload: dict[str, Any]) -> bool:
    first = workload["metrics"][0]["name"]
    return row["workload"] == workload["name"] and first in row.get("metrics", {})


def _panel(
    axes: Any, workload: dict[str, Any], rows: list[dict[str, Any]], peers: set[str]
) -> None:
    metric = workload["metrics"][0]
    values = [row["metrics"][metric["name"]] for row in rows]
    medians = [value["median"] for value in values]
    errors = [
        [value["median"] - value["min"] for value in values],
        [value["max"] - value["median"] for value in values],
    ]
    places = range(len(rows))
    colors = colors_of([row["contender"] for row in rows], peers)
    axes.barh(places, medians, xerr=errors, color=colors, error_kw={"elinewidth": 0.8})
    axes.set_yticks(places, [row["contender"] for row in rows])
    for place, value in zip(places, values, strict=True):
        axes.annotate(
            f"{value['median']:,.0f}" if value["median"] >= 100 else f"{value['median']:.3g}",
            (value["max"], place),
            xytext=(3, 0),
            textcoords="offset points",
            va="center",
        )
    axes.margins(x=0.18)
    axes.set_xlim(left=0)
    axes.spines[["top", "right"]].set_visible(False)
    less = ", less is better" if metric["better"] == "lower" else ""
    axes.set_title(f"{workload['name']}: {metric['title']}{less}", loc="right")


def colors_of(contenders: Sequence[str], peers: Container[str]) -> list[str]:
    """The color of each bar: blue for ours, even if there are more of them than blues."""
    ours = itertools.cycle(_OURS_COLORS)
    return [
        next(ours) if name.startswith(OURS) else _PEER_COLOR if name in peers else _BASELINE_COLOR
        for name in contenders
    ]
