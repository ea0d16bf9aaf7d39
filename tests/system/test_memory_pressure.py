"""How near a container is to its limit of memory, and what becomes of its budgets."""

from __future__ import annotations

from pathlib import Path

import pytest

from sidecar.mounter.reading.buffers import BufferPool
from sidecar.mounter.system import resource_limits
from sidecar.mounter.system.memory_pressure import MemoryPressure, used_part
from sidecar.units import MIB


class Host:
    """A machine's files about one group with a limit of 100 MiB."""

    def __init__(self, root: Path, version: int) -> None:
        self.version = version
        (root / "proc" / "self").mkdir(parents=True)
        line = "0::/" if version == 2 else "4:memory:/docker/x"
        (root / "proc" / "self" / "cgroup").write_text(f"{line}\n")
        self.folder = root / "cgroup" / ("memory" if version == 1 else "")
        self.folder.mkdir(parents=True)
        limit = "memory.max" if version == 2 else "memory.limit_in_bytes"
        self.write(limit, 100 * MIB)
        self.use(50)

    def write(self, name: str, value: object) -> None:
        (self.folder / name).write_text(f"{value}\n")

    def use(self, mib: int, *, cached_mib: int = 0, tmpfs_mib: int = 0) -> None:
        """What processes use, and page cache besides: half of it active; and files of a tmpfs."""
        usage, prefix = ("memory.current", "")
        if self.version == 1:
            usage, prefix = "memory.usage_in_bytes", "total_"
        self.write(usage, (mib + cached_mib + tmpfs_mib) * MIB)
        half = cached_mib * MIB // 2
        stat = f"cache 1\n{prefix}inactive_file {half}\n{prefix}active_file {half}\nother 5\n"
        stat += f"{prefix}shmem {tmpfs_mib * MIB}"
        self.write("memory.stat", stat)

    @property
    def part(self) -> float:
        return used_part()


@pytest.fixture(autouse=True)
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(resource_limits, "PROC", tmp_path / "proc")
    monkeypatch.setattr(resource_limits, "CGROUPS", tmp_path / "cgroup")


@pytest.fixture(params=[1, 2])
def host(request: pytest.FixtureRequest, tmp_path: Path) -> Host:
    return Host(tmp_path, request.param)


def test_page_cache_does_not_count(host: Host) -> None:
    assert host.part == pytest.approx(0.5)
    host.use(50, cached_mib=50)
    assert host.part == pytest.approx(0.5)


def test_a_cache_in_memory_is_neither_used_nor_room(host: Host) -> None:
    """Its size was added to the limit, and when it is full nothing is short."""
    host.use(20, tmpfs_mib=60)
    assert host.part == pytest.approx(20 / 40)
    host.use(38, tmpfs_mib=60)
    assert host.part == pytest.approx(38 / 40)


def test_a_throttling_limit_counts(tmp_path: Path) -> None:
    host = Host(tmp_path, 2)
    host.write("memory.high", 60 * MIB)
    assert host.part == pytest.approx(50 / 60)
    host.write("memory.high", "max")
    assert host.part == pytest.approx(0.5)


def test_without_a_limit_memory_is_never_short(tmp_path: Path) -> None:
    host = Host(tmp_path, 2)
    host.write("memory.max", "max")
    assert host.part == 0


def test_budgets_shrink_while_memory_is_short_and_come_back_slowly(host: Host) -> None:
    pressure = MemoryPressure()
    assert not pressure.look()
    host.use(90)
    parts = []
    for _ in range(10):
        pressure.look()
        parts.append(pressure.part)
    assert parts == sorted(parts, reverse=True)
    assert parts[0] == 0.5
    assert 0 < parts[-1] < 0.1
    host.use(80)  # neither short nor enough: as it is
    assert not pressure.look()
    host.use(40)
    ticks = 0
    while pressure.part < 1:
        pressure.look()
        ticks += 1
    assert ticks > 10
    assert not pressure.look()


class Keeper:
    """Holds a buffer that it does not read."""

    def __init__(self, pool: BufferPool, size: int) -> None:
        self._pool = pool
        self._buffer = pool.take(size)
        pool.register(self)

    def give_up_idle(self) -> bool:
        if self._buffer is not None:
            self._pool.give_back(self._buffer)
            self._buffer = None
            return True
        return False


def test_a_pool_that_shrinks_takes_back_what_nobody_reads() -> None:
    pool = BufferPool(8 * MIB)
    keeper = Keeper(pool, 6 * MIB)
    pool.shrink(0.5)
    assert pool.lent_bytes == 0
    assert pool.take(6 * MIB) is None
    assert pool.take(3 * MIB) is not None
    pool.shrink(1)
    assert pool.take(5 * MIB) is not None
    assert not keeper.give_up_idle()
