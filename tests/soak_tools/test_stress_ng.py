"""stress-ng: the stressors of the class `filesystem`, a few seconds each, with --verify."""

from __future__ import annotations

import re
import subprocess
from collections.abc import Collection
from pathlib import Path

from tests.soak_tools.tools import Examiner

EACH_S = 3
LONGEST_S = 180.0
WORKERS = 2
# They use no file in the given directory, but mounts, devices or /proc.
ELSEWHERE = frozenset({"bind-mount", "binderfs", "chroot", "dup", "eventfd", "ioprio", "procfs"})
# Stressors of other classes that use files.
BESIDES = ("aio", "aiol", "fault", "mmap", "msync", "readahead", "revio", "seek", "sendfile")
_NOISE = re.compile(r"setting to a|dispatching hogs|run completed|passed:|failed:|skipped:|metrics")


def stressors() -> list[str]:
    """The stressors to run, from this release's list."""
    said = subprocess.run(
        ["stress-ng", "--class", "filesystem?"], capture_output=True, text=True, check=True
    )
    names = (said.stdout + said.stderr).partition("stressors:")[2].split()
    assert len(names) > 30, said
    return sorted({*names, *BESIDES} - ELSEWHERE)


def test_the_class_of_file_systems(examiner: Examiner) -> None:
    def run(directory: Path, cases: Collection[str]) -> dict[str, str]:
        return {name: one(examiner, directory, name) for name in cases or stressors()}

    examiner.examine(run)


def one(examiner: Examiner, directory: Path, name: str) -> str:
    """A stressor's complaints, or why it was skipped; "" if it passed."""
    folder = directory / name
    folder.mkdir()
    folder.chmod(0o777)
    how = ["--verify", "--timeout", f"{EACH_S}s", "--temp-path", folder]
    ended = examiner.run(
        "stress-ng", f"--{name}", str(WORKERS), *how, cwd=folder, timeout_s=LONGEST_S
    )
    said = [line for line in ended.output.splitlines() if not _NOISE.search(line)]
    text = " ".join(" ".join(line.partition("] ")[2] for line in said).split())
    if ended.status or "skip" in text or "fail:" in ended.output:
        return text or f"status {ended.status}"
    return ""
