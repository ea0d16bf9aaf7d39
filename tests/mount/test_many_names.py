"""A directory of very many names: what a worker takes for it, as the machine sees it."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from sidecar.units import MIB
from tests.conformance import syscalls
from tests.support.many_keys import DIRECTORY, ManyKeysServer, name_of
from tests.support.sidecar import Sidecar, bucket_volume


@contextmanager
def many_keys(tmp_path: Path, keys: int) -> Iterator[Sidecar]:
    """A sidecar that mounts a bucket of so many keys at ``tmp_path / "m"``."""
    volume = bucket_volume("data", tmp_path / "m", "s3", "s3://bucket", read_only=True)
    with ManyKeysServer(tmp_path / "server", keys) as server:
        secrets = {"data": server.credentials_json()}
        with Sidecar(tmp_path / "run", [volume], secrets=secrets) as sidecar:
            yield sidecar


def resident_bytes(sidecar: Sidecar) -> int:
    """What the worker has in memory now."""
    pid = sidecar.volume_status("data")["worker_pid"]
    match = re.search(r"VmRSS:\s+(\d+) kB", Path(f"/proc/{pid}/status").read_text())
    assert match is not None
    return int(match[1]) * 1024


def read_through(directory: Path, keys: int, handles: int) -> None:
    """Read the directory with so many handles, which stay open."""
    if not handles:
        return
    with syscalls.reading(directory) as stream:
        names = stream.names()
        assert len(names) == keys
        assert set(names) == {name_of(number) for number in range(keys)}
        del names
        read_through(directory, keys, handles - 1)


@pytest.mark.parametrize(
    ("keys", "handles", "most_bytes"),
    [
        (100_000, 1, 150 * MIB),
        pytest.param(1_000_000, 1, 200 * MIB, marks=pytest.mark.soak),
        pytest.param(1_000_000, 12, 250 * MIB, marks=pytest.mark.soak),
    ],
)
@pytest.mark.timeout(400)  # on a busy machine; in the soak there is none
def test_many_names_take_little_memory(
    tmp_path: Path, keys: int, handles: int, most_bytes: int
) -> None:
    with many_keys(tmp_path, keys) as sidecar:
        read_through(tmp_path / "m" / DIRECTORY, keys, handles)
        assert resident_bytes(sidecar) < most_bytes
