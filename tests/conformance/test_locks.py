"""flock(2) and fcntl(2) locks."""

from __future__ import annotations

import errno
import fcntl
import os
import subprocess
import sys
from pathlib import Path

from tests.conformance.programs import fails_with, opened, write


def test_flock_excludes(directory: Path) -> None:
    path = write(directory / "file", b"")
    with opened(path, os.O_RDWR) as one, opened(path, os.O_RDWR) as other:
        fcntl.flock(one, fcntl.LOCK_EX)
        with fails_with(errno.EWOULDBLOCK):
            fcntl.flock(other, fcntl.LOCK_EX | fcntl.LOCK_NB)
        fcntl.flock(one, fcntl.LOCK_UN)
        fcntl.flock(other, fcntl.LOCK_EX | fcntl.LOCK_NB)


def test_record_locks_exclude_another_process(directory: Path) -> None:
    path = write(directory / "file", b"0123456789")
    with opened(path, os.O_RDWR) as fd:
        fcntl.lockf(fd, fcntl.LOCK_EX, 5, 0)
        assert _lock_elsewhere(path, 5, 0) == errno.EAGAIN
        assert _lock_elsewhere(path, 5, 5) == 0
    assert _lock_elsewhere(path, 5, 0) == 0


def _lock_elsewhere(path: Path, length: int, start: int) -> int:
    program = (
        "import fcntl, sys\n"
        "file = open(sys.argv[1], 'r+')\n"
        "try:\n"
        "    fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB, int(sys.argv[2]), int(sys.argv[3]))\n"
        "except OSError as error:\n"
        "    sys.exit(error.errno)\n"
    )
    command = [sys.executable, "-I", "-c", program, str(path), str(length), str(start)]
    return subprocess.run(command, check=False).returncode
