"""Many small files, saved repeatedly on a server that compares If-Match as Ceph's gateway does."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.mount.buckets import bucket_sidecar
from tests.store.conftest import make_cloud
from tests.support.strict_server import StrictS3Server

FILES = 20
REQUESTS = "mount_sidecar_store_request_duration_seconds_count"


@pytest.mark.parametrize(
    ("kind", "saves"),
    [
        pytest.param("strict", 200, id="short"),
        pytest.param("ceph", 4_000, id="soak", marks=pytest.mark.soak),
    ],
)
def test_small_overwrites_are_sent_once(
    request: pytest.FixtureRequest,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    kind: str,
    saves: int,
) -> None:
    cloud = make_cloud(kind, request, monkeypatch)
    if isinstance(cloud.server, StrictS3Server):
        cloud.server.settings(cloud.bucket, like_ceph=True)
    with bucket_sidecar(tmp_path, cloud) as sidecar:
        checks = sidecar.metric(REQUESTS, operation="put")
        for number in range(saves):
            (tmp_path / "m" / f"f{number % FILES}").write_bytes(b"%d" % number)
        overwritten = sidecar.metric("mount_sidecar_overwritten_versions_total")
        puts = sidecar.metric(REQUESTS, operation="put") - checks
        log = sidecar.log()
        assert sidecar.stop() == 0
    # One request shows how the server compares.
    assert (overwritten, puts) == (0, saves + 1)
    assert "another writer" not in log
    for number in range(saves - FILES, saves):
        assert cloud.read(f"f{number % FILES}") == b"%d" % number
