"""The folder that a node's pods share: its budget without pods, and which pods find what."""

from __future__ import annotations

import os
import uuid
from dataclasses import replace
from pathlib import Path

import pytest

from sidecar.cli.main import main
from sidecar.contract.options import Options
from sidecar.contract.pod import NAMESPACE_VARIABLE, SERVICE_ACCOUNT_NAME_VARIABLE
from sidecar.contract.spec import NodeCache, PersistenceSpec, StoreSource, Volume
from sidecar.mounter.cache import node_folder
from sidecar.mounter.cache.cache_entry import CACHE_BLOCK_BYTES as B
from sidecar.mounter.system import resource_limits
from sidecar.mounter.worker import cache_place
from sidecar.units import MIB
from tests.cache.folders import acquire, an_object, disk_bytes, has_whole, keep, open_cache
from tests.cache.test_disk_cache import age
from tests.mount.buckets import bucket_sidecar
from tests.support.clouds import S3Cloud
from tests.support.servers import S3Server

pytestmark = pytest.mark.usefixtures("own_disk")

SOURCE = StoreSource(store="s3", url="s3://bucket", bucket="bucket", secret="a", secret_key="k")


def filled(folder: Path, count: int = 6) -> list[Path]:
    """Objects of 16 blocks, the oldest first."""
    cache = open_cache(folder, 256 * MIB)
    paths = [keep(cache, *an_object(16 * B, f"key{number}")) for number in range(count)]
    for number, path in enumerate(paths):
        age(path, 100 - number)
    cache.close()
    return paths


def test_a_smaller_budget_evicts_what_was_used_least_recently(tmp_path: Path) -> None:
    paths = filled(tmp_path)
    before = disk_bytes(tmp_path)
    budget_bytes = before // 2
    assert node_folder.trim(tmp_path, budget_bytes).evicted_bytes == before - disk_bytes(tmp_path)
    assert disk_bytes(tmp_path) <= budget_bytes
    kept = [path.exists() for path in paths]
    assert kept == sorted(kept)  # the oldest are gone
    assert kept[-1]


def test_within_the_budget_nothing_is_evicted(tmp_path: Path) -> None:
    paths = filled(tmp_path)
    assert node_folder.trim(tmp_path, 256 * MIB).evicted_bytes == 0
    assert all(path.exists() for path in paths)


def test_what_a_pod_uses_stays(tmp_path: Path) -> None:
    filled(tmp_path)
    cache = open_cache(tmp_path, 256 * MIB)
    info, _ = an_object(16 * B, "key0")
    entry = acquire(cache, info)
    node_folder.trim(tmp_path, 0)
    assert entry.path.exists()
    cache.release(entry)
    assert has_whole(cache, info) or entry.path.exists()


def test_there_may_be_no_folder(tmp_path: Path) -> None:
    assert node_folder.trim(tmp_path / "none", 0) == (0, 0)
    assert not (tmp_path / "none").exists()


def test_a_disk_that_is_nearly_full_has_no_room_for_a_cache(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    filled(tmp_path)
    monkeypatch.setattr(resource_limits, "disk_bytes", lambda _: (1000 * MIB, 150 * MIB))
    assert node_folder.budget_bytes(tmp_path, 256 * MIB) == 0
    node_folder.trim(tmp_path, 256 * MIB)
    assert disk_bytes(tmp_path) == 0


def test_the_janitor_trims_it(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder, pods = tmp_path / "cache", tmp_path / "pods"
    pods.mkdir()
    filled(folder)
    arguments = ["janitor", "--once", "--root", str(pods), "--node-cache", str(folder)]
    assert main([*arguments, "--node-cache-size", "0"]) == 0
    assert disk_bytes(folder) == 0
    assert "trimmed the node's cache" in capsys.readouterr().err
    assert main([*arguments, "--node-cache-size", "much"]) == 2
    assert "--node-cache-size must be a quantity" in capsys.readouterr().err


def test_a_disk_without_room_is_said_by_pods_and_the_janitor(
    tmp_path: Path, tiny_disk: Path, s3_server: S3Server, capsys: pytest.CaptureFixture[str]
) -> None:
    s3_server.create_bucket(bucket := f"room-{uuid.uuid4().hex[:12]}")
    said = "the disk has no room for the cache, which keeps nothing"
    for folder, has_room in ((tiny_disk / "cache", False), (tmp_path / "cache", True)):
        place = tmp_path / f"run-{has_room}"
        options = Options(cache="node")
        sidecar = bucket_sidecar(place, S3Cloud(s3_server, bucket), options=options)
        roots = replace(sidecar.spec.roots, node_cache=str(folder))
        sidecar.spec = replace(sidecar.spec, roots=roots)
        sidecar.spec_text = sidecar.spec.to_json()
        with sidecar:
            limit_bytes = sidecar.metric("mount_sidecar_disk_cache_limit_bytes")
            assert "mount_sidecar_disk_cache_limit_bytes" in sidecar.get("/metrics")[1]
            assert (limit_bytes > 0) == has_room
            assert sidecar.log().count(said) == (not has_room)  # not once for each reader
    arguments = ["janitor", "--once", "--root", str(tmp_path), "--node-cache"]
    assert main([*arguments, str(tiny_disk / "cache")]) == 0
    assert "the disk has no room for the node's cache" in capsys.readouterr().err
    assert main([*arguments, str(tmp_path / "cache")]) == 0
    assert "has no room" not in capsys.readouterr().err


@pytest.mark.parametrize(
    ("scope", "changes", "shared"),
    [
        ("namespace", {}, True),
        ("namespace", {"secret": "b"}, True),
        ("namespace", {NAMESPACE_VARIABLE: "other"}, False),
        ("login", {}, True),
        ("login", {"secret": "b"}, False),
        ("login", {SERVICE_ACCOUNT_NAME_VARIABLE: "other"}, True),  # a secret is its login
        ("login", {NAMESPACE_VARIABLE: "other"}, False),
        ("login", {"secret": None}, False),
    ],
)
def test_who_shares_what(
    monkeypatch: pytest.MonkeyPatch, scope: str, changes: dict[str, str | None], shared: bool
) -> None:
    def owner(changes: dict[str, str | None]) -> str:
        for name in (NAMESPACE_VARIABLE, SERVICE_ACCOUNT_NAME_VARIABLE):
            monkeypatch.setenv(name, changes.get(name) or "mine")
        secret = changes.get("secret", "a")
        source = replace(SOURCE, secret=secret, secret_key="k" if secret else None)
        volume = Volume(
            name="v", kind="data", path="/v", source=source, options=Options(cache="node")
        )
        node_cache = NodeCache(host_path="/cache", scope=scope)  # type: ignore[arg-type]
        return cache_place.owner(PersistenceSpec(node_cache=node_cache), volume)

    assert (owner(changes) == owner({})) is shared


def test_each_cache_has_its_place() -> None:
    spec = PersistenceSpec()

    def folder(**options: object) -> str:
        volume = Volume(
            name="v",
            kind="data",
            path="/v",
            source=SOURCE,
            options=Options(**options),  # type: ignore[arg-type]
        )
        return os.fspath(cache_place.folder(spec, volume, "data-v"))

    assert folder(cache="disk") == "/var/lib/sidecar/data-v/cache"
    assert folder(cache="memory") == "/var/cache/sidecar/memory/data-v"
    assert folder(cache="node") == "/var/cache/sidecar/node"
