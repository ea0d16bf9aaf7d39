"""Real servers, one of each kind for the whole run."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator

import pytest

from tests.support.ceph import DIFFERENCES, CephServer
from tests.support.servers import (
    GivenS3,
    MinioServer,
    RcloneServer,
    S3Server,
)
from tests.support.strict_azure import StrictAzureServer
from tests.support.strict_gcs import StrictGcsServer
from tests.support.strict_server import StrictS3Server

# A shell that runs the tests in the background has them, and every program of theirs, ignore it.
signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    if os.environ.get("MOUNT_SIDECAR_TEST_S3") == "ceph":
        for item in items:
            if item.nodeid in DIFFERENCES:
                item.add_marker(pytest.mark.xfail(reason=DIFFERENCES[item.nodeid], strict=False))


@pytest.fixture(autouse=True)
def _metrics_folder() -> Iterator[None]:
    """Where a file system in this process counts is nothing for the programs of later tests."""
    yield
    os.environ.pop("PROMETHEUS_MULTIPROC_DIR", None)


@pytest.fixture(scope="session")
def s3_server(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[S3Server]:
    """MinIO's gateway, or what ``MOUNT_SIDECAR_TEST_S3`` names.

    ``strict`` is ours, ``minio`` the gateway, ``ceph`` Ceph's, which ``scripts/install.sh soak``
    brings, and a URL any store that speaks S3, with the login that AWS_ACCESS_KEY_ID,
    AWS_SECRET_ACCESS_KEY and AWS_REGION name.
    """
    directory = tmp_path_factory.mktemp("s3")
    server: S3Server
    match os.environ.get("MOUNT_SIDECAR_TEST_S3", "minio"):
        case "minio":
            server = MinioServer(directory)
        case "strict":
            server = StrictS3Server(directory)
        case "ceph":
            yield request.getfixturevalue("ceph_server")
            return
        case endpoint:
            server = GivenS3(directory, endpoint)
    with server:
        yield server


@pytest.fixture(scope="session")
def strict_s3_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[StrictS3Server]:
    """An S3 that refuses what Amazon's refuses; :meth:`StrictS3Server.reset` after changing it."""
    with StrictS3Server(tmp_path_factory.mktemp("strict-s3")) as server:
        yield server


@pytest.fixture(scope="session")
def ceph_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[CephServer]:
    """Ceph's gateway; for tests that are marked ``soak``."""
    with CephServer(tmp_path_factory.mktemp("ceph")) as server:
        yield server


@pytest.fixture(scope="session")
def rclone_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RcloneServer]:
    """The fast S3 server, which answers ranges with 200."""
    with RcloneServer(tmp_path_factory.mktemp("rclone")) as server:
        yield server


@pytest.fixture(scope="session")
def gcs_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[StrictGcsServer]:
    """fake-gcs-server with its token endpoint, behind a proxy that refuses what Google does."""
    with StrictGcsServer(tmp_path_factory.mktemp("gcs")) as server:
        yield server


@pytest.fixture(scope="session")
def azure_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[StrictAzureServer]:
    """Azurite, behind a proxy that refuses what Azure does."""
    with StrictAzureServer(tmp_path_factory.mktemp("azure")) as server:
        yield server
