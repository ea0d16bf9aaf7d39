"""Disks of a test's own: one that is nearly full, and one with room."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest


def _mounted(place: Path, size: str) -> Iterator[Path]:
    if os.geteuid() != 0:
        pytest.skip("mounting a tmpfs needs root")
    place.mkdir(exist_ok=True)
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(place)], check=True)
    yield place
    subprocess.run(["umount", "--lazy", str(place)], check=True)


@pytest.fixture
def tiny_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 1 MiB."""
    yield from _mounted(tmp_path / "tiny", "1m")


@pytest.fixture
def own_disk(tmp_path: Path) -> Iterator[Path]:
    """The test's folder is a disk with room: the machine's may be too full for a cache."""
    yield from _mounted(tmp_path, "16g")
