"""`python -m benchmarks`: complete results, failures in their row, nothing left behind."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

from benchmarks import plot, targets
from benchmarks.measure import FLOOR, Workload
from benchmarks.metadata import Listing
from benchmarks.models import Load, SaveAndRestore
from benchmarks.networks import DELAYED, PLAIN, Network
from benchmarks.others import ALL
from benchmarks.peers import OUR_DISK_CACHE, OUR_MOUNTS
from benchmarks.reading import SequentialRead
from benchmarks.workloads import Sizes, all_workloads
from benchmarks.writing import SequentialWrite
from tests.support.killer import caches_dropped_by_others

ROOT = Path(__file__).resolve().parents[2]
DIVISOR = 512
LOOP = Path("/dev/loop-control")

pytestmark = pytest.mark.skipif(
    os.geteuid() != 0 or not Path("/dev/fuse").exists(), reason="needs root and /dev/fuse"
)


@pytest.fixture(autouse=True)
def _caches() -> Iterator[None]:
    with caches_dropped_by_others():
        yield


def start(
    work: Path, *arguments: str, env: Mapping[str, str] = os.environ
) -> subprocess.Popen[str]:
    work.mkdir()
    argv = [sys.executable, "-m", "benchmarks", "--divide", str(DIVISOR)]
    argv += ["--work-folder", str(work), "--output", str(work.with_suffix(".json"))]
    return subprocess.Popen(
        [*argv, *arguments],
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


def test_one_round_measures_every_contender_and_leaves_nothing(tmp_path: Path) -> None:
    work = tmp_path / "work"
    process = start(work, "--rounds", "1", "--workload", "sequential-read")
    output, progress = process.communicate()

    document = result(work)
    measured = {row["contender"]: row for row in document["rows"]}
    skipped = {one["name"] for one in document["skipped"]}
    assert set(measured) | skipped == {peer.name for peer in ALL} | {FLOOR}
    assert process.returncode == 0, progress
    for name, row in measured.items():
        assert "error" not in row, row
        assert row["metrics"]["throughput_mb_s"]["median"] > 0
        assert name == FLOOR or row["metrics"]["peak_pss_mib"]["median"] > 0
        assert len(row["metrics"]["cpu_s_per_gb"]["values"]) == 1
        assert name in output
    assert document["host"]["kernel"] == os.uname().release
    assert work.with_suffix(".txt").read_text() in output
    assert work.with_suffix(".svg").exists() == (plot.missing() is None)
    assert_nothing_left(work)


ASK_THE_STORE = (SequentialRead, Listing, SequentialWrite)
"""What each server is asked in a way of its own."""


def of_each_kind(workloads: Sequence[Workload]) -> list[Workload]:
    """All on the usual server, with a delay where they have one; on others one of each kind.

    Without the loads of models, which are there where `make bench` was run.
    """
    workloads = [one for one in workloads if not isinstance(one, Load | SaveAndRestore)]
    if not LOOP.exists():
        workloads = [one for one in workloads if getattr(one, "disk", None) is None]
    names = {one.name for one in workloads}
    usual = [
        one
        for one in workloads
        if one.network in (PLAIN, DELAYED) and f"{one.name}{DELAYED.suffix}" not in names
    ]
    kinds = {
        (one.network, type(one)): one
        for one in workloads
        if one.network != PLAIN and not one.network.delay_s and isinstance(one, ASK_THE_STORE)
    }
    return [*usual, *kinds.values()]


EVERYTHING = all_workloads(Sizes().divided(DIVISOR))
SHORT = of_each_kind(EVERYTHING)


@pytest.mark.timeout(600)
@pytest.mark.parametrize(
    ("network", "chosen"),
    [
        *(
            pytest.param(network, SHORT, id=f"{network.name}-short")
            for network in dict.fromkeys(one.network for one in SHORT)
        ),
        *(
            pytest.param(network, EVERYTHING, id=f"{network.name}-soak", marks=pytest.mark.soak)
            for network in dict.fromkeys(one.network for one in EVERYTHING)
        ),
    ],
)
def test_every_workload_works_on_our_mount(
    tmp_path: Path, network: Network, chosen: Sequence[Workload]
) -> None:
    work = tmp_path / "work"
    ours = (OUR_MOUNTS[0].name, OUR_DISK_CACHE.name)
    workloads = {one.name: one for one in chosen if one.network == network}
    arguments = [
        *(word for name in workloads for word in ("--workload", name)),
        *(word for name in ours for word in ("--peer", name)),
    ]
    _, progress = start(work, "--rounds", "1", *arguments).communicate()

    document = result(work)
    rows = {(row["workload"], row["contender"]): row for row in document["rows"]}
    for name, workload in workloads.items():
        peers = {peer.name for peer in workload.peers if peer.name in ours}
        assert {contender for one, contender in rows if one == name} == {
            *peers,
            *workload.baselines(),
        }
        for peer in peers:
            assert "error" not in rows[name, peer], progress
            assert set(rows[name, peer]["metrics"]) == {one.name for one in workload.metrics}
        for baseline in workload.baselines():
            assert workload.metrics[0].name in rows[name, baseline]["metrics"], progress
    missing = [one for one in document["targets"] if one["passed"] is None]
    # Only our mounts took part.
    assert {one["against"] for one in missing} <= {targets.BEST_PEER, *targets.PEERS}
    assert_nothing_left(work)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupted_run_leaves_nothing(tmp_path: Path, number: signal.Signals) -> None:
    work = tmp_path / "work"
    process = start(
        work,
        *("--rounds", "1000", "--peer", "rclone mount"),
        *("--workload", "sequential-read-20ms"),
    )
    assert process.stderr is not None
    for line in process.stderr:
        if "round 2/" in line:
            break
    process.send_signal(number)
    process.communicate()

    assert process.returncode != 0
    assert not work.with_suffix(".json").exists()
    assert_nothing_left(work)


def test_a_contender_that_fails_is_a_row_that_says_why(tmp_path: Path) -> None:
    broken = tmp_path / "bin" / "s3fs"
    broken.parent.mkdir()
    broken.write_text("#!/bin/sh\ncase $1 in --*) echo v ;; *) echo no luck; exit 3 ;; esac\n")
    broken.chmod(0o755)
    work = tmp_path / "work"
    path = f"{broken.parent}:{os.environ['PATH']}"
    arguments = ["--rounds", "2", "--workload", "sequential-read", "--peer", "s3fs-fuse"]
    process = start(work, *arguments, env={**os.environ, "PATH": path})
    output, _ = process.communicate()

    rows = {row["contender"]: row for row in result(work)["rows"]}
    assert rows["s3fs-fuse"]["error"] == "ended with exit code 3; its last line: no luck"
    assert len(rows[FLOOR]["metrics"]["throughput_mb_s"]["values"]) == 2
    assert "no luck" in output
    assert_nothing_left(work)
