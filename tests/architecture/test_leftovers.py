"""The plugin that fails a test run that leaves something behind."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]

TIDY = """
def test_it(tmp_path):
    pass
"""
# The shell ends at once, and its child is an orphan.
PROCESS = """
import pathlib, subprocess
def test_it():
    command = "sleep 300 >/dev/null 2>&1 & echo $!"
    pid = subprocess.run(["sh", "-c", command], capture_output=True, text=True).stdout.strip()
    print("left", pid)
    while pathlib.Path(f"/proc/{pid}/cmdline").read_bytes()[:5] != b"sleep":
        pass  # while execve(2) is under way a process has no environment
"""
SOCKET = """
import socket
listener = socket.create_server(("127.0.0.1", 0))
def test_it():
    pass
"""
MOUNT = """
import subprocess
def test_it(tmp_path):
    subprocess.run(["mount", "-t", "tmpfs", "none", tmp_path], check=True)
"""


def run(
    tmp_path: Path, text: str, *prefix: str, processes: int = 0
) -> subprocess.CompletedProcess[str]:
    (tmp_path / "test_it.py").write_text(text)
    (tmp_path / "pytest.ini").write_text("[pytest]\n")
    options = ["-p", "tests.support.leftovers", "-s", "--basetemp", str(tmp_path / "base")]
    options += ["-n", str(processes)]
    return subprocess.run(
        [*prefix, sys.executable, "-m", "pytest", *options, "--rootdir", tmp_path, tmp_path],
        cwd=ROOT,
        env={**os.environ, "PYTEST_ADDOPTS": ""},
        capture_output=True,
        text=True,
        check=False,
    )


def test_a_run_that_leaves_nothing_passes(tmp_path: Path) -> None:
    done = run(tmp_path, TIDY)
    assert done.returncode == 0, done.stdout
    assert "LEFT BEHIND" not in done.stdout


def test_a_process_is_found_though_its_parent_is_gone(tmp_path: Path) -> None:
    done = run(tmp_path, PROCESS)
    pid = int(done.stdout.split("left ")[1].split()[0])
    try:
        assert done.returncode == pytest.ExitCode.TESTS_FAILED
        assert f"LEFT BEHIND: process {pid}: sleep 300" in done.stdout
    finally:
        os.kill(pid, signal.SIGKILL)


@pytest.mark.parametrize("processes", [0, 2])
@pytest.mark.parametrize(
    ("text", "what"), [(SOCKET, "listening socket, port "), (MOUNT, "mount tmpfs at ")]
)
def test_a_socket_or_a_mount_is_found(tmp_path: Path, text: str, what: str, processes: int) -> None:
    # In its own mount namespace, so that the mount ends with it.
    done = run(tmp_path, text, "unshare", "-m", processes=processes)
    assert done.returncode == pytest.ExitCode.TESTS_FAILED
    assert f"LEFT BEHIND: {what}" in done.stdout
