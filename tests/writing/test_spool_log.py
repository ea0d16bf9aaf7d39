"""The log beside a spool file: what a successor reads there, also of a predecessor cut short."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from sidecar.mounter.writing.spool_log import SpoolLog


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "00000000.state"


def test_what_follows_a_torn_line_is_read(path: Path) -> None:
    """A worker was killed in the middle of a line, and its successor wrote on."""
    SpoolLog(path).evict([1])
    with path.open("ab") as file:
        file.write(b'["sent", [1, 2, 838')
    successor = SpoolLog.read(path)
    assert successor.missing == {1}
    successor.evict([2, 3])
    assert SpoolLog.read(path).missing == {1, 2, 3}


def test_a_line_that_a_full_disk_cuts_short_is_an_error_and_hides_none(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    log = SpoolLog(path)
    log.evict([1])
    write = os.write
    with monkeypatch.context() as full:
        full.setattr(os, "write", lambda fd, data: write(fd, data[:7]))
        with pytest.raises(OSError, match="No space left"):
            log.evict([2])
    assert log.missing == {1}
    log.evict([3])
    assert SpoolLog.read(path).missing == {1, 3}
