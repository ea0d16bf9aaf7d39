"""A near bucket on each cloud."""

from __future__ import annotations

import os
from pathlib import Path

from sidecar.metrics import VolumeMetrics
from sidecar.mounter.cache.near_block import NEAR_BLOCK_BYTES
from sidecar.mounter.cache.near_bucket import NearBucket
from sidecar.mounter.store.interface import ObjectInfo, Store
from tests.support.waiting import wait_until

SIZE = 2 * NEAR_BLOCK_BYTES + 777


def test_blocks_are_claimed_put_and_read(store: Store, tmp_path: Path) -> None:
    content = os.urandom(SIZE)
    info = ObjectInfo("key", SIZE, 0.0, "version")
    fetched: list[int] = []

    def fetch(_: ObjectInfo, offset: int, buffer: memoryview) -> None:
        fetched.append(len(buffer))
        buffer[:] = content[offset : offset + len(buffer)]

    for node in range(2):
        metrics = VolumeMetrics(tmp_path, "data/d", f"node{node}")
        near = NearBucket(store, "far", metrics)
        buffer = memoryview(bytearray(SIZE))
        near.fill(info, 0, buffer, fetch)
        assert buffer == content
        if not node:
            wait_until(lambda: metrics.near_put_bytes._value.get() == SIZE, "it is put")  # noqa: B023
    assert fetched == [SIZE]
    assert near.fill(info, SIZE - 9, buffer[:9], fetch) is None
    assert buffer[:9] == content[-9:]
    assert metrics.near_hit_bytes._value.get() == SIZE + 9
