"""The default budgets of memory and disk."""

from __future__ import annotations

import contextlib
import hashlib
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from sidecar.contract.options import Options
from sidecar.mounter.system import resource_limits
from sidecar.mounter.system.resource_limits import (
    cache_budget_bytes,
    disk_bytes,
    memory_budget_bytes,
    names_budget_bytes,
    page_cache_bytes,
)
from sidecar.units import GIB, MIB
from tests.reading.buckets import fill, make_bucket, sidecar_behind
from tests.support.faults import FaultProxy
from tests.support.servers import S3Server

UNLIMITED_V1 = "9223372036854771712"


@pytest.fixture
def host(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """/proc and cgroups of a machine with 64 GiB of memory and no limit."""
    (tmp_path / "proc" / "self").mkdir(parents=True)
    (tmp_path / "cgroup").mkdir()
    (tmp_path / "proc" / "meminfo").write_text(
        f"MemTotal:   {64 * GIB // 1024} kB\nMemFree: 1 kB\n"
    )
    (tmp_path / "proc" / "self" / "cgroup").write_text("0::/\n")
    monkeypatch.setattr(resource_limits, "PROC", tmp_path / "proc")
    monkeypatch.setattr(resource_limits, "CGROUPS", tmp_path / "cgroup")
    return tmp_path


def limit(host: Path, file: str, text: str) -> None:
    path = host / "cgroup" / file
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text + "\n")


def group(host: Path, text: str) -> None:
    (host / "proc" / "self" / "cgroup").write_text(text)


def test_without_a_limit_the_most(host: Path) -> None:
    assert memory_budget_bytes(1) == 256 * MIB
    limit(host, "memory.max", "max")
    assert memory_budget_bytes(1) == 256 * MIB


@pytest.mark.parametrize(
    ("limit_mib", "mounts", "budget_mib"),
    [
        *((512, 1, 128), (512, 2, 64), (512, 5, 20.8), (4096, 2, 256)),
        *((192, 1, 40), (162, 1, 30), (128, 5, 16), (32, 1, 16)),  # processes first
    ],
)
def test_a_quarter_of_the_limit_shared_by_the_mounts(
    host: Path, limit_mib: int, mounts: int, budget_mib: float
) -> None:
    limit(host, "memory.max", str(limit_mib * MIB))
    assert memory_budget_bytes(mounts) == int(budget_mib * MIB)


def test_a_small_machine_is_a_limit_too(host: Path) -> None:
    (host / "proc" / "meminfo").write_text("MemTotal:         409600 kB\n")
    assert memory_budget_bytes(1) == 100 * MIB


def test_the_tightest_group_above_counts(host: Path) -> None:
    group(host, "0::/kubepods/pod1/container\n")
    limit(host, "kubepods/pod1/container/memory.max", "max")
    limit(host, "kubepods/pod1/memory.max", str(400 * MIB))
    limit(host, "kubepods/memory.max", str(32 * GIB))
    assert memory_budget_bytes(1) == 100 * MIB


@pytest.mark.parametrize(
    "visible", ["memory/memory.limit_in_bytes", "memory/docker/x/memory.limit_in_bytes"]
)
def test_version_1(host: Path, visible: str) -> None:
    group(host, "12:cpu,cpuacct:/docker/x\n9:memory:/docker/x\n1:name=systemd:/docker/x\n")
    limit(host, "memory/memory.limit_in_bytes", UNLIMITED_V1)
    assert memory_budget_bytes(1) == 256 * MIB
    limit(host, visible, str(192 * MIB))
    assert memory_budget_bytes(1) == 40 * MIB


@pytest.mark.parametrize(("limit_mib", "mounts", "names_mib"), [(160, 1, 29), (4096, 2, 665)])
def test_names_get_as_much_as_content_where_memory_is_little(
    host: Path, limit_mib: int, mounts: int, names_mib: int
) -> None:
    limit(host, "memory.max", str(limit_mib * MIB))
    found = names_budget_bytes(mounts, 0)
    assert found // MIB == names_mib


def test_this_machine_has_a_budget() -> None:
    assert 16 * MIB <= memory_budget_bytes(3) <= 256 * MIB


@pytest.mark.parametrize(
    ("mounts", "free_gib", "occupied_gib", "budget_gib"),
    [
        (1, 100, 0, 80),
        (4, 100, 0, 20),
        (1, 20, 0, 0),  # No room: the kubelet would soon evict pods.
        (1, 5, 0, 0),
        (1, 20, 80, 80),  # The cache itself filled the disk.
        (1, 20.05, 0, 0),  # Too little to be useful.
    ],
)
def test_a_fifth_of_the_disk_stays_free(
    mounts: int, free_gib: float, occupied_gib: int, budget_gib: int
) -> None:
    total = 100 * GIB
    got = cache_budget_bytes(mounts, total, int(free_gib * GIB), occupied_gib * GIB)
    assert got == budget_gib * GIB


def test_the_disk_of_a_folder_that_does_not_exist_yet(tmp_path: Path) -> None:
    total, free = disk_bytes(tmp_path / "not" / "yet")
    assert 0 < free <= total


@contextlib.contextmanager
def disk_at(path: Path, size_bytes: int) -> Iterator[None]:
    """An empty file system of this size."""
    path.mkdir()
    options = f"size={size_bytes}"
    subprocess.run(["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(path)], check=True)
    try:
        yield
    finally:
        subprocess.run(["umount", "--lazy", str(path)], check=True)


def test_a_mount_works_with_budgets_from_the_machine(s3_server: S3Server, tmp_path: Path) -> None:
    cloud = make_bucket(s3_server)
    expected = fill(cloud, {"key": 3 * MIB})
    options = Options(cache="disk")
    disk = tmp_path / "disk"  # The machine's disk may be too full for a cache.
    with (
        disk_at(disk, 512 * MIB),
        FaultProxy(s3_server.port) as proxy,
        sidecar_behind(proxy, cloud, disk / "run", tmp_path / "m", options=options) as sidecar,
    ):
        content = (tmp_path / "m" / "key").read_bytes()
        assert hashlib.sha256(content).hexdigest() == expected["key"]
        sidecar.wait_for(lambda: sidecar.metric("mount_sidecar_disk_cache_used_bytes") >= 3 * MIB)


def test_a_mount_works_without_a_usable_cache_folder(s3_server: S3Server, tmp_path: Path) -> None:
    cloud = make_bucket(s3_server)
    fill(cloud, {"key": 3 * MIB})
    state = tmp_path / "run" / "state" / "data-v"
    state.mkdir(parents=True)
    (state / "cache").write_text("no folder")
    with (
        FaultProxy(s3_server.port) as proxy,
        sidecar_behind(
            proxy,
            cloud,
            tmp_path / "run",
            tmp_path / "m",
            options=Options(cache="disk", cache_bytes=64 * MIB),
        ) as sidecar,
    ):
        assert len((tmp_path / "m" / "key").read_bytes()) == 3 * MIB
        assert "there will be no disk cache" in sidecar.log()


def test_half_of_the_limit_may_wait_in_the_page_cache(host: Path) -> None:
    limit(host, "memory.max", str(1024 * MIB))
    group(host, "0::/")
    assert page_cache_bytes(1, 0) == 512 * MIB
    assert page_cache_bytes(4, 0) == 128 * MIB
    assert page_cache_bytes(1, 768 * MIB) == 128 * MIB
