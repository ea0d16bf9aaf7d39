"""Runs a test suite on a mount and judges its failures.

A suite is a function that runs a program in a directory and returns each case's failure. What
fails on the mount must be in :mod:`expected`, or fail on the local disk too.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import NamedTuple

import pytest

from tests.soak_tools.expected import EXPECTED, Expected
from tests.support.servers import REPOSITORY, find_program
from tests.writing.buckets import Mounted

INSTALL = "scripts/install.sh soak-tools"
NOBODY = 65534
_LONGEST_MESSAGE = 300

Run = Callable[[Path, Collection[str]], Mapping[str, str]]
"""Gets a directory and the cases to run (empty: all); returns case to failure message or ""."""


class Ended(NamedTuple):
    """A program that ended.

    Attributes:
        output: standard output and standard error.
    """

    status: int
    output: str


class Findings(NamedTuple):
    """The results of one suite on one mount.

    Attributes:
        cases: how many were run.
        expected: failed case to the entry that explains it.
        elsewhere: cases that fail on this machine's local disk too.
        unexpected: other failed cases, to the message.
    """

    tool: str
    place: str
    cases: int
    expected: Mapping[str, Expected]
    elsewhere: Collection[str]
    unexpected: Mapping[str, str]

    def __str__(self) -> str:
        """The lines of the report."""
        passed = self.cases - sum(map(len, (self.expected, self.elsewhere, self.unexpected)))
        counts = f"{self.cases} cases, {passed} passed, {len(self.expected)} failed as expected"
        others = f"{len(self.unexpected)} otherwise, {len(self.elsewhere)} on the local disk too"
        lines = [f"{self.tool} on {self.place}: {counts}, {others}"]
        for entry in dict.fromkeys(self.expected.values()):
            cases = sorted(case for case, found in self.expected.items() if found is entry)
            lines.append(f"  {len(cases):4} because {entry.why}: {', '.join(cases[:4])}")
        lines += [f"  FAILED {case}: {text}" for case, text in self.unexpected.items()]
        lines += [f"  on the local disk too: {case}" for case in sorted(self.elsewhere)]
        return "\n".join(lines)


class Examiner:
    """Runs a suite in a new directory of the mount, and judges it.

    Attributes:
        directory: of the mount.
        findings: results of :meth:`examine` so far.
    """

    def __init__(self, place: Mounted, name: str, user: str) -> None:
        self.place = place
        self.directory = place.fresh_directory()
        self.findings: list[Findings] = []
        self._local = place.local / place.fresh_name()
        self._local.mkdir()
        self._name = name
        self._user = user
        self._programs = place.local / "programs"
        self._programs.mkdir(exist_ok=True)
        if not self.is_root:
            for path in (self.directory, self._local):
                os.chown(path, NOBODY, NOBODY)

    @property
    def where(self) -> str:
        """Transport and user, as in :class:`Expected`."""
        return f"{self.place.transport}-{self._user}"

    def program(self, name: str) -> Path:
        """A copy of a program of ``.tools`` that every user can run. Raises ToolMissing."""
        copy = self._programs / name
        if not copy.exists():
            installed = REPOSITORY / ".tools" / "bin" / name
            source = installed if installed.exists() else find_program(name, install=INSTALL)
            shutil.copy(source, copy)
        return copy

    def run(self, *command: str | Path, cwd: Path, timeout_s: float) -> Ended:
        """Run a program as the mount's user.

        After ``timeout_s`` it is killed with its children, and the test fails: a call that
        never returns is a defect too.
        """
        words = [str(word) for word in command]
        if not self.is_root:
            ids = ["--reuid", str(NOBODY), "--regid", str(NOBODY), "--clear-groups"]
            words = ["setpriv", *ids, *words]
        with subprocess.Popen(
            words,
            cwd=cwd,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            start_new_session=True,
            env={**os.environ, "LC_ALL": "C.UTF-8", "RUST_BACKTRACE": "0", "NO_COLOR": "1"},
        ) as process:
            try:
                output, _ = process.communicate(timeout=timeout_s)
            except subprocess.TimeoutExpired:
                os.killpg(process.pid, signal.SIGKILL)
                output, _ = process.communicate()
                pytest.fail(f"{words} did not end within {timeout_s} s: {output[-2000:]}")
        return Ended(process.returncode, output)

    def examine(self, run: Run) -> None:
        """Run a suite; fail if a case fails that is not expected and passes on the local disk."""
        results = run(self.directory, ())
        failed = {case: text[:_LONGEST_MESSAGE] for case, text in results.items() if text}
        entries = [e for e in EXPECTED if e.tool == self._name and self.where in e.where]
        expected = {
            case: entry
            for case, text in failed.items()
            for entry in entries
            if entry.explains(case, text)
        }
        unexplained = {case: text for case, text in failed.items() if case not in expected}
        elsewhere: set[str] = set()
        if unexplained:
            here = run(self._local, unexplained)
            elsewhere = {case for case in unexplained if here.get(case)}
        unexpected = {case: text for case, text in unexplained.items() if case not in elsewhere}
        place = f"{type(self.place.cloud.server).__name__}, {self.where}"
        found = Findings(self._name, place, len(results), expected, elsewhere, unexpected)
        self.findings.append(found)
        assert not unexpected, str(found)
        stale = [e for e in entries if e.always and e not in expected.values()]
        assert not stale, f"no longer differs, take it off the list: {stale}"

    @property
    def is_root(self) -> bool:
        """Whether programs run as root."""
        return self._user == "root"
