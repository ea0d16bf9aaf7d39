"""Modules that take longest begin first, so that no process is left with one at the end.

Plugin of pytest. A wrong order costs time only.
"""

from __future__ import annotations

import pytest

_LONGEST = (
    "tests/benchmarks/test_runs.py",
    "tests/healing/test_hangs.py",
    "tests/control/webhook/test_certificate.py",
    "tests/writing/test_crashes.py",
    "tests/mount/test_bad_days.py",
    "tests/pods/test_injected.py",
    "tests/warming/test_warm_up.py",
    "tests/writing/test_properties.py",
    "tests/mount/test_bad_starts.py",
    "tests/store/test_trust.py",
    "tests/trial/test_trial.py",
    "tests/mount/test_stale.py",
    "tests/mount/test_ready_means_written.py",
    "tests/mount/test_planted.py",
    "tests/reporting/test_cluster.py",
    "tests/store/test_properties.py",
    "tests/mount/test_store_failures.py",
    "tests/reading/test_faults.py",
    "tests/mount/test_ownership.py",
    "tests/cache/test_near_mounts.py",
    "tests/writing/test_last_minute.py",
    "tests/pods/test_janitor.py",
    "tests/filesystem/test_limits.py",
    "tests/writing/test_programs.py",
)
"""The longest first, as measured on two cores."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Sort stably: within a module nothing changes."""
    place = {name: number for number, name in enumerate(_LONGEST)}
    items.sort(key=lambda item: place.get(item.nodeid.partition("::")[0], len(_LONGEST)))
