"""The budget of a warm-up, with eight readers at once."""

from __future__ import annotations

import threading
import time
from collections.abc import Sequence
from pathlib import Path

import pytest

from sidecar.mounter.reading.read_log import Run
from sidecar.mounter.warming import warm_up
from sidecar.mounter.warming.warm_up import WarmUp

MIB = 1024 * 1024


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
