"""What a bucket's processes get of the machine."""

from __future__ import annotations

import pytest

from sidecar.contract.spec import PersistenceSpec, StoreSource, Volume
from sidecar.mounter.system import resource_limits
from sidecar.mounter.worker.budgets import content_shares, reader_processes, stream_bytes
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


@pytest.mark.parametrize("readers", [0, 1, 2, 3, 16])
def test_memory_for_content_is_handed_out_once(readers: int) -> None:
    of_worker, of_reader = content_shares(256 * MIB, readers)
    assert 255 * MIB < of_worker + readers * of_reader <= 256 * MIB


@pytest.mark.parametrize(
    ("limit_mib", "buckets", "stream_mib"),
    [(160, 1, 0), (256, 1, 0), (512, 1, 28), (1024, 1, 241), (65536, 1, 256), (1792, 2, 201)],
)
def test_what_streams_gets_what_reading_and_names_leave(
    monkeypatch: pytest.MonkeyPatch, limit_mib: int, buckets: int, stream_mib: int
) -> None:
    monkeypatch.setattr(resource_limits, "available_bytes", lambda *_: limit_mib * MIB)
    source = StoreSource(store="s3", url="s3://b", bucket="b")
    volumes = tuple(
        Volume(name=f"v{number}", kind="data", path=f"/v{number}", source=source)
        for number in range(buckets)
    )
    spec = PersistenceSpec(volumes=volumes)
    assert stream_bytes(spec, volumes[0]) // MIB == stream_mib
