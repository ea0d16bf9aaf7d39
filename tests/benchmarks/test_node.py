"""`python -m benchmarks.node`: complete results, nothing left behind."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.benchmarks.test_runs import ROOT, assert_nothing_left
from tests.support.waiting import wait_until


def start(work: Path, *arguments: str) -> subprocess.Popen[str]:
    work.mkdir()
    argv = [sys.executable, "-m", "benchmarks.node", *arguments]
    environment = {**os.environ, "TMPDIR": str(work)}
    return subprocess.Popen(argv, cwd=ROOT, env=environment, text=True, stdout=subprocess.PIPE)


@pytest.mark.parametrize("store", [(), ("--network", "s3like-85")], ids=["near", "far"])
def test_every_row_is_measured(tmp_path: Path, store: tuple[str, ...]) -> None:
    output = tmp_path / "node.json"
    sizes = ("--most", "2", "--size-mib", "24", "--small", "200", *store)
    process = start(tmp_path / "work", *sizes, "--output", str(output))
    said, _ = process.communicate()
    assert process.returncode == 0
    rows = json.loads(output.read_text())["rows"]
    assert [row["what"] for row in rows] == [
        "1 file",
        "2 files",
        *(f"small files, {threads} threads" for threads in (1, 16, 64)),
    ]
    for row in rows:
        assert row["gb_per_s"] > 0
        assert row["floor_gb_per_s"] > 0
        assert row["what"] in said
    assert_nothing_left(tmp_path / "work")


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupted_run_leaves_nothing(tmp_path: Path, number: signal.Signals) -> None:
    work = tmp_path / "work"
    process = start(work, "--most", "1", "--size-mib", "256")
    table = Path("/proc/self/mountinfo")
    wait_until(lambda: f"{work}/" in table.read_text(), "it has mounted")
    process.send_signal(number)
    process.communicate()
    assert process.returncode != 0
    assert_nothing_left(work)
