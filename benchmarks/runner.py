"""Runs rounds of every workload on every contender and writes one result document.

Rounds are interleaved, so that a drift of the machine affects all contenders. Each round has
another order, since the next contender gets what one leaves behind (memory that the host just gave
us).
"""

from __future__ import annotations

import json
import random
import statistics
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from benchmarks import host, ratios, servers, targets
from benchmarks.failure import BenchFailure
from benchmarks.measure import Baseline, Metric, Values, Workload
from benchmarks.peers import Peer, Place
from benchmarks.servers import Server

SCHEMA = 2

Progress = Callable[[str], None]
Save = Callable[[dict[str, Any]], None]


@dataclass(frozen=True, slots=True)
class Plan:
    """What one run does.

    Attributes:
        workloads: in order.
        peer_names: the only peers that take part; None: all. Those that cannot run here are
            skipped and named in the result.
        rounds: of each contender in each workload; each has fresh mounts.
        options: recorded in the result.
        work_folder: data set, mounts and logs go into a temporary folder below it.
    """

    workloads: Sequence[Workload]
    peer_names: Sequence[str] | None
    rounds: int
    options: dict[str, Any]
    work_folder: Path


def run(plan: Plan, progress: Progress, save: Save) -> dict[str, Any]:
    """Run the plan.

    A contender that fails a workload does no more rounds of it; its row says why.

    Args:
        save: called after each workload with the document so far, so that a run that is ended
            loses one workload and not hours.

    Returns:
        the result document for :func:`write`: ``schema``, ``started`` and ``finished``
        (ISO 8601, UTC), ``host``, ``server``, ``options``, ``contenders``, ``skipped``,
        ``workloads`` (titles and metrics), ``rows`` (one for each workload and contender,
        with ``metrics``: median, min, max, values by round; or with ``error``), ``ratios``
        (:func:`ratios.every`) and ``targets`` (:func:`targets.judge`).

    Raises:
        BenchFailure: the server does not start, or the caches cannot be dropped.
    """
    chosen = {
        peer.name: peer
        for workload in plan.workloads
        for peer in workload.peers
        if plan.peer_names is None or peer.name in plan.peer_names
    }
    skipped = {name: why for name, peer in chosen.items() if (why := peer.missing()) is not None}
    for name, why in skipped.items():
        progress(f"skipped {name}: {why}")
    usable = {name for name in chosen if name not in skipped}
    rows: list[dict[str, Any]] = []
    document: dict[str, Any] = {
        "schema": SCHEMA,
        "started": now(),
        "host": host.facts(),
        "server": {"version": servers.version(), "settings": " ".join(servers.SETTINGS)},
        "options": plan.options,
        "contenders": [
            {"name": name, "version": peer.version(), "settings": peer.settings}
            for name, peer in chosen.items()
            if name in usable
        ],
        "skipped": [{"name": name, "why": why} for name, why in skipped.items()],
        "workloads": [],
        "rows": rows,
    }
    # The mount table has paths without symlinks.
    parent = plan.work_folder.resolve()
    with tempfile.TemporaryDirectory(prefix="sidecar-bench-", dir=parent) as name:
        folder = Path(name)
        for workload in plan.workloads:
            progress(f"seeding {workload.name}")
            workload.dataset.seed(servers.data_folder(folder, workload.network))
        for network in dict.fromkeys(workload.network for workload in plan.workloads):
            progress(f"starting the server: {network.name}")
            with servers.serving(folder, network) as server:
                for workload in plan.workloads:
                    if workload.network == network:
                        peers = [peer for peer in workload.peers if peer.name in usable]
                        rows += _rows(workload, peers, plan.rounds, server, folder, progress)
                        described = describe(workload.name, workload.title, workload.metrics)
                        document["workloads"].append(described)
                        _conclude(document)
                        save(document)
    return document


def _conclude(document: dict[str, Any]) -> None:
    """Add ratios and targets, which follow from the rows."""
    rows = document["rows"]
    document["ratios"] = ratios.every(rows)
    document["targets"] = targets.judge(rows, [one["name"] for one in document["workloads"]])
    document["finished"] = now()


def added(document: dict[str, Any], earlier: dict[str, Any]) -> dict[str, Any]:
    """The document, with the workloads of an earlier one that it does not have.

    Contenders are compared within a workload, whose rounds are of one run.

    Raises:
        BenchFailure: the earlier one is of another machine, product, or size.
    """
    if _conditions(document) != _conditions(earlier):
        raise BenchFailure("the earlier rows are of another machine, product, or size")
    names = {one["name"] for one in document["workloads"]}
    contenders = {one["name"]: one for one in (*earlier["contenders"], *document["contenders"])}
    result = {
        **document,
        "started": earlier["started"],
        "contenders": list(contenders.values()),
        "workloads": [one for one in earlier["workloads"] if one["name"] not in names]
        + document["workloads"],
        "rows": [row for row in earlier["rows"] if row["workload"] not in names] + document["rows"],
    }
    _conclude(result)
    return result


def _conditions(document: dict[str, Any]) -> dict[str, Any]:
    """What rows of one table must share; of the commit only the last change of the product."""
    host = {k: v for k, v in document["host"].items() if k not in ("load_average_1_min", "commit")}
    return {**host, **document["options"], **document["server"]}


def write(document: dict[str, Any], path: Path) -> None:
    """Write the document atomically."""
    path.parent.mkdir(parents=True, exist_ok=True)
    scratch = path.with_name(f".{path.name}.new")
    scratch.write_text(json.dumps(document, indent=2) + "\n")
    scratch.replace(path)


def _rows(
    workload: Workload,
    peers: Sequence[Peer],
    rounds: int,
    server: Server,
    folder: Path,
    progress: Progress,
) -> list[dict[str, Any]]:
    attempts: dict[str, Callable[[Path], Values]] = {
        **{peer.name: _on_peer(workload, peer, server) for peer in peers},
        **{name: _without_mount(one, server) for name, one in workload.baselines().items()},
    }
    values: dict[str, list[Values]] = {name: [] for name in attempts}
    errors: dict[str, str] = {}
    for number in range(1, rounds + 1):
        for name in random.Random(number).sample(list(attempts), len(attempts)):
            if name in errors:
                continue
            _make_cold(workload, server)
            with tempfile.TemporaryDirectory(prefix="round-", dir=folder) as scratch:
                try:
                    values[name].append(attempts[name](Path(scratch)))
                    outcome = one_line(workload.metrics, values[name][-1])
                except (BenchFailure, OSError) as failure:
                    # OSError: from a contender's file system.
                    errors[name] = outcome = str(failure)
            progress(f"{workload.name} round {number}/{rounds} {name}: {outcome}")
    return [
        {"workload": workload.name, "contender": name}
        | ({"error": errors[name]} if name in errors else {"metrics": summary(values[name])})
        for name in attempts
    ]


def _on_peer(workload: Workload, peer: Peer, server: Server) -> Callable[[Path], Values]:
    return lambda scratch: workload.on_peer(Place(peer, server, scratch))


def _without_mount(baseline: Baseline, server: Server) -> Callable[[Path], Values]:
    return lambda _: baseline(server)


def _make_cold(workload: Workload, server: Server) -> None:
    server.renew()
    try:
        host.drop_caches()
    except PermissionError:
        raise BenchFailure("the caches cannot be dropped: run as root") from None
    workload.dataset.warm(server.data)


def summary(rounds: Sequence[Values]) -> dict[str, dict[str, Any]]:
    """Median, min, max and the values by round of each metric of a row."""
    result: dict[str, dict[str, Any]] = {}
    for name in rounds[0]:
        values = [one[name] for one in rounds]
        result[name] = {
            "median": statistics.median(values),
            "min": min(values),
            "max": max(values),
            "values": values,
        }
    return result


def describe(name: str, title: str, metrics: Sequence[Metric]) -> dict[str, Any]:
    """A workload in the result document."""
    return {
        "name": name,
        "title": title,
        "metrics": [
            {"name": metric.name, "title": metric.title, "better": metric.better}
            for metric in metrics
        ],
    }


def one_line(metrics: Sequence[Metric], values: Values) -> str:
    """The values of one round, for progress messages."""
    parts = [f"{values[m.name]:.4g} {m.title}" for m in metrics if m.name in values]
    return ", ".join(parts)


def now() -> str:
    """The time in ISO 8601, UTC."""
    return datetime.now(UTC).isoformat(timespec="seconds")
