"""Programs whose system calls are interrupted every 3 ms, as under a profiler.

Their files are checked through a new mount, and as another client reads them from the bucket.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from sidecar.contract.options import TransportName
from tests.support.servers import REPOSITORY
from tests.writing.buckets import Mounted, mounted

PROGRAM = Path(__file__).with_name("profiled_program.py")
TIMER = Path(__file__).with_name("interval_timer.c")
SOAK_PYTHON = REPOSITORY / ".venv-torch/bin/python"
LONGEST_S = 900.0


@pytest.fixture(scope="module", params=["kernel", pytest.param("libfuse", marks=pytest.mark.soak)])
def place(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Mounted]:
    transport: TransportName = request.param
    with mounted(request, tmp_path_factory.mktemp(transport), "s3", transport) as found:
        yield found


def run(*command: str | Path, cwd: Path | None = None, **environment: str) -> None:
    """Run a program, which must succeed and print no warning."""
    done = subprocess.run(
        [str(part) for part in command],
        cwd=cwd,
        capture_output=True,
        text=True,
        check=False,
        timeout=LONGEST_S,
        env={**os.environ, "LC_ALL": "C.UTF-8", "GIT_CONFIG_GLOBAL": os.devnull, **environment},
    )
    assert done.returncode == 0, f"{command}: {done.stdout}{done.stderr}"


def bring(place: Mounted, directory: Path) -> Path:
    """A local copy of what an independent client reads from the bucket."""
    copy = place.local / place.fresh_name()
    copy.mkdir()
    for name, data in place.objects(directory).items():
        path = copy / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.suffix == ".rclonelink":
            path.with_suffix("").symlink_to(data.decode())
        else:
            path.write_bytes(data)
    return copy


@pytest.mark.parametrize(
    ("program", "size"),
    [
        ("names", 30),
        ("sqlite", 15),
        ("h5py", 400),
        ("parquet", 20_000),
        *(
            pytest.param(program, size, marks=pytest.mark.soak)
            for program, size in (
                ("names", 600),
                ("sqlite", 200),
                ("h5py", 20_000),
                ("duckdb", 200),
                ("lmdb", 40),
                ("zarr", 3_000),
                ("datasets", 50_000),
                ("pip", 150),
            )
        ),
    ],
)
def test_a_program_of_python(
    request: pytest.FixtureRequest, place: Mounted, program: str, size: int
) -> None:
    """The long ones run in the interpreter of scripts/install.sh soak."""
    is_long = request.node.get_closest_marker("soak") is not None
    python = SOAK_PYTHON if is_long else Path(sys.executable)
    directory = place.fresh_directory()
    run(python, PROGRAM, program, "write", directory, str(size))
    place.restart()
    run(python, PROGRAM, program, "check", directory, str(size))
    run(python, PROGRAM, program, "check", bring(place, directory), str(size))


@pytest.mark.soak
def test_git(place: Mounted, tmp_path: Path) -> None:
    """The programs that it starts have a timer each."""
    preloaded = tmp_path / "timer.so"
    run("cc", "-shared", "-fPIC", "-o", preloaded, TIMER)
    directory = place.fresh_directory()
    base, clone = directory / "base", directory / "clone"
    who = ["-c", "user.name=t", "-c", "user.email=t@example.invalid", "-c", "gc.auto=0"]

    def git(*words: str | Path, cwd: Path) -> None:
        run("git", *who, *words, cwd=cwd, LD_PRELOAD=str(preloaded))

    git("init", "-q", "-b", "main", base, cwd=directory)
    for version in range(3):
        for number in range(300):
            path = base / f"{number % 10}" / f"{number}.txt"
            path.parent.mkdir(exist_ok=True)
            path.write_text(f"{number} {version}\n" * (number % 40))
        git("add", ".", cwd=base)
        git("commit", "-qm", f"version {version}", cwd=base)
    git("gc", "-q", cwd=base)
    git("clone", "-q", "--no-local", base, clone, cwd=directory)
    git("fsck", "--full", "--strict", cwd=base)
    git("fsck", "--full", "--strict", cwd=clone)
    copy = bring(place, directory)
    for name in ("base", "clone"):
        for empty in ("objects", "refs"):  # Directories without objects, which git requires.
            (copy / name / ".git" / empty).mkdir(parents=True, exist_ok=True)
        run("git", "fsck", "--full", "--strict", cwd=copy / name)
        run("git", "diff", "--quiet", "HEAD", cwd=copy / name)
