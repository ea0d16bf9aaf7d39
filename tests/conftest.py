"""The object stores, one server of each kind for the whole run."""

from __future__ import annotations

import gc
import os
import signal
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import pytest_timeout

from tests.support import lock_order, lock_table
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

# A shell starts background jobs with SIGINT ignored, and the programs of tests inherit that.
signal.signal(signal.SIGINT, signal.default_int_handler)
# Tests of modes take the usual one for granted.
os.umask(0o022)


def pytest_configure(config: pytest.Config) -> None:
    """A test that takes too long fails, and hangs no other one: see ``fuse/stuck.py``."""
    dump_stacks = pytest_timeout.dump_stacks

    def dump_without_collecting(terminal: object) -> None:
        gc.disable()
        try:
            dump_stacks(terminal)
        finally:
            gc.enable()

    pytest_timeout.dump_stacks = dump_without_collecting
    config.add_cleanup(_check_locks())


def _check_locks() -> Callable[[], None]:
    """Check the order of locks in this process and in the sidecars; what undoes it at the end."""
    folder = tempfile.TemporaryDirectory(prefix="lock-order-")
    lock_table.prepare(Path(folder.name), lock_table.product_locks(), lock_table.table())
    lock_order.install()
    return folder.cleanup


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    if os.environ.get("MOUNT_SIDECAR_TEST_S3") == "ceph":
        for item in items:
            if item.nodeid in DIFFERENCES:
                item.add_marker(pytest.mark.xfail(reason=DIFFERENCES[item.nodeid], strict=False))


@pytest.fixture(autouse=True)
def _locks_in_order(_locks_in_order_to_the_end: None) -> Iterator[None]:
    """A test fails if it, or a sidecar that it started, takes locks in a wrong order."""
    yield
    lock_order.forget_held()
    lock_table.raise_found()


@pytest.fixture(autouse=True, scope="session")
def _locks_in_order_to_the_end() -> Iterator[None]:
    yield
    lock_table.raise_found()


@pytest.fixture(autouse=True)
def _metrics_folder() -> Iterator[None]:
    """Programs of later tests must not write into the metrics folder of an earlier one."""
    yield
    os.environ.pop("PROMETHEUS_MULTIPROC_DIR", None)


@pytest.fixture(scope="session")
def s3_server(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[S3Server]:
    """The S3 of ``MOUNT_SIDECAR_TEST_S3``.

    ``minio`` (the default): MinIO's gateway; ``strict``: ours; ``ceph``: Ceph's gateway, which
    ``scripts/install.sh soak`` installs; a URL: any S3, with credentials from
    AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY and AWS_REGION.
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
    """An S3 as strict as Amazon's. A test that configures it calls :meth:`StrictS3Server.reset`."""
    with StrictS3Server(tmp_path_factory.mktemp("strict-s3")) as server:
        yield server


@pytest.fixture(scope="session")
def ceph_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[CephServer]:
    """Ceph's gateway, for tests marked ``soak``."""
    with CephServer(tmp_path_factory.mktemp("ceph")) as server:
        yield server


@pytest.fixture(scope="session")
def rclone_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RcloneServer]:
    """rclone's S3 server: fast, but it answers ranged GETs with status 200."""
    with RcloneServer(tmp_path_factory.mktemp("rclone")) as server:
        yield server


@pytest.fixture(scope="session")
def gcs_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[StrictGcsServer]:
    """fake-gcs-server with a token endpoint, behind a proxy that is as strict as Google."""
    with StrictGcsServer(tmp_path_factory.mktemp("gcs")) as server:
        yield server


@pytest.fixture(scope="session")
def azure_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[StrictAzureServer]:
    """Azurite, behind a proxy that is as strict as Azure."""
    with StrictAzureServer(tmp_path_factory.mktemp("azure")) as server:
        yield server
