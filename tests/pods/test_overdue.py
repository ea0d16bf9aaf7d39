"""The janitor ends containers that outlive their own grace period, and nothing else."""

from __future__ import annotations

import contextlib
import os
import subprocess
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

from sidecar.mounter.overdue import end_overdue
from tests.support.cgroups import Cgroup, new_cgroup
from tests.support.waiting import wait_until

SIDECAR = "mount-sidecar"
STATE = "volumes/kubernetes.io~empty-dir/mount-sidecar-state"


class Node(NamedTuple):
    """A kubelet's directory of pods, and where it makes control groups."""

    root: Path
    group: Cgroup
    processes: contextlib.ExitStack

    def pod(self) -> str:
        """A new pod's UID."""
        uid = str(uuid.uuid4())
        (self.root / uid / STATE).mkdir(parents=True)
        return uid

    def ask(self, uid: str, *containers: str) -> None:
        """As the pod's sidecar does."""
        (self.root / uid / STATE / "overdue").write_text("".join(f"{c}\n" for c in containers))

    def start(
        self, uid: str, container: str | None, *, driver: str = "cgroupfs", of: str | None = None
    ) -> subprocess.Popen[str]:
        """A process that ignores SIGTERM.

        Args:
            uid: the pod in whose control group it is.
            container: the kubelet's directory of it is mounted; None: none is, as in a sandbox.
            driver: who spells the group's name.
            of: the pod in whose directory that is, if it is another one.
        """
        pod = f"pod{uid}"
        if driver == "systemd":
            pod = f"kubepods-burstable-pod{uid.replace('-', '_')}.slice"
        group = self.group.path / pod / f"container-{uuid.uuid4().hex}"
        group.mkdir(parents=True)
        script = "trap '' TERM; echo there; sleep 1000 & wait"
        if container is not None:
            file = self.root / (of or uid) / "containers" / container / "0a1b2c3d"
            file.parent.mkdir(parents=True, exist_ok=True)
            file.touch()
            script = f"mount --bind {file} /etc/hostname; {script}"
        entering = Cgroup(group, "pids", self.group.version).entering
        command = [*entering, "unshare", "-m", "sh", "-ec", script]
        process = self.processes.enter_context(
            subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        )
        self.processes.callback(_kill_all, group)
        assert process.stdout is not None
        assert process.stdout.readline() == "there\n"
        return process


def _kill_all(group: Path) -> None:
    for pid in (group / "cgroup.procs").read_text().split():
        with contextlib.suppress(ProcessLookupError):
            os.kill(int(pid), 9)


def _remove(path: Path) -> None:
    """Groups that are empty by now; a process leaves its group a moment after its end."""

    def is_gone() -> bool:
        for folder, _, _ in os.walk(path, topdown=False):
            if folder != str(path):
                with contextlib.suppress(OSError):
                    os.rmdir(folder)
        return not any(entry.is_dir() for entry in path.iterdir())

    wait_until(is_gone, "the groups are gone")


@pytest.fixture
def node(tmp_path: Path) -> Iterator[Node]:
    (tmp_path / "pods").mkdir()
    with new_cgroup("pids") as group:
        try:
            with contextlib.ExitStack() as processes:
                yield Node(tmp_path / "pods", group, processes)
        finally:
            _remove(group.path)


def members(process: subprocess.Popen[str]) -> set[str]:
    """It, and whom it has started, that still run."""
    found = set()
    for status in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            state, parent = status.read_text().rpartition(")")[2].split()[:2]
            pid = status.parent.name
            if state != "Z" and str(process.pid) in (pid, parent):
                found.add(pid)
    return found


@pytest.mark.parametrize("driver", ["cgroupfs", "systemd"])
def test_all_of_a_container_that_is_named_is_ended(node: Node, driver: str) -> None:
    uid = node.pod()
    main, other = (node.start(uid, name, driver=driver) for name in ("main", "other"))
    assert len(members(main)) == 2
    end_overdue(str(node.root))
    assert main.poll() is None, "nobody has asked"
    node.ask(uid, "main", "absent")
    end_overdue(str(node.root))
    assert main.wait(300) == -9
    wait_until(lambda: not members(main), "its children too")
    assert other.poll() is None


def test_the_sidecar_and_the_sandbox_are_never_ended(node: Node) -> None:
    uid = node.pod()
    sidecar, sandbox = node.start(uid, SIDECAR), node.start(uid, None)
    main = node.start(uid, "main")
    node.ask(uid, "main", SIDECAR, "", "*", ".", "../containers/main")
    end_overdue(str(node.root))
    assert main.wait(300) == -9
    time.sleep(0.2)
    assert (sidecar.poll(), sandbox.poll()) == (None, None)


def test_nothing_outside_of_the_pod_is_ended(node: Node) -> None:
    """Whatever a container has mounted: of another pod, or in a group of another pod."""
    uid, elsewhere = node.pod(), node.pod()
    others = [
        node.start(elsewhere, "main"),
        node.start(elsewhere, "main", of=uid),
        node.start(uid, "main", of=elsewhere),
        node.start(str(uuid.uuid4()), "main"),
    ]
    main = node.start(uid, "main")
    node.ask(uid, "main")
    end_overdue(str(node.root))
    assert main.wait(300) == -9
    time.sleep(0.2)
    assert [process.poll() for process in others] == [None] * len(others)


def test_a_group_that_a_container_has_named_counts_as_its_pod_s(node: Node) -> None:
    uid, elsewhere = node.pod(), node.pod()
    nested = Node(
        node.root, Cgroup(node.group.path / f"pod{elsewhere}", "pids", node.group.version), node[2]
    )
    nested.group.path.mkdir()
    process = nested.start(uid, "main")
    node.ask(uid, "main")
    end_overdue(str(node.root))
    time.sleep(0.2)
    assert process.poll() is None


def _link(path: Path) -> None:
    (path.parent / "elsewhere").write_text("main\n")
    path.symlink_to("elsewhere")


@pytest.mark.parametrize(
    "plant",
    [_link, os.mkfifo, os.mkdir, Path.touch],
    ids=["a link", "a FIFO", "a directory", "an empty file"],
)
def test_what_is_no_request_ends_nothing(node: Node, plant: Callable[[Path], None]) -> None:
    uid = node.pod()
    main = node.start(uid, "main")
    plant(node.root / uid / STATE / "overdue")
    end_overdue(str(node.root))
    time.sleep(0.2)
    assert main.poll() is None
