"""A control group of a test's own, of version 1 or 2 (cgroups(7))."""

from __future__ import annotations

import contextlib
import os
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Literal

import pytest

from sidecar.mounter.system import mounts
from tests.support.waiting import wait_until

Controller = Literal["cpu", "memory", "pids"]
_LIMITS = {
    ("memory", 1): "memory.limit_in_bytes",
    ("memory", 2): "memory.max",
    ("pids", 1): "pids.max",
    ("pids", 2): "pids.max",
    ("cpu", 1): "cpu.cfs_quota_us",
    ("cpu", 2): "cpu.max",
}
_PERIOD_US = 1_000_000


class Cgroup:
    """A control group with one controller."""

    def __init__(self, path: Path, controller: Controller, version: int) -> None:
        self.path = path
        self.version = version
        self._limit = path / _LIMITS[controller, version]

    def limit(self, value: int | None) -> None:
        """Set the controller's limit, of the processor in ms a second; None: no limit."""
        if self._limit.name == "cpu.max":
            text = "max" if value is None else f"{1000 * value} {_PERIOD_US}"
        elif self._limit.name == "cpu.cfs_quota_us":
            (self.path / "cpu.cfs_period_us").write_text(str(_PERIOD_US))
            text = "-1" if value is None else str(1000 * value)
        elif value is None:
            text = "-1" if self.version == 1 and self._limit.name.startswith("memory") else "max"
        else:
            text = str(value)
        self._limit.write_text(text)

    def add(self, pid: int) -> None:
        """Move a process into it."""
        (self.path / "cgroup.procs").write_text(str(pid))

    @property
    def entering(self) -> list[str]:
        """Words before a command that runs in the group."""
        return ["sh", "-ec", f'echo $$ > {self.path}/cgroup.procs\nexec "$@"', "sh"]

    def processes(self) -> list[int]:
        """The processes in the group."""
        return [int(pid) for pid in (self.path / "cgroup.procs").read_text().split()]

    def tasks(self) -> int:
        """How many processes and threads count against a limit of ``pids``."""
        return int((self.path / "pids.current").read_text())

    def oom_kills(self) -> int:
        """How many processes the kernel has killed in it because memory ran out."""
        name = "memory.oom_control" if self.version == 1 else "memory.events"
        fields = dict(line.split() for line in (self.path / name).read_text().splitlines())
        return int(fields["oom_kill"])


@contextlib.contextmanager
def new_cgroup(controller: Controller) -> Iterator[Cgroup]:
    """A group below this process's own, removed at the end; skips if none can be made."""
    found = _root(controller)
    if found is None:
        pytest.skip(f"kernel: no control groups with `{controller}` can be made here")
    root, version = found
    path = root / f"test-{uuid.uuid4().hex[:12]}"
    path.mkdir()
    try:
        yield Cgroup(path, controller, version)
    finally:
        _remove(path)


def _root(controller: Controller) -> tuple[Path, int] | None:
    """The folder in which groups with a controller can be made, and the version."""
    for mount in mounts.mounted():
        root = Path(mount.path)
        if mount.fstype == "cgroup" and root.name.split(",").count(controller):
            return root, 1
        if mount.fstype == "cgroup2":
            control = root / "cgroup.subtree_control"
            with contextlib.suppress(OSError):
                control.write_text(f"+{controller}")
                return root, 2
    return None


def _remove(path: Path) -> None:
    """Processes that end leave their group a moment later."""

    def is_removed() -> bool:
        with contextlib.suppress(OSError):
            os.rmdir(path)
        return not path.exists()

    wait_until(is_removed, f"{path} is empty", poll_s=0.05)
