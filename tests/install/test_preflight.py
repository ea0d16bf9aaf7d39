"""`scripts/preflight.sh` names what a machine lacks, before the first test runs."""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SCRIPT = ROOT / "scripts" / "preflight.sh"
WITHOUT_CGROUPS = "umount --recursive /sys/fs/cgroup"
NO_CGROUPS = (
    "preflight: no cgroups here, so podman runs no container: "
    "mount --rbind /sys FOLDER/sys before you enter a chroot"
)


def run(
    change: str, *command: str | Path, cwd: Path = ROOT, **environment: str
) -> subprocess.CompletedProcess[str]:
    """Run a program in its own mount namespace, after the command ``change``."""
    script = f"{change} && exec {shlex.join(map(str, command))}"
    return subprocess.run(
        ["unshare", "--mount", "sh", "-c", script],
        cwd=cwd,
        env={**os.environ, "PYTEST_ADDOPTS": "", **environment},
        capture_output=True,
        text=True,
        check=False,
    )


def test_without_cgroups_no_container_runs() -> None:
    done = run(WITHOUT_CGROUPS, SCRIPT)
    assert (done.returncode, done.stderr) == (1, f"{NO_CGROUPS}\n")


def test_without_the_device_nothing_is_mounted() -> None:
    done = run("mount -t tmpfs none /dev", SCRIPT)
    assert done.returncode == 1
    [line] = done.stderr.splitlines()
    assert line.startswith("preflight: /dev/fuse does not exist: modprobe fuse; ")


def test_a_small_temporary_folder(tmp_path: Path) -> None:
    done = run(f"mount -t tmpfs -o size=8m none {tmp_path}", SCRIPT, TMPDIR=str(tmp_path))
    assert done.returncode == 1
    [line] = done.stderr.splitlines()
    assert line.startswith(f"preflight: {tmp_path} has 8 MiB free, and the tests need ")


@pytest.mark.parametrize(
    ("verb", "what"), [("run", "runs no container"), ("exec", "enters no container")]
)
def test_what_podman_cannot_do(tmp_path: Path, verb: str, what: str) -> None:
    podman = tmp_path / "podman"
    podman.write_text(f'#!/bin/sh\ncase "$*" in *" {verb} "*) echo no luck >&2; exit 1 ;; esac\n')
    podman.chmod(0o755)
    done = run("true", SCRIPT, PATH=f"{tmp_path}:{os.environ['PATH']}")
    assert done.returncode == 1
    [line] = done.stderr.splitlines()
    assert line.startswith(f"preflight: podman {what} here (no luck): ")


def test_a_container_that_is_left_when_it_is_entered(tmp_path: Path) -> None:
    """As in a chroot: `podman exec` finds the machine's programs, not the container's."""
    podman = tmp_path / "podman"
    podman.write_text(
        '#!/bin/sh\nwhile [ "$1" != exec ]; do [ $# -gt 0 ] || exit 0; shift; done\nshift 2\n"$@"\n'
    )
    podman.chmod(0o755)
    done = run("true", SCRIPT, PATH=f"{tmp_path}:{os.environ['PATH']}")
    assert done.returncode == 1
    [line] = done.stderr.splitlines()
    assert line.startswith("preflight: podman exec leaves this chroot ")


@pytest.mark.parametrize("processes", [0, 2])
def test_a_run_of_everything_ends_before_its_first_test(tmp_path: Path, processes: int) -> None:
    (tmp_path / "pytest.ini").write_text("[pytest]\ntestpaths = tests\n")
    (tmp_path / "tests").mkdir()
    (tmp_path / "tests" / "test_it.py").write_text("def test_it(): pass\n")
    command = [sys.executable, "-m", "pytest", "-p", "tests.support.preflight"]
    command += ["-n", str(processes)]

    whole = run(WITHOUT_CGROUPS, *command, cwd=tmp_path, PYTHONPATH=str(ROOT))
    assert whole.returncode == pytest.ExitCode.USAGE_ERROR
    assert whole.stderr == f"ERROR: {NO_CGROUPS}\n\n"
    assert "passed" not in whole.stdout

    part = run(WITHOUT_CGROUPS, *command, "tests", cwd=tmp_path, PYTHONPATH=str(ROOT))
    assert part.returncode == 0
