"""Processes that work on the same few names at once, as fsstress does.

They create, write, map, truncate, rename and remove them without synchronization. A call's
result depends on timing, but its errno must be possible on a local disk. Afterwards the mount,
a mount after a restart and the bucket must have the same tree.
"""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.actor import REPOSITORY, Entry, tree
from tests.writing.buckets import Mounted

SEED = int(os.environ.get("STRESS_SEED", "1"))
LONGEST_S = 3_600.0


@pytest.mark.parametrize(
    ("store", "transport", "processes", "operations"),
    [
        pytest.param("s3", "kernel", 4, 150, id="short-s3-kernel"),
        *(
            pytest.param(
                store, transport, 8, 5_000, id=f"soak-{store}-{transport}", marks=pytest.mark.soak
            )
            for store in ("s3", "gcs", "azure")
            for transport in ("kernel", "libfuse")
        ),
    ],
)
def test_no_call_fails_as_it_never_would(place: Mounted, processes: int, operations: int) -> None:
    """`STRESS_SEED` chooses another order."""
    directory = place.fresh_directory()
    stress(directory, processes, operations)
    before = settled(directory)
    assert before, "they left something to compare"
    in_bucket = {path: hashlib.sha256(data).hexdigest() for path, data in files(place, directory)}
    assert in_bucket == {
        path: entry.content for path, entry in before.items() if entry.status.kind == "file"
    }
    place.restart()
    assert settled(directory) == before


@pytest.mark.soak
def test_the_local_disk_is_no_stricter(tmp_path: Path) -> None:
    """The processes allow every errno that a local disk gives."""
    stress(tmp_path, 8, 20_000)


def stress(directory: Path, processes: int, operations: int) -> None:
    """Run this many processes; one fails if a call returns an errno that is not allowed."""
    children = [
        subprocess.Popen(
            [
                sys.executable,
                "-m",
                "tests.writing.stresser",
                str(directory),
                str(SEED * 1000 + number),
                str(operations),
            ],
            cwd=REPOSITORY,
            stderr=subprocess.PIPE,
            text=True,
        )
        for number in range(processes)
    ]
    try:
        said = [child.communicate(timeout=LONGEST_S)[1] for child in children]
    finally:
        for child in children:
            child.kill()
            child.wait()
    assert [text for text in said if text] == []
    assert {child.returncode for child in children} == {0}


def settled(directory: Path) -> dict[str, Entry]:
    """The tree without times of directories, which change with their names."""
    return {
        path: entry._replace(status=entry.status._replace(mtime_ns=0))
        if entry.status.kind == "directory"
        else entry
        for path, entry in tree(directory).items()
    }


def files(place: Mounted, directory: Path) -> Iterator[tuple[str, bytes]]:
    """Path to content, from an independent client, without links."""
    for path, data in place.objects(directory).items():
        if not path.endswith(".rclonelink"):
            yield path, data
