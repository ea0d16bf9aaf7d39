"""The conformance suite on a bucket; elsewhere it runs on a store in memory."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.writing.buckets import mounted

ROOT = Path(__file__).parents[2]


@pytest.mark.soak
def test_a_bucket_conforms(request: pytest.FixtureRequest, tmp_path: Path) -> None:
    with mounted(request, tmp_path, "s3") as place:
        suite = subprocess.run(
            [sys.executable, "-m", "pytest", "-q", "--timeout", "300", "tests/conformance"],
            cwd=ROOT,
            env={**os.environ, "CONFORMANCE_DIRECTORY": str(place.path)},
            capture_output=True,
            text=True,
            check=False,
        )
    assert suite.returncode == 0, suite.stdout[-10_000:]
