"""Every process of the sidecar forbids dumps of itself, and sets when it goes for memory."""

from __future__ import annotations

import os
import resource
import subprocess
import sys
from functools import partial
from pathlib import Path

import pytest

from sidecar.mounter.system import hardening, resource_limits
from tests.mount.buckets import bucket_sidecar
from tests.support.clouds import Cloud
from tests.support.killer import serving_pid
from tests.support.waiting import wait_until

CAP_SYS_RESOURCE = 24


def oom_score(pid: int) -> int:
    return int(Path(f"/proc/{pid}/oom_score_adj").read_text())


def may_lower_oom_scores() -> bool:
    status = Path("/proc/self/status").read_text()
    effective = next(line for line in status.splitlines() if line.startswith("CapEff:"))
    return bool(int(effective.split()[1], 16) >> CAP_SYS_RESOURCE & 1)


def leaves_no_core(pid: int) -> bool:
    return resource.prlimit(pid, resource.RLIMIT_CORE) == (0, 0)


def may_not_be_traced(pid: int, prefix: list[str]) -> bool:
    command = [*prefix, "readlink", f"/proc/{pid}/exe"]
    return subprocess.run(command, capture_output=True, check=False).returncode == 1


def test_no_process_leaves_a_dump(tmp_path: Path, s3: Cloud) -> None:
    """Nor may one of the same user and rights trace it: ptrace(2), access mode checking."""
    less = ["setpriv", "--bounding-set=-sys_ptrace", "--inh-caps=-sys_ptrace"]
    with bucket_sidecar(tmp_path, s3, prefix=[*less, "prlimit", "--core=unlimited"]) as sidecar:
        sidecar.wait_for(lambda: len(sidecar.children()) == 3)
        sidecar.wait_for(lambda: len(sidecar.processes()) >= 6)
        for pid in sidecar.processes():
            wait_until(partial(leaves_no_core, pid), "no core file")
            wait_until(partial(may_not_be_traced, pid, less), "no tracing")
        assert sidecar.stop() == 0


DUMPABLE = """
import ctypes, os, sys
from sidecar.mounter.system.hardening import forbid_dumps
if sys.argv[1] == "yes":
    forbid_dumps()
    if not os.fork():
        print(ctypes.CDLL(None).prctl(3, 0, 0, 0, 0), os.listdir("/proc/self/fd") != [], flush=True)
        os._exit(0)
    os.wait()
print(ctypes.CDLL(None).prctl(3, 0, 0, 0, 0))  # PR_GET_DUMPABLE
"""


@pytest.mark.parametrize(("forbidden", "said"), [("no", "1\n"), ("yes", "0 True\n0\n")])
def test_forked_processes_may_not_be_dumped_either(forbidden: str, said: str) -> None:
    command = [sys.executable, "-c", DUMPABLE, forbidden]
    assert subprocess.run(command, capture_output=True, text=True, check=True).stdout == said


@pytest.mark.parametrize("of_container", [0, 700, 1000])
def test_who_goes_first_when_memory_runs_out(tmp_path: Path, s3: Cloud, of_container: int) -> None:
    """Readers, then workers, and process 1 last."""
    prefix = ["sh", "-ec", f'echo {of_container} > /proc/self/oom_score_adj; exec "$@"', "sh"]
    with bucket_sidecar(tmp_path, s3, prefix=prefix) as sidecar:
        worker = serving_pid(sidecar, "train")
        children = Path(f"/proc/{worker}/task/{worker}/children").read_text().split()
        of_readers = hardening.reader_oom_score(oom_score(worker))
        # A reader sets it itself, once it is forked.
        sidecar.wait_for(lambda: {oom_score(int(pid)) for pid in children[1:]} == {of_readers})
        others = [oom_score(pid) for pid in sidecar.children()]
        assert oom_score(sidecar.pid) == (-1000 if may_lower_oom_scores() else of_container)
        assert oom_score(sidecar.pid) <= min(others)
        assert min(others) == of_container
        assert oom_score(worker) == hardening.worker_oom_score(of_container)
        if of_container < 900:
            assert of_container < oom_score(worker) < of_readers
        assert sidecar.stop() == 0


def test_a_score_that_may_not_be_so_low_is_no_reason_to_end() -> None:
    """In a process of its own, which gives up the right."""
    program = (
        "import os; from sidecar.mounter.system import hardening as h; h.set_oom_score(300); "
        "os.setuid(65534); h.survive_oom(); print(h.oom_score())"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )
    assert done.stdout == "300\n"
    assert os.getuid() == 0


# --- memory.oom.group of version 2, which this machine may not have: a tree of files ------------


@pytest.fixture
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(resource_limits, "PROC", tmp_path / "proc")
    monkeypatch.setattr(resource_limits, "CGROUPS", tmp_path / "cgroup")
    return tmp_path


@pytest.mark.parametrize("group", ["/", "/kubepods/pod1/container"])
def test_the_container_s_own_group_ends_one_process_only(machine: Path, group: str) -> None:
    """With a namespace of its own it sees its group as the root, without it at its path."""
    files = oom_group(machine, group)
    assert hardening.end_alone() is None
    assert files[group].read_text() == "0\n"
    others = {file.read_text() for name, file in files.items() if name != group}
    assert others <= {"1\n"}


def test_a_group_that_may_not_be_changed_is_told(machine: Path) -> None:
    file = oom_group(machine, "/container")["/container"]
    subprocess.run(["mount", "--bind", "-o", "ro", file, file], check=True)
    try:
        why = hardening.end_alone()
    finally:
        subprocess.run(["umount", file], check=True)
    assert why == f"cannot write `{file}`: Read-only file system"


def test_a_group_that_ends_one_process_already_is_left_alone(machine: Path) -> None:
    file = oom_group(machine, "/container")["/container"]
    file.write_text("0\n")
    before_ns = file.stat().st_mtime_ns
    assert hardening.end_alone() is None
    assert file.stat().st_mtime_ns == before_ns


def test_version_1_has_no_such_setting(machine: Path) -> None:
    (machine / "proc/self").mkdir(parents=True)
    (machine / "proc/self/cgroup").write_text("4:memory:/container\n0::/\n")
    assert hardening.end_alone() is None


def oom_group(root: Path, group: str) -> dict[str, Path]:
    """A machine's files about a group and those above it, each ended as a whole."""
    (root / "proc/self").mkdir(parents=True)
    (root / "proc/self/cgroup").write_text(f"0::{group}\n")
    below = Path(group.lstrip("/"))
    files = {}
    for name in (below, *below.parents):
        folder = root / "cgroup" / name
        folder.mkdir(parents=True, exist_ok=True)
        files["/" if name == Path() else f"/{name}"] = folder / "memory.oom.group"
    for file in files.values():
        file.write_text("1\n")
    return files
