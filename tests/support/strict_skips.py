"""A pytest plugin: in CI a skipped test is a failed test.

``scripts/install.sh`` installs everything that a test needs, so no test may be skipped because
something is missing. Only the kernel cannot be installed: a skip whose reason begins with
``kernel:`` stays a skip. Active if the variable ``CI`` is ``true``;
loaded by pyproject.toml.
"""

from __future__ import annotations

import os
from collections.abc import Generator
from typing import TypeVar

import pytest

KERNEL_REASON = "kernel:"

Report = TypeVar("Report", pytest.TestReport, pytest.CollectReport)


def pytest_report_header() -> str | None:
    """Tell that skips are failures, so that nobody wonders why."""
    return "skips: failures, unless the kernel lacks the feature" if _active() else None


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport() -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Judge a test that was skipped by a mark, or in a fixture or its body."""
    report = yield
    # An expected failure is reported as skipped too, but it ran.
    return report if hasattr(report, "wasxfail") else _judged(report)


@pytest.hookimpl(wrapper=True)
def pytest_make_collect_report() -> Generator[None, pytest.CollectReport, pytest.CollectReport]:
    """Judge a module that was skipped whole."""
    return _judged((yield))


def _active() -> bool:
    return os.environ.get("CI") == "true"


def _judged(report: Report) -> Report:
    if not (report.skipped and _active()):
        return report
    # pytest's form of a skip: path, line, "Skipped: reason".
    path, line, text = report.longrepr if isinstance(report.longrepr, tuple) else ("", 0, "")
    reason = text.removeprefix("Skipped: ")
    if not reason.startswith(KERNEL_REASON):
        report.outcome = "failed"
        report.longrepr = f"{path}:{line}: skipped in CI, where everything runs: {reason}"
    return report
