"""The conditions of a run: machine, kernel, commit, and cold caches."""

from __future__ import annotations

import os
import platform
import subprocess
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent


def facts() -> dict[str, str | int | float]:
    """The machine and the code, for the head of the result."""
    return {
        "kernel": platform.release(),
        "architecture": platform.machine(),
        "processor": _cpu_model(),
        "cores": len(os.sched_getaffinity(0)),
        "memory_bytes": os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"),
        "python": platform.python_version(),
        "load_average_1_min": os.getloadavg()[0],
        "commit": commit(ROOT),
        "product": _git(ROOT, "log", "-1", "--format=%h", "--", "sidecar"),
    }


def drop_caches() -> None:
    """Drop page cache, dentries and inodes (proc(5)). Needs root."""
    os.sync()  # Dirty pages are not dropped.
    Path("/proc/sys/vm/drop_caches").write_text("3\n")


def _cpu_model() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.machine()


def commit(checkout: Path) -> str:
    """The checkout's commit, with ``-dirty`` if files are changed; ``unknown`` without git."""
    return _git(checkout, "describe", "--always", "--dirty")


def _git(checkout: Path, *arguments: str) -> str:
    try:
        done = subprocess.run(
            ["git", *arguments],
            cwd=checkout,
            capture_output=True,
            text=True,
            check=False,
        )
    except FileNotFoundError:
        return "unknown"
    return done.stdout.strip() or "unknown"
