"""How near this container is to its memory limit, and what part of its budgets to use then.

When memory runs out the kernel ends a process, or the whole container if ``memory.oom.group`` stays
set (:func:`.hardening.end_alone`). So caches shrink before.

Only memory that the kernel cannot take back counts: the kernel frees page cache and dentries before
it ends anything. That is less than a kubelet's working set (usage without ``inactive_file``), which
includes files that are read twice, such as the disk cache's.

Sources: the kernel's Documentation/admin-guide/cgroup-v2.rst and cgroup-v1/memory.rst.
Standard library only.
"""

from __future__ import annotations

from typing import Final, NamedTuple

from sidecar.mounter.system.resource_limits import memory_groups

_SHORT: Final = 0.85
_ENOUGH: Final = 0.7
_SHRINK: Final = 0.5
_GROW: Final = 1.1
_LEAST: Final = 1 / 16


class _Names(NamedTuple):
    """The files of a version, and fields of memory.stat.

    Attributes:
        reclaimable: fields that the kernel can take back.
        tmpfs: files of a tmpfs: a cache in memory, whose size is part of the limit.
    """

    usage: str
    reclaimable: tuple[str, ...]
    tmpfs: str


_NAMES: Final = {
    1: _Names("memory.usage_in_bytes", ("total_inactive_file", "total_active_file"), "total_shmem"),
    2: _Names("memory.current", ("inactive_file", "active_file", "slab_reclaimable"), "shmem"),
}


def used_part() -> float:
    """The part of the tightest limit that memory that cannot be taken back uses; 0: no limit."""
    part = 0.0
    for group in memory_groups():
        names = _NAMES[group.version]
        try:
            used_bytes = int((group.folder / names.usage).read_text())
            lines = (group.folder / "memory.stat").read_text().splitlines()
        except (FileNotFoundError, NotADirectoryError):
            continue  # the root group of version 2 has none
        limit_bytes = group.limit_bytes
        for line in lines:
            name, _, size = line.partition(" ")
            if name in names.reclaimable:
                used_bytes -= int(size)
            elif name == names.tmpfs:
                used_bytes -= int(size)
                limit_bytes -= int(size)
        part = max(part, used_bytes / max(1, limit_bytes))
    return part


class MemoryPressure:
    """Which part of its budgets this process may use. :meth:`look` is called once a second.

    Attributes:
        part: 1, and less while memory is short.
    """

    def __init__(self) -> None:
        self.part = 1.0

    def look(self) -> bool:
        """Measure; whether :attr:`part` has changed."""
        before = self.part
        used = used_part()
        if used > _SHORT:
            self.part = max(_LEAST, self.part * _SHRINK)
        elif used < _ENOUGH:
            self.part = min(1.0, self.part * _GROW)
        return self.part != before
