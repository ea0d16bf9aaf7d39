"""`python -m benchmarks`: complete results, right answers only, nothing left behind."""

from __future__ import annotations

import json
import os
import signal
import statistics
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from benchmarks.failure import BenchFailure
from benchmarks.peers import PEERS
from benchmarks.processes import Child
from benchmarks.report import text
from benchmarks.runner import FLOOR
from benchmarks.workloads import require_equal

ROOT = Path(__file__).resolve().parents[2]

needs_mounts = pytest.mark.skipif(
    os.geteuid() != 0 or not Path("/dev/fuse").exists(), reason="needs root and /dev/fuse"
)


def start(
    work: Path, *arguments: str, env: Mapping[str, str] = os.environ
) -> subprocess.Popen[str]:
    work.mkdir()
    argv = [sys.executable, "-m", "benchmarks", "--size-mib", "4", "--work-folder", str(work)]
    return subprocess.Popen(
        [*argv, "--output", str(work.with_suffix(".json")), *arguments],
        cwd=ROOT,
        env=env,
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )


def result(work: Path) -> dict[str, Any]:
    document: dict[str, Any] = json.loads(work.with_suffix(".json").read_text())
    return document


def assert_nothing_left(work: Path) -> None:
    assert list(work.iterdir()) == []
    assert str(work) not in Path("/proc/self/mountinfo").read_text()
    for entry in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            assert os.fsencode(work) not in entry.read_bytes()
        except (FileNotFoundError, ProcessLookupError):
            continue


@needs_mounts
def test_one_round_measures_every_contender_and_leaves_nothing(tmp_path: Path) -> None:
    work = tmp_path / "work"
    process = start(work, "--rounds", "1")
    output, progress = process.communicate()

    document = result(work)
    measured = {row["contender"]: row for row in document["rows"]}
    skipped = {one["name"] for one in document["skipped"]}
    assert set(measured) | skipped == {peer.name for peer in PEERS} | {FLOOR}
    assert process.returncode == 0, progress
    for name, row in measured.items():
        assert "error" not in row, row
        assert row["metrics"]["throughput_mb_s"]["median"] > 0
        assert row["metrics"]["peak_rss_mib"]["median"] > 0
        assert len(row["metrics"]["cpu_s_per_gb"]["values"]) == 1
        assert name in output
    assert document["host"]["kernel"] == os.uname().release
    assert_nothing_left(work)


@needs_mounts
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupted_run_leaves_nothing(tmp_path: Path, number: signal.Signals) -> None:
    work = tmp_path / "work"
    process = start(work, "--rounds", "1000", "--peer", "rclone mount")
    assert process.stderr is not None
    for line in process.stderr:
        if "round 2/" in line:
            break
    process.send_signal(number)
    process.communicate()

    assert process.returncode != 0
    assert not work.with_suffix(".json").exists()
    assert_nothing_left(work)


@needs_mounts
def test_a_contender_that_fails_is_a_row_that_says_why(tmp_path: Path) -> None:
    broken = tmp_path / "bin" / "s3fs"
    broken.parent.mkdir()
    broken.write_text("#!/bin/sh\n[ $1 = --version ] && echo v || { echo no luck; exit 3; }\n")
    broken.chmod(0o755)
    work = tmp_path / "work"
    path = f"{broken.parent}:{os.environ['PATH']}"
    process = start(work, "--rounds", "2", "--peer", "s3fs-fuse", env={**os.environ, "PATH": path})
    output, _ = process.communicate()

    rows = {row["contender"]: row for row in result(work)["rows"]}
    assert rows["s3fs-fuse"]["error"] == "ended with exit code 3; its last line: no luck"
    assert len(rows[FLOOR]["metrics"]["throughput_mb_s"]["values"]) == 2
    assert "no luck" in output
    assert_nothing_left(work)


@pytest.mark.parametrize("change", ["size", "start", "end"])
def test_wrong_bytes_are_found(tmp_path: Path, change: str) -> None:
    original, copy = tmp_path / "original", tmp_path / "copy"
    content = bytearray(os.urandom(300_000))
    original.write_bytes(content)
    copy.write_bytes(content)
    require_equal(copy, original)

    if change == "size":
        content.pop()
    else:
        content[0 if change == "start" else -1] ^= 1
    copy.write_bytes(content)
    with pytest.raises(BenchFailure):
        require_equal(copy, original)


def test_cpu_time_of_descendants_counts_whether_living_or_reaped(tmp_path: Path) -> None:
    burnt = tmp_path / "burnt"
    burn = "import time\nwhile time.process_time() < 0.3: pass\n"
    burn_and_live = f"{burn}open({str(burnt)!r}, 'w').close()\ntime.sleep(600)\n"
    script = "import subprocess, sys\n" + "".join(
        f"subprocess.run([sys.executable, '-c', {code!r}])\n" for code in (burn, burn_and_live)
    )
    with Child([sys.executable, "-c", script], {}, tmp_path / "log") as child:
        child.wait_until(burnt.exists, "burnt", timeout_s=60)
        assert child.usage().cpu_s >= 0.55


def test_stopping_ends_descendants_that_ignore_sigterm(tmp_path: Path) -> None:
    script = "(trap '' TERM; exec sleep 600) & echo $!; wait"
    with Child(["sh", "-c", script], {}, tmp_path / "log") as child:
        child.wait_until(lambda: child.log.read_text().endswith("\n"), "started", timeout_s=60)
        command = Path(f"/proc/{int(child.log.read_text())}/cmdline")
        child.wait_until(lambda: command.read_bytes().startswith(b"sleep"), "exec", timeout_s=60)
    # A zombie, where process 1 reaps nobody, has an empty command line.
    assert not command.exists() or command.read_bytes() == b""


def test_the_report_gives_our_ratios_and_the_failures() -> None:
    def row(contender: str, *values: float) -> dict[str, Any]:
        median = statistics.median(values)
        summary = {"median": median, "min": min(values), "max": max(values), "values": values}
        return {"workload": "w", "contender": contender, "metrics": {"x": summary}}

    metrics = [{"name": "x", "title": "X", "better": "higher"}]
    document = {
        "started": "2026-01-01T00:00:00+00:00",
        "host": {"commit": "abc", "cores": 2, "processor": "p", "kernel": "k", "python": "3"},
        "server": {"version": "s"},
        "options": {"rounds": 3},
        "contenders": [],
        "skipped": [{"name": "other", "why": "absent"}],
        "workloads": [{"name": "w", "title": "t", "metrics": metrics}],
        "rows": [
            row("mount-sidecar (kernel)", 30.0, 15.0, 45.0),
            row("peer", 20.0, 30.0, 15.0),
            {"workload": "w", "contender": "broken", "error": "boom"},
        ],
    }
    report = text(document)
    assert "peer: X 1.50x [0.50 - 3.00]" in report
    assert "failed: boom" in report
    assert "not measured: other: absent" in report
