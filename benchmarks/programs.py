"""Runs clients as programs: a job as JSON on standard input, the result on standard output.

Not in arguments, because every user of the machine can read them, and jobs contain keys.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Sequence
from typing import Any

from benchmarks.failure import BenchFailure

TIMEOUT_S = 900.0


def run(module: str, job: dict[str, Any], timeout_s: float = TIMEOUT_S) -> Any:
    """Run ``python -m MODULE`` with a job and return its result.

    Raises:
        BenchFailure: it failed, or was not done in time.
    """
    return run_command([sys.executable, "-m", module], module, job, timeout_s)


def run_command(
    argv: Sequence[str], name: str, job: dict[str, Any], timeout_s: float = TIMEOUT_S
) -> Any:
    """Run any program with a job and return its result, the last line that it prints.

    Raises:
        BenchFailure: it failed, or was not done in time; ``name`` is in its message.
    """
    try:
        done = subprocess.run(
            argv,
            input=json.dumps(job),
            capture_output=True,
            text=True,
            timeout=timeout_s,
            check=False,
        )
    except subprocess.TimeoutExpired:
        raise BenchFailure(f"{name}: not done within {timeout_s:.0f} s") from None
    if done.returncode != 0:
        words = done.stderr.strip().splitlines()
        raise BenchFailure(f"{name}: {words[-1] if words else done.returncode}")
    return json.loads(done.stdout.splitlines()[-1])
