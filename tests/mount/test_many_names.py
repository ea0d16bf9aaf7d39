"""A directory of very many names: what a worker takes for it, as the machine sees it."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import pytest

from sidecar.contract.memory_rule import least_limit_bytes
from sidecar.units import MIB
from tests.conformance import syscalls
from tests.support.cgroups import new_cgroup
from tests.support.many_keys import DIRECTORY, ManyKeysServer, name_of
from tests.support.sidecar import Sidecar, bucket_volume

# A busy machine takes as long as it takes.
pytestmark = pytest.mark.timeout(0)


@contextmanager
def many_keys(
    tmp_path: Path, keys: int, names: Sequence[str] = ("data",), prefix: Sequence[str] = ()
) -> Iterator[Sidecar]:
    """A sidecar that mounts buckets of so many keys, each at ``tmp_path / "m" / name``."""
    volumes = [
        bucket_volume(n, tmp_path / "m" / n, "s3", "s3://bucket", read_only=True, secret="s")
        for n in names
    ]
    with ManyKeysServer(tmp_path / "server", keys) as server:
        secrets = {"s": server.credentials_json()}
        with Sidecar(tmp_path / "run", volumes, secrets=secrets, prefix=prefix) as sidecar:
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
def test_many_names_take_little_memory(
    tmp_path: Path, keys: int, handles: int, most_bytes: int
) -> None:
    with many_keys(tmp_path, keys) as sidecar:
        read_through(tmp_path / "m" / "data" / DIRECTORY, keys, handles)
        assert resident_bytes(sidecar) < most_bytes


@pytest.mark.parametrize(
    ("buckets", "keys"),
    [
        (1, 200_000),
        (3, 30_000),
        pytest.param(2, 200_000, marks=pytest.mark.soak),
        pytest.param(3, 200_000, marks=pytest.mark.soak),
    ],
)
def test_the_least_limit_is_enough_for_large_directories(
    tmp_path: Path, buckets: int, keys: int
) -> None:
    """All buckets at once, with what stat(2) shows of each name; the kernel ends nothing."""
    names = [f"data-{number}" for number in range(buckets)]

    def look(name: str) -> int:
        with os.scandir(tmp_path / "m" / name / DIRECTORY) as entries:
            return sum(entry.stat().st_size for entry in entries)

    with new_cgroup("memory") as group:
        group.limit(least_limit_bytes(buckets))
        with many_keys(tmp_path, keys, names, group.entering) as sidecar:
            with ThreadPoolExecutor(buckets) as threads:
                assert list(threads.map(look, names)) == [keys] * buckets, sidecar.log()
            assert group.oom_kills() == 0, sidecar.log()
            healed = [sidecar.volume_status(name)["healed"] for name in names]
            assert healed == [{"resend": 0, "remount": 0}] * buckets
