"""Tables that the demo prints: volumes, the run's files, metrics that grew."""

from __future__ import annotations

from pathlib import Path

from prometheus_client.parser import text_string_to_metric_families
from rich.table import Table
from rich.tree import Tree

from sidecar.contract.spec import ClaimSource, HostPathSource, PersistenceSpec, StoreSource

_METRIC_PREFIX = "mount_sidecar_"
# A histogram is shown by `_count` only, its number of events: the rest would fill the table.
_COUNTING_SUFFIXES = ("_total", "_count")


def volumes_table(spec: PersistenceSpec, base: Path) -> Table:
    """One row for each volume; paths are shown relative to ``base``."""
    table = _table("volume", "kind", "source", "path")
    for volume in spec.volumes:
        match volume.source:
            case StoreSource(url=url):
                source = url
            case HostPathSource():
                source = "hostPath"
            case ClaimSource(claim=claim):
                source = f"claim {claim}"
        access = ", read only" if volume.read_only else ""
        path = volume.path.removeprefix(f"{base}/")
        table.add_row(volume.name, f"{volume.kind}{access}", source, path)
    return table


def run_tree(root: str, objects: dict[str, int]) -> Tree:
    """The objects of a run as a tree; ``objects`` maps keys to sizes in bytes."""
    tree = Tree(root, guide_style="dim")
    branches = {"": tree}
    for key, size_bytes in sorted(objects.items()):
        parent, _, name = key.rpartition("/")
        if parent not in branches:  # the script makes directories one level deep
            branches[parent] = tree.add(f"{parent}/")
        branches[parent].add(f"{name} [dim]{size_bytes:,} bytes[/]")
    return tree


def metrics_table(before: str, after: str) -> Table:
    """The counters of a Prometheus page that grew, one column for each volume.

    Args:
        before: the page from before the training.
        after: the page from after it.
    """
    earlier, later = _counters(before), _counters(after)
    grown = {
        key: value - earlier.get(key, 0)
        for key, value in later.items()
        if value > earlier.get(key, 0)
    }
    volumes = sorted({volume for _, volume in grown})
    table = _table("/metrics during the run", *volumes)
    for column in table.columns[1:]:
        column.justify = "right"
    for name in sorted({name for name, _ in grown}):
        cells = [_number(grown.get((name, volume), 0)) for volume in volumes]
        table.add_row(name.removeprefix(_METRIC_PREFIX), *cells)
    return table


def _counters(page: str) -> dict[tuple[str, str], float]:
    """(metric, volume) to its value, summed over the other labels."""
    sums: dict[tuple[str, str], float] = {}
    for family in text_string_to_metric_families(page):
        for sample in family.samples:
            if sample.name.endswith(_COUNTING_SUFFIXES) and "volume" in sample.labels:
                key = (sample.name, sample.labels["volume"])
                sums[key] = sums.get(key, 0) + sample.value
    return sums


def _number(value: float) -> str:
    return f"{value:,.0f}" if value == int(value) else f"{value:,.3f}"


def _table(*headers: str) -> Table:
    return Table(*headers, box=None, padding=(0, 2, 0, 0), header_style="dim")
