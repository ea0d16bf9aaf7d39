"""The budget of a warm-up, with eight readers at once."""

from __future__ import annotations

import threading
import time
from collections.abc import Sequence
from pathlib import Path

import pytest

from sidecar.contract.options import Options
from sidecar.contract.spec import NodeCache, PersistenceSpec, StoreSource, Volume
from sidecar.mounter.reading.read_log import Run
from sidecar.mounter.system import resource_limits
from sidecar.mounter.warming import warm_up
from sidecar.mounter.warming.warm_up import WarmUp
from sidecar.mounter.warming.warmer import most_bytes
from sidecar.units import MIB


def test_readers_together_never_read_more(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    names = [f"f{number}" for number in range(16)]
    for name in names:
        (tmp_path / name).write_bytes(bytes(MIB))
    preadv = warm_up.os.preadv

    def slow(file: int, buffers: Sequence[memoryview], offset: int) -> int:
        time.sleep(0.05)  # the others look at the budget meanwhile
        return preadv(file, buffers, offset)

    monkeypatch.setattr(warm_up.os, "preadv", slow)
    warming = WarmUp(str(tmp_path), 3 * MIB + 5, threading.Event())
    warming.read(iter([Run(name, 0, MIB) for name in names]))
    assert warming.read_bytes == 3 * MIB + 5


@pytest.mark.parametrize(
    ("options", "room"),
    [
        (Options(cache="memory", cache_bytes=100 * MIB), 100 * MIB),
        (Options(cache="disk", cache_bytes=100 * MIB), 100 * MIB),
        (Options(cache="disk"), Options().warm_bytes),
        (Options(cache="node"), 200 * MIB),
        (Options(), 70 * MIB),
        (Options(warm_bytes=5 * MIB), 5 * MIB),
    ],
)
def test_no_more_than_there_is_room_for(
    options: Options, room: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(resource_limits, "page_cache_bytes", lambda *_: 70 * MIB)
    source = StoreSource(store="s3", url="s3://b", bucket="b")
    volume = Volume(name="v", kind="data", path="/v", source=source, options=options)
    spec = PersistenceSpec(volumes=(volume,), node_cache=NodeCache(size_bytes=200 * MIB))
    assert most_bytes(spec, volume) == room
