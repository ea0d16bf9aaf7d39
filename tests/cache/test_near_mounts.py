"""Mounts on several nodes with one near bucket, over real servers."""

from __future__ import annotations

import contextlib
import json
import subprocess
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from sidecar.mounter.cache.near_block import NEAR_BLOCK_BYTES
from sidecar.units import MIB
from tests.reading.buckets import fill, make_bucket
from tests.support.clouds import S3Cloud
from tests.support.faults import FaultProxy
from tests.support.servers import S3Server
from tests.support.sidecar import Sidecar, bucket_volume

KEY = "object"
SIZE = 48 * MIB + 5
BLOCKS = -(-SIZE // NEAR_BLOCK_BYTES)


class Fleet:
    """Mounts of one bucket, each as on a node of its own, and what goes over the wires.

    Attributes:
        far, near: in front of the bucket, and of the near one.
    """

    def __init__(self, server: S3Server, directory: Path, far: FaultProxy, near: FaultProxy):
        self.far, self.near = far, near
        self._server = server
        self._directory = directory
        self._source = make_bucket(server)
        self.bucket = make_bucket(server)
        self.digest = fill(self._source, {KEY: SIZE})[KEY]
        self._count = 0

    def mount(self, **secret: str) -> Sidecar:
        """A mount that is not started. ``secret``: fields of the near bucket's."""
        self._count += 1
        login = self._server.credentials()
        secrets = {
            "cloud": json.dumps({**login, "AWS_ENDPOINT_URL": self.far.endpoint}),
            "near": json.dumps({**login, "AWS_ENDPOINT_URL": self.near.endpoint, **secret}),
        }
        place = self._directory / f"node{self._count}"
        volume = bucket_volume(
            "v", place / "mount", "s3", self._source.url(), secret="cloud", read_only=True
        )
        near = replace(self.bucket.source(), secret="near")
        return Sidecar(place / "run", [replace(volume, near=near)], secrets=secrets)

    def read(self, sidecar: Sidecar) -> None:
        """Read it all, and compare."""
        path = Path(sidecar.spec.volumes[0].path) / KEY
        said = subprocess.run(
            ["sha256sum", str(path)], capture_output=True, text=True, check=True, timeout=300
        )
        assert said.stdout[:64] == self.digest

    def wait_until_put(self, sidecar: Sidecar) -> None:
        sidecar.wait_for(lambda: sidecar.metric("mount_sidecar_near_put_bytes_total") >= SIZE)


def fleet_on(server: S3Server, tmp_path: Path) -> Iterator[Fleet]:
    with FaultProxy(server.port) as far, FaultProxy(server.port) as near:
        yield Fleet(server, tmp_path, far, near)


@pytest.fixture
def fleet(s3_server: S3Server, tmp_path: Path) -> Iterator[Fleet]:
    yield from fleet_on(s3_server, tmp_path)


@pytest.fixture
def strict_fleet(strict_s3_server: S3Server, tmp_path: Path) -> Iterator[Fleet]:
    """On a server that enforces conditions, as S3 does and the other one does not."""
    yield from fleet_on(strict_s3_server, tmp_path)


def test_the_second_node_fetches_nothing(fleet: Fleet) -> None:
    with fleet.mount() as first:
        fleet.read(first)
        fleet.wait_until_put(first)
        assert len(fleet.bucket.keys()) == BLOCKS
        # A machine that is short of memory may drop pages, and ask for them again.
        assert SIZE <= first.metric("mount_sidecar_fetched_bytes_total") < 1.2 * SIZE
    fleet.far.body_bytes.clear()
    with fleet.mount() as second:
        fleet.read(second)
        assert second.metric("mount_sidecar_fetched_bytes_total") == 0
        assert second.metric("mount_sidecar_near_hit_bytes_total") >= SIZE
    assert fleet.far.body_bytes["GET"] < MIB  # listings


def test_nodes_that_read_at_once_fetch_it_about_once(strict_fleet: Fleet) -> None:
    fleet = strict_fleet
    with contextlib.ExitStack() as stack:
        many = [stack.enter_context(fleet.mount()) for _ in range(4)]
        readers = [
            subprocess.Popen(
                ["cat", f"{one.spec.volumes[0].path}/{KEY}"], stdout=subprocess.DEVNULL
            )
            for one in many
        ]
        assert [reader.wait(300) for reader in readers] == [0] * 4
        fetched = sum(one.metric("mount_sidecar_fetched_bytes_total") for one in many)
        assert fetched < 1.5 * SIZE
        for one in many:
            fleet.read(one)


def test_killed_filled_and_poisoned_while_nodes_read(fleet: Fleet) -> None:
    """Each costs fetches from the volume's own bucket, and no error.

    How many says little: on a busy machine the near bucket is left alone for a while, and some of
    the faults are delays.
    """
    with fleet.mount() as first:
        fleet.read(first)
        fleet.wait_until_put(first)
    keys = fleet.bucket.keys()
    for number, key in enumerate(keys):
        data = bytearray(fleet.bucket.read(key))
        data[number * 1000 % len(data)] ^= 1
        fleet.bucket.write(key, [bytes(data), b"poison", bytes(len(data))][number % 3])
    with fleet.mount() as poisoned:
        fleet.read(poisoned)
        assert poisoned.metric("mount_sidecar_near_damaged_blocks_total") > 0
        fleet.wait_until_put(poisoned)
    fleet.near.refuse = lambda method, _: "QuotaExceeded" if method == "PUT" else ""
    for key in keys[::2]:
        fleet.bucket.delete(key)
    with fleet.mount() as full:
        fleet.read(full)
        assert full.metric("mount_sidecar_near_hit_bytes_total") > 0
        assert full.metric("mount_sidecar_near_faults_total") > 0
    fleet.near.refuse = lambda *_: ""
    fleet.near.rate = 1.0
    with fleet.mount() as broken:
        fleet.read(broken)
        assert broken.metric("mount_sidecar_fetched_bytes_total") > SIZE / 2


@pytest.mark.parametrize(
    "secret",
    [
        {"AWS_ENDPOINT_URL": "http://127.0.0.1:1"},
        {"AWS_SECRET_ACCESS_KEY": "wrong"},
        {"AWS_ENDPOINT_URL": "no url"},
    ],
)
def test_one_that_never_worked_is_a_line_in_the_log(fleet: Fleet, secret: dict[str, str]) -> None:
    with fleet.mount(**secret) as sidecar:
        fleet.read(sidecar)
        assert sidecar.metric("mount_sidecar_fetched_bytes_total") >= SIZE
        assert "near bucket" in sidecar.log()


def test_without_its_bucket(fleet: Fleet, s3_server: S3Server) -> None:
    fleet.bucket = S3Cloud(s3_server, "never-made")
    with fleet.mount() as sidecar:
        fleet.read(sidecar)
        assert "BUCKET_NOT_FOUND" in sidecar.log()
