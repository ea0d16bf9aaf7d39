"""Modules that take longest begin first, so that no process is left with one at the end.

Plugin of pytest. A wrong order costs time only.
"""

from __future__ import annotations

import pytest

_LONGEST = (
    "tests/healing/test_hangs.py",
    "tests/benchmarks/test_runs.py",
    "tests/store/test_proxies.py",
    "tests/store/test_trust.py",
    "tests/writing/test_crashes.py",
    "tests/reporting/test_cluster.py",
    "tests/reading/test_faults.py",
    "tests/pods/test_injected.py",
    "tests/mount/test_bad_days.py",
    "tests/mount/test_store_failures.py",
    "tests/writing/test_properties.py",
    "tests/mount/test_memory_limit.py",
    "tests/writing/test_last_minute.py",
    "tests/mount/test_bad_starts.py",
    "tests/control/webhook/test_limits.py",
    "tests/store/test_properties.py",
)
"""The longest first, as measured on two cores."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Sort stably: within a module nothing changes."""
    place = {name: number for number, name in enumerate(_LONGEST)}
    items.sort(key=lambda item: place.get(item.nodeid.partition("::")[0], len(_LONGEST)))
