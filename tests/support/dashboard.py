"""Sends the Grafana dashboard's queries to a Prometheus, and can draw the results.

    python -m tests.support.dashboard http://127.0.0.1:9090 [PICTURE.png]

It prints one line for each query, and fails if one returns nothing. Rates are over five minutes,
which has samples enough of a Prometheus that scrapes every minute. The picture needs
matplotlib (`scripts/install.sh bench`).
"""

from __future__ import annotations

import json
import math
import sys
import time
import urllib.parse
import urllib.request
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.support.servers import REPOSITORY

DASHBOARD = REPOSITORY / "manifests/components/grafana-dashboard/mount-sidecar.json"

_COLUMNS = 3
_RATE_WINDOW = "5m"
_UNITS = {
    "Bps": ("MB/s", 1e6),
    "bytes": ("MB", 1e6),
    "ops": ("1/s", 1),
    "percentunit": ("%", 0.01),
    "reqps": ("1/s", 1),
    "s": ("s", 1),
    "short": ("", 1),
}


@dataclass(frozen=True, slots=True)
class Query:
    """One target of one panel.

    Attributes:
        expression: PromQL, with Grafana's variables replaced.
        legend: Grafana's template for the name of a series.
    """

    panel: str
    unit: str
    expression: str
    legend: str


@dataclass(frozen=True, slots=True)
class Series:
    """One series of a panel; times in seconds since 1970."""

    name: str
    times: list[float]
    values: list[float]


def queries(rate_window: str = _RATE_WINDOW) -> list[Query]:
    """Every query of the dashboard, for all namespaces and pods.

    Args:
        rate_window: over which rates are taken, such as ``5m``: at least two scrapes.
    """
    found = []
    for panel in json.loads(DASHBOARD.read_text())["panels"]:
        for target in panel["targets"]:
            expression = target["expr"]
            for name, value in (
                ("$__rate_interval", rate_window),
                ("$namespace", ".*"),
                ("$pod", ".*"),
            ):
                expression = expression.replace(name, value)
            unit = panel["fieldConfig"]["defaults"]["unit"]
            found.append(Query(panel["title"], unit, expression, target["legendFormat"]))
    return found


def ask(url: str, query: Query, start_s: float, end_s: float, step_s: float = 1.0) -> list[Series]:
    """The series that Prometheus returns, without values that are not finite."""
    arguments = {"query": query.expression, "start": start_s, "end": end_s, "step": step_s}
    address = f"{url}/api/v1/query_range?{urllib.parse.urlencode(arguments)}"
    with urllib.request.urlopen(address, timeout=30) as answer:
        result: list[dict[str, Any]] = json.load(answer)["data"]["result"]
    found = []
    for series in result:
        name = query.legend
        for label, value in series["metric"].items():
            name = name.replace("{{" + label + "}}", value)
        points = [(moment, float(value)) for moment, value in series["values"]]
        points = [(moment, value) for moment, value in points if math.isfinite(value)]
        if points:
            moments, values = zip(*points, strict=True)
            found.append(Series(name, list(moments), list(values)))
    return found


def draw(answers: list[tuple[Query, list[Series]]], picture: Path) -> None:
    """Draw the panels in the dashboard's layout."""
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot as plt

    panels: dict[str, list[tuple[Query, list[Series]]]] = {}
    for query, series in answers:
        panels.setdefault(query.panel, []).append((query, series))
    rows = math.ceil(len(panels) / _COLUMNS)
    figure, axes = plt.subplots(rows, _COLUMNS, figsize=(15, 2.7 * rows), squeeze=False)
    start_s = min(s.times[0] for _, found in answers for s in found)
    for axis in axes.flat:
        axis.set_axis_off()
    for axis, (title, lines) in zip(axes.flat, panels.items(), strict=False):
        axis.set_axis_on()
        unit, scale = _UNITS[lines[0][0].unit]
        axis.set_title(f"{title}, {unit}" if unit else title, fontsize=10, loc="left")
        for _, found in lines:
            for line in sorted(found, key=lambda series: -max(series.values)):
                moments = [moment - start_s for moment in line.times]
                axis.plot(moments, [v / scale for v in line.values], label=line.name)
        axis.set_ylim(bottom=0)
        axis.grid(alpha=0.3)
        axis.tick_params(labelsize=8)
        handles, names = axis.get_legend_handles_labels()
        axis.legend(handles[:6], names[:6], fontsize=7, frameon=False)
    figure.supxlabel("seconds of one run", fontsize=9)
    figure.tight_layout()
    figure.savefig(picture, dpi=70)


def main(arguments: list[str]) -> int:
    """Print what each query returns; the number of queries that return nothing."""
    url, end_s = arguments[0], time.time()
    answers = [(query, ask(url, query, end_s - 600, end_s)) for query in queries()]
    for query, series in answers:
        print(f"{len(series):3} series  {query.panel}: {query.expression}")
    if len(arguments) > 1:
        draw(answers, Path(arguments[1]))
    return sum(not series for _, series in answers)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
