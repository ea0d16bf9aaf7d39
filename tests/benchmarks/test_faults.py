"""A mount on a store whose connections break and whose addresses die: every byte is right."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest


@pytest.mark.parametrize(
    ("seconds", "size_mib"),
    [
        pytest.param(8, 64, id="short"),
        pytest.param(600, 512, id="soak", marks=pytest.mark.soak),
    ],
)
def test_every_byte_is_right(tmp_path: Path, seconds: int, size_mib: int) -> None:
    """The benchmark compares them. How fast it was, is printed and not asked."""
    result = tmp_path / "result.json"
    command = [sys.executable, "-m", "benchmarks.faults", "--output", result]
    command += [f"--seconds={seconds}", f"--size-mib={size_mib}", "--dying-s=1", "--chunks=2"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    print(done.stdout)
    assert done.returncode == 0, done.stderr
    stores = {case: json.loads(result.read_text())[case]["store"] for case in ("without", "with")}
    assert stores["without"]["accidents"] == {}
    assert stores["with"]["accidents"]["reset"] > 0
    assert len(stores["with"]["connections"]) > 4  # of nine, which are drawn
    for store in stores.values():
        assert store["requests"].keys() >= {"GetObject", "UploadPart", "CompleteMultipartUpload"}
        assert min(store["bytes_in"], store["bytes_out"]) >= 2 * size_mib << 20
