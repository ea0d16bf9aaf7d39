"""Two sidecars on one cache folder, as two pods of one node have it."""

from __future__ import annotations

import contextlib
import random
import subprocess
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from sidecar.contract.options import Options
from sidecar.contract.spec import NodeCache
from sidecar.units import MIB
from tests.reading.buckets import fill, make_bucket, sidecar_behind
from tests.support.faults import FaultProxy
from tests.support.servers import S3Server
from tests.support.sidecar import Sidecar

pytestmark = pytest.mark.usefixtures("own_disk")

KEY = "object"


def shared_sidecar(
    proxy: FaultProxy, cloud: object, tmp_path: Path, number: int, cache_bytes: int
) -> Sidecar:
    """Number ``number``, with the folder that both have."""
    sidecar = sidecar_behind(
        proxy,
        cloud,  # type: ignore[arg-type]
        tmp_path / f"run{number}",
        tmp_path / f"m{number}",
        options=Options(cache="node"),
    )
    roots = replace(sidecar.spec.roots, node_cache=str(tmp_path / "cache"))
    node_cache = NodeCache(size_bytes=cache_bytes)
    sidecar.spec = replace(sidecar.spec, roots=roots, node_cache=node_cache)
    sidecar.spec_text = sidecar.spec.to_json()
    return sidecar


@contextlib.contextmanager
def two(
    server: S3Server, tmp_path: Path, size: int
) -> Iterator[tuple[FaultProxy, list[Sidecar], str]]:
    """Two running sidecars, the proxy that counts their traffic, and the object's SHA-256."""
    cloud = make_bucket(server)
    digest = fill(cloud, {KEY: size})[KEY]
    with FaultProxy(server.port) as proxy, contextlib.ExitStack() as stack:
        sidecars = [
            stack.enter_context(shared_sidecar(proxy, cloud, tmp_path, number, 2 * size))
            for number in range(2)
        ]
        proxy.body_bytes.clear()
        yield proxy, sidecars, digest


def mount_of(sidecar: Sidecar) -> Path:
    return Path(sidecar.spec.volumes[0].path)


def start_sum(sidecar: Sidecar) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        ["sha256sum", str(mount_of(sidecar) / KEY)],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    )


def both_read(sidecars: list[Sidecar], timeout_s: float) -> list[str]:
    readers = [start_sum(sidecar) for sidecar in sidecars]
    try:
        return [reader.communicate(timeout=timeout_s)[0].decode()[:64] for reader in readers]
    finally:
        for reader in readers:
            with reader:
                reader.kill()


def check_one_download(server: S3Server, tmp_path: Path, size: int, timeout_s: float) -> None:
    with two(server, tmp_path, size) as (proxy, sidecars, digest):
        assert both_read(sidecars, timeout_s) == [digest] * 2
        downloads = proxy.body_bytes["GET"] / size
        print(f"downloads: {downloads:.2f}")
        assert 1 <= downloads <= 1.2
        for sidecar in sidecars:
            sidecar.wait_for(
                lambda sidecar=sidecar: (
                    sidecar.metric("mount_sidecar_disk_cache_used_bytes") >= size  # type: ignore[misc]
                )
            )
        # And what is there serves both again.
        assert both_read(sidecars, timeout_s) == [digest] * 2
        assert all(
            sidecar.metric("mount_sidecar_disk_cache_damaged_blocks_total") == 0
            for sidecar in sidecars
        )


def read_beside_kills(sidecar: Sidecar, digest: str, wrong: list[str]) -> None:
    """Compare a read with the digest; it may fail if its sidecar dies."""
    with start_sum(sidecar) as reader:
        said, _ = reader.communicate()
    if reader.returncode == 0 and said.decode()[:64] != digest:
        wrong.append(said.decode())


def check_kills(server: S3Server, tmp_path: Path, size: int, kills: int, seed: int) -> None:
    dice = random.Random(seed)
    with two(server, tmp_path, size) as (proxy, sidecars, digest):
        wrong: list[str] = []
        for _ in range(kills):
            readers = [
                threading.Thread(target=read_beside_kills, args=(sidecar, digest, wrong))
                for sidecar in sidecars
            ]
            for reader in readers:
                reader.start()
            time.sleep(dice.uniform(0, 0.4))
            victim = dice.choice(sidecars)
            victim.kill()
            (victim.shared / ".sidecar" / "ready").unlink()  # the dead one's
            for reader in readers:
                reader.join()
            victim.start()
        assert wrong == []
        assert both_read(sidecars, 600) == [digest] * 2
        print(f"downloads with {kills} kills: {proxy.body_bytes['GET'] / size:.2f}")
        damaged = sum(
            sidecar.metric("mount_sidecar_disk_cache_damaged_blocks_total") for sidecar in sidecars
        )
        assert damaged == 0


def test_both_read_one_object_at_once(s3_server: S3Server, tmp_path: Path) -> None:
    check_one_download(s3_server, tmp_path, 64 * MIB + 5, 100)


def test_killed_and_started_again(s3_server: S3Server, tmp_path: Path) -> None:
    check_kills(s3_server, tmp_path, 64 * MIB + 5, 3, seed=1)


@pytest.mark.soak
def test_both_read_two_gibibytes_at_once(s3_server: S3Server, tmp_path: Path) -> None:
    check_one_download(s3_server, tmp_path, 2048 * MIB, 600)


@pytest.mark.soak
def test_killed_and_started_again_for_long(s3_server: S3Server, tmp_path: Path) -> None:
    check_kills(s3_server, tmp_path, 2048 * MIB, 12, seed=2)
