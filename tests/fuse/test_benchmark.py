"""`python -m benchmarks.transports`: every row on both transports, and nothing left behind."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks.transports import MEASURES, TRANSPORTS

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.skipif(
    os.geteuid() != 0 or not Path("/dev/fuse").exists(), reason="needs root and /dev/fuse"
)
def test_one_round_measures_every_row(tmp_path: Path) -> None:
    work, output = tmp_path / "work", tmp_path / "result.json"
    work.mkdir()
    done = subprocess.run(
        [
            *(sys.executable, "-m", "benchmarks.transports", "--rounds", "1"),
            *("--file-mib", "4", "--files", "20"),
            *("--work-folder", str(work), "--output", str(output)),
        ],
        cwd=ROOT,
        check=False,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    rows = json.loads(output.read_text())["rows"]
    assert len(rows) == len(MEASURES) * len(TRANSPORTS)
    for row in rows:
        first, *_ = row["metrics"].values()
        assert first["median"] > 0
    assert "mount-sidecar (kernel) relative to" in done.stdout
    assert list(work.iterdir()) == []
    assert str(work) not in Path("/proc/self/mountinfo").read_text()
