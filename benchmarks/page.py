"""The status document and the metrics page of a running mount of ours."""

from __future__ import annotations

import json
import re
import urllib.request
from typing import Any

from benchmarks.peers import Mount

_SAMPLE = re.compile(r"^(?P<name>\w+)(?:\{(?P<labels>.*)\})? (?P<value>\S+)$")


def status(mount: Mount) -> dict[str, Any]:
    """The status document. Only for a mount that has a ``status_file``."""
    assert mount.status_file is not None
    document: dict[str, Any] = json.loads(mount.status_file.read_text())
    return document


def total(mount: Mount, name: str, label: str = "") -> float:
    """The sum of a metric's samples; only those with ``label`` (``key="value"``) if given."""
    url = f"http://127.0.0.1:{status(mount)['http_port']}/metrics"
    with urllib.request.urlopen(url, timeout=30) as answer:
        lines = answer.read().decode().splitlines()
    samples = (match for line in lines if (match := _SAMPLE.match(line)))
    return sum(
        float(sample["value"])
        for sample in samples
        if sample["name"] == name and label in (sample["labels"] or "")
    )


def requests(mount: Mount, operation: str) -> float:
    """Requests of one operation (list, head, get, ...) sent to the store so far."""
    name = "mount_sidecar_store_request_duration_seconds_count"
    return total(mount, name, f'operation="{operation}"')
