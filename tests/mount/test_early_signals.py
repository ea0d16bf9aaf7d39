"""A container that is stopped while it starts ends at once: no signal is lost."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.mount.buckets import bucket_sidecar, make_cloud
from tests.support.sidecar import Sidecar

# As the image starts its program; and that as the first process of a container.
BLOCKED = ["env", "--block-signal=TERM,INT,HUP"]
FIRST = ["unshare", "--pid", "--fork", "--kill-child"]
ENDS_S = 20.0
MOMENTS_S = [0.05 * number for number in range(16)]


def first_process(unshare: int) -> int:
    """The process that ``unshare --fork`` has started, once it is our program."""
    while True:
        with contextlib.suppress(IndexError):
            pid = int(Path(f"/proc/{unshare}/task/{unshare}/children").read_text().split()[0])
            if Path(f"/proc/{pid}/comm").read_text().strip() not in ("unshare", "env"):
                return pid
        time.sleep(0.001)


@pytest.fixture
def sidecar(
    request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> Iterator[Sidecar]:
    cloud = make_cloud(request, monkeypatch, "s3")
    found = bucket_sidecar(tmp_path, cloud, prefix=[*FIRST, *BLOCKED])
    yield found
    found.clean_up()


@pytest.mark.parametrize("moment_s", MOMENTS_S, ids="{:.2f}".format)
@pytest.mark.parametrize("by_hand", [False, True], ids=["injected", "by hand"])
def test_a_sidecar_that_is_stopped_while_it_starts(
    sidecar: Sidecar, by_hand: bool, moment_s: float
) -> None:
    if by_hand:  # then it is checked, and the process replaced
        sidecar.spec_text = sidecar.spec.to_json(indent=None)
    sidecar.start(wait=False)
    pid = first_process(sidecar.pid)
    time.sleep(moment_s)
    os.kill(pid, signal.SIGTERM)
    assert sidecar.wait(ENDS_S) in (0, 128 + signal.SIGTERM), sidecar.log()
    assert sidecar.mounted() == []
    assert not (sidecar.shared / ".sidecar" / "ready").exists()


SWALLOWS = """
import os, signal, sys
import sidecar.cli.main
from sidecar.__main__ import main

def run():
    try:
        os.kill(os.getpid(), signal.SIGTERM)
        signal.pause()
    except SystemExit:
        raise ValueError("error building a validator")

sidecar.cli.main.main = run
sys.exit(main())
"""


def test_a_library_that_swallows_the_end_changes_nothing() -> None:
    """As pydantic does while it builds a validator."""
    done = subprocess.run(
        [sys.executable, "-c", SWALLOWS], capture_output=True, text=True, check=False, timeout=60
    )
    assert (done.returncode, done.stderr) == (128 + signal.SIGTERM, "")


def test_a_hangup_that_is_ignored_stays_ignored() -> None:
    """As nohup(1) asks for it."""
    command = ["env", "--ignore-signal=HUP", sys.executable, "-m", "sidecar", "wait"]
    with subprocess.Popen([*command, "--timeout", "3600"], stderr=subprocess.DEVNULL) as found:
        try:
            time.sleep(1.0)
            for number in (signal.SIGHUP, signal.SIGTERM):
                found.send_signal(number)
                time.sleep(0.1)
            assert found.wait(ENDS_S) == 128 + signal.SIGTERM
        finally:
            found.kill()


@pytest.mark.parametrize("moment_s", [0.0, 0.1, 0.2, 0.4])
def test_another_command_that_is_stopped_while_it_starts(moment_s: float) -> None:
    command = [sys.executable, "-m", "sidecar", "wait", "--timeout", "3600"]
    with subprocess.Popen([*FIRST, *BLOCKED, *command], stderr=subprocess.DEVNULL) as found:
        try:
            pid = first_process(found.pid)
            time.sleep(moment_s)
            os.kill(pid, signal.SIGTERM)
            assert found.wait(ENDS_S) == 128 + signal.SIGTERM
        finally:
            found.kill()
