from __future__ import annotations

import uuid
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pytest

from sidecar.mounter.store.interface import Store
from tests.support.clouds import AzureCloud, Cloud, GcsCloud, RcloneCloud, S3Cloud
from tests.support.servers import TlsFiles

KINDS = {
    "s3": ("s3_server", S3Cloud),
    "strict": ("strict_s3_server", S3Cloud),
    "ceph": ("ceph_server", S3Cloud),
    "gcs": ("gcs_server", GcsCloud),
    "azure": ("azure_server", AzureCloud),
    "rclone": ("rclone_server", RcloneCloud),
}


def make_cloud(kind: str, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Cloud:
    fixture, cls = KINDS[kind]
    server = request.getfixturevalue(fixture)
    bucket = f"test-{uuid.uuid4().hex[:12]}"
    server.create_bucket(bucket)
    if kind == "gcs":
        monkeypatch.setenv("STORAGE_EMULATOR_HOST", server.endpoint)
    return cls(server, bucket)


@pytest.fixture(params=["s3", "strict", "gcs", "azure"])
def cloud(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Cloud:
    """An empty bucket of each cloud."""
    return make_cloud(request.param, request, monkeypatch)


@pytest.fixture(params=["s3", "strict", "gcs", "azure", "rclone"])
def readable(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Cloud:
    """An empty bucket of every server, including rclone's, for tests of reads."""
    return make_cloud(request.param, request, monkeypatch)


@pytest.fixture(scope="session")
def tls_files(tmp_path_factory: pytest.TempPathFactory) -> TlsFiles:
    return TlsFiles(tmp_path_factory.mktemp("tls"))


@pytest.fixture
def secrets(tmp_path: Path) -> Path:
    return tmp_path / "secrets"


@pytest.fixture
def store(cloud: Cloud, secrets: Path) -> Iterator[Store]:
    """The product's store at the root of ``cloud``."""
    cloud.write_secret(secrets)
    opened = cloud.open(secrets)
    yield opened
    opened.close()


@pytest.fixture
def writable(cloud: Cloud, secrets: Path) -> Iterator[Store]:
    """As ``store``, of a writable volume."""
    cloud.write_secret(secrets)
    opened = cloud.open(secrets, with_metadata=True)
    yield opened
    opened.close()


@pytest.fixture
def reader(readable: Cloud, secrets: Path) -> Iterator[Store]:
    """The product's store at the root of ``readable``."""
    readable.write_secret(secrets)
    opened = readable.open(secrets)
    yield opened
    opened.close()


def call_each(actions: Sequence[Callable[[], object]]) -> None:
    """A :attr:`Revision.run` without threads."""
    for action in actions:
        action()
