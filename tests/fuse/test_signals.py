"""Signals do not interrupt a call, as on a local disk; a call of a killed program ends."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import IO

import pytest

from sidecar.mounter.system import mounts

_END_S = 60.0

UNDER_A_TIMER = """
import os, signal, sys
signal.signal(signal.SIGALRM, lambda *_: None)
signal.siginterrupt(signal.SIGALRM, sys.argv[2] != "restart")
signal.setitimer(signal.ITIMER_REAL, 0.003, 0.003)
os.chdir(sys.argv[1])
failures = []
def attempt(what, *arguments):
    try:
        return what(*arguments)
    except InterruptedError as error:
        failures.append((what.__name__, arguments))
        return None
for number in range(12):
    # os.stat() and os.listdir() are none of the calls that PEP 475 repeats.
    attempt(os.stat, f"directory-{number}/file")
    attempt(os.listdir, f"directory-{number}")
    attempt(os.mkdir, f"new-{number}")
    with open(f"new-{number}/file", "wb") as file:
        file.write(b"content")
        attempt(os.stat, file.name)
    attempt(os.rename, f"new-{number}/file", f"new-{number}/other")
    attempt(os.truncate, f"new-{number}/other", 3)
    attempt(os.symlink, "target", f"new-{number}/link")
    attempt(os.readlink, f"new-{number}/link")
    attempt(os.statvfs, ".")
    with open(f"directory-{number}/file", "rb", buffering=0) as file:
        assert attempt(file.read) == b"old"
    attempt(os.unlink, f"new-{number}/other")
    attempt(os.unlink, f"new-{number}/link")
    attempt(os.rmdir, f"new-{number}")
signal.setitimer(signal.ITIMER_REAL, 0)
sys.exit(repr(failures) if failures else 0)
"""

# Calls that wait for a store that never answers.
WAITING = {
    "read": "open('file-hang', 'rb').read()",
    "stat": "os.stat('hang/name')",
    "listdir": "os.listdir('hang')",
    "mkdir": "os.mkdir('new-hang')",
    "unlink": "os.unlink('file-hang')",
    "rename": "os.rename('file', 'other-hang')",
    "symlink": "os.symlink('target', 'link-hang')",
    "chmod": "os.chmod('file-hang', 0o600)",
    "truncate": "os.truncate('file-hang', 0)",
    "close": "open('new-hang', 'wb').close()",
    "fsync": "f = open('new-hang', 'wb'); f.write(b'x'); f.flush(); os.fsync(f.fileno())",
    "unsaved": "os.write(os.open('new-hang', os.O_CREAT | os.O_WRONLY), b'x'); os.stat('hang/a')",
}


class Mounted:
    """A mount of a slow store, and the standard output of its process."""

    def __init__(self, directory: Path, said: IO[str]) -> None:
        self.directory = directory
        self._said = said

    def until_it_hangs(self) -> None:
        """Wait until the store got a request that it will not answer."""
        assert self._said.readline()


@pytest.fixture(params=["kernel", "libfuse"])
def mounted(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Mounted]:
    yield from mount(request.param, tmp_path)


@pytest.fixture
def hanging(tmp_path: Path) -> Iterator[Mounted]:
    yield from mount("kernel", tmp_path)


def mount(transport: str, tmp_path: Path) -> Iterator[Mounted]:
    directory = tmp_path / "mount"
    directory.mkdir()
    objects = ["file=old", "file-hang=old", "hang/name=old"]
    objects += [f"directory-{number}/file=old" for number in range(12)]
    arguments = [part for one in objects for part in ("--object", one)]
    process = subprocess.Popen(
        [
            *(sys.executable, "-m", "tests.support.serve"),
            *(transport, str(directory), str(tmp_path / "state"), "--slow", "0.01", *arguments),
        ],
        cwd=Path(__file__).parents[2],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdin is not None
    assert process.stdout is not None
    try:
        assert process.stdout.readline() == "serving\n"
        yield Mounted(directory, process.stdout)
    finally:
        mounts.clear(str(directory))
        process.kill()  # Its threads wait for a store that never answers.
        process.communicate()


@pytest.mark.parametrize("restart", ["restart", "no-restart"])
def test_no_call_is_interrupted(mounted: Mounted, restart: str) -> None:
    """A profiler's timer, every 3 ms, with and without SA_RESTART."""
    done = subprocess.run(
        [sys.executable, "-c", UNDER_A_TIMER, str(mounted.directory), restart],
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.parametrize("call", WAITING)
@pytest.mark.parametrize(
    "signals",
    [[signal.SIGKILL], [signal.SIGTERM], [signal.SIGUSR1, signal.SIGKILL]],
    ids=lambda signals: "-".join(number.name for number in signals),
)
def test_a_killed_program_does_not_wait(
    hanging: Mounted, call: str, signals: list[signal.Signals]
) -> None:
    """Also after a signal that it handles: the kernel sends INTERRUPT for the first one only."""
    program = f"""
import os, signal, sys
signal.signal(signal.SIGUSR1, lambda *_: None)
os.chdir({str(hanging.directory)!r})
{WAITING[call]}
"""
    process = subprocess.Popen([sys.executable, "-c", program])
    try:
        hanging.until_it_hangs()
        for number in signals:
            process.send_signal(number)
        assert process.wait(_END_S) == -signals[-1]
    finally:
        process.kill()


def test_what_a_killed_program_wrote_is_saved(hanging: Mounted) -> None:
    """Nobody waits for the answer to its FLUSH, but nothing is lost."""
    program = f"""
import os
os.chdir({str(hanging.directory)!r})
os.write(os.open("new", os.O_CREAT | os.O_WRONLY), b"written")
os.stat("hang/a")
"""
    process = subprocess.Popen([sys.executable, "-c", program])
    hanging.until_it_hangs()
    process.kill()
    assert process.wait(_END_S) == -signal.SIGKILL
    with (hanging.directory / "new").open("r+b") as file:
        assert file.read() == b"written"
        os.fsync(file.fileno())
    # The name can be removed although the killed program never got its answer.
    (hanging.directory / "new").unlink()
    assert not (hanging.directory / "new").exists()
