"""The table of results: ``python -m tests.conformance.table``."""

from __future__ import annotations

import re
import sys
from pathlib import Path

import pytest

COLUMNS = ("plain", "kernel", "libfuse")
_ROW = re.compile(r"(?P<test>[^/]+::[^\[]+)(?:\[(?P<id>.*)\])?$")


class Table:
    """A pytest plugin that prints test x transport at the end of the run."""

    def __init__(self) -> None:
        self._rows: dict[str, dict[str, str]] = {}

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """Record an outcome: same, differs (with the errno and the paragraph), or FAILED."""
        if report.when != "call" and not report.failed:
            return
        match = _ROW.search(report.nodeid)
        assert match is not None
        parts = (match["id"] or "").split("-")
        transport = next((part for part in parts if part in COLUMNS), None)
        if transport is None:
            return
        rest = "-".join(part for part in parts if part != transport)
        test = match["test"] + (f"[{rest}]" if rest else "")
        self._rows.setdefault(test, {})[transport] = _outcome(report)

    def pytest_terminal_summary(self, terminalreporter: pytest.TerminalReporter) -> None:
        """Print it."""
        write = terminalreporter.write_line
        write("")
        write(f"| test | {' | '.join(COLUMNS)} |")
        write(f"| --- |{' --- |' * len(COLUMNS)}")
        for test in sorted(self._rows):
            cells = [self._rows[test].get(column, "") for column in COLUMNS]
            write(f"| {test} | {' | '.join(cells)} |")
        outcomes = [cell for row in self._rows.values() for cell in row.values()]
        differing = sum(cell not in ("same", "FAILED") for cell in outcomes)
        write(
            f"{len(self._rows)} tests, {len(outcomes)} results:"
            f" {outcomes.count('same')} same, {differing} differ as listed,"
            f" {outcomes.count('FAILED')} failed"
        )


def _outcome(report: pytest.TestReport) -> str:
    if report.failed:
        return "FAILED"
    if not report.skipped:
        return "same"
    return str(getattr(report, "wasxfail", "skipped")).removeprefix("reason: ")


def main() -> int:
    """Run the suite and print the table."""
    arguments = [str(Path(__file__).parent), "-q", "--no-summary", *sys.argv[1:]]
    return int(pytest.main(arguments, plugins=[Table()]))


if __name__ == "__main__":
    sys.exit(main())
