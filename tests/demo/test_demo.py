"""`sidecar demo`, as `make demo` runs it: it shows the whole job and leaves nothing."""

import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest

DEMO = [sys.executable, "-m", "sidecar", "demo"]
TIMEOUT_S = 100


@pytest.fixture
def temporary(tmp_path):
    """The demo's TMPDIR; afterwards it must be empty, with no mount and no process left."""
    yield tmp_path
    try:
        assert _processes_of(tmp_path) == {}
        assert str(tmp_path) not in Path("/proc/self/mountinfo").read_text()
        assert list(tmp_path.iterdir()) == []
    finally:
        for pid in _processes_of(tmp_path):
            os.kill(pid, signal.SIGKILL)


def test_it_shows_the_whole_job(temporary):
    done = subprocess.run(
        DEMO,
        env=_environment(temporary),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=TIMEOUT_S,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    output = " ".join(done.stdout.split())
    learned = re.search(r"accuracy (\d+)% → (\d+)%", output)
    assert learned
    assert int(learned[2]) >= 85
    for told in (
        "650 handwritten digits",
        "4 volumes mounted and checked",
        "10 files are in the bucket, byte for byte",
        "epoch-08.json",
        "read_bytes_total",
        "uploaded_bytes_total",
        "exit status 0",
        "Nothing is left",
    ):
        assert told in output


@pytest.mark.parametrize(
    ("moment", "number"),
    [
        ("S3 server", signal.SIGINT),
        ("`sidecar resolve`", signal.SIGINT),  # while it mounts
        ("`sidecar mount`: ready", signal.SIGINT),  # while it trains
        ("`sidecar mount`: ready", signal.SIGTERM),
    ],
)
def test_a_signal_at_any_moment_leaves_nothing(temporary, moment, number):
    process = subprocess.Popen(
        DEMO,
        env=_environment(temporary),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )
    with process:
        try:
            lines = []
            for line in process.stdout:
                lines.append(line)
                if moment in line:
                    # A terminal sends it to the whole foreground process group.
                    os.killpg(process.pid, number)
            status = process.wait(TIMEOUT_S)
        finally:
            process.kill()
    output = "".join(lines)
    assert status == 128 + number, output
    assert "stopped; nothing is left" in output
    assert "Traceback" not in output


def _environment(temporary):
    return {**os.environ, "TMPDIR": str(temporary)}


def _processes_of(folder):
    """Processes with ``folder`` in their environment or arguments: pid to arguments."""
    found = {}
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit() or int(entry.name) == os.getpid():
            continue
        try:
            arguments = (entry / "cmdline").read_bytes()
            environment = (entry / "environ").read_bytes()
        except OSError:
            continue  # It ended, or is a kernel thread.
        if str(folder).encode() in arguments + environment:
            found[int(entry.name)] = arguments
    return found
