"""How a store's name is looked up in a pod, whose resolver has domains to search."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

S3 = "bucket.s3.eu-west-1.amazonaws.com"
GOOGLE = "storage.googleapis.com"
AZURE = "account.blob.core.windows.net"
SERVICE = "minio.team.svc"


def resolve(store: str, host: str, found: str, lost: int = 0) -> list[str]:
    """The names that were asked for; the first ``lost`` queries are."""
    command = [sys.executable, "-m", "tests.support.name_server", str(lost), store, host, found]
    names: list[str] = json.loads(subprocess.run(command, check=True, capture_output=True).stdout)
    return names


@pytest.mark.parametrize(
    ("store", "host", "found", "asked"),
    [
        ("s3", S3, S3, {S3}),
        ("gcs", GOOGLE, GOOGLE, {GOOGLE}),
        ("azure", AZURE, AZURE, {AZURE}),
        ("s3", f"{SERVICE}.cluster.local", f"{SERVICE}.cluster.local", None),
        # Nothing that leaves the cluster: the way out may be closed, and silent.
        ("s3", SERVICE, f"{SERVICE}.cluster.local", None),
        ("s3", "minio.team", "minio.team.svc.cluster.local", None),
        ("s3", "minio", "minio.team.svc.cluster.local", None),
    ],
)
def test_only_names_that_may_be_there_are_asked_for(
    store: str, host: str, found: str, asked: set[str] | None
) -> None:
    names = resolve(store, host, found)
    assert found in names
    if asked is None:
        assert all(name.endswith(".cluster.local") for name in names)
    else:
        assert set(names) == asked


def test_queries_that_are_lost_are_sent_again() -> None:
    """Thrice the two of them, one for each family."""
    assert resolve("s3", S3, S3, lost=6) == [S3] * 8
