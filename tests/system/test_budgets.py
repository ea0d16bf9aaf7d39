"""What a bucket's processes get of the machine."""

from __future__ import annotations

import pytest

from sidecar.mounter.worker.budgets import reader_processes
from sidecar.units import MIB


@pytest.mark.parametrize(
    ("cores", "memory_mib", "count"),
    [
        (1, 256, 1),
        (2, 32, 2),
        (64, 16, 2),  # the least that there is
        (64, 32, 2),  # a limit of 128 MiB
        (64, 64, 4),
        (4, 256, 4),
        (64, 256, 4),  # the most that a bucket has by itself
        (64, 512, 8),
        (96, 1024, 16),
        (96, 8192, 16),
        (8, 8192, 8),
    ],
)
def test_readers_are_as_many_as_cores_and_memory_allow(
    cores: int, memory_mib: int, count: int
) -> None:
    assert reader_processes(cores, memory_mib * MIB) == count
