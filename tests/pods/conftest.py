"""The images, built by the scripts, and the buckets of a run."""

from __future__ import annotations

import pytest

from tests.pods.runs import Clouds
from tests.support.pods import build_images
from tests.support.servers import AzureServer, GcsServer, S3Server

BUILDING_TIMEOUT_S = 900
"""On a loaded machine the build takes longer than a test's own limit."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if "images" in getattr(item, "fixturenames", ()) and not item.get_closest_marker("timeout"):
            item.add_marker(pytest.mark.timeout(BUILDING_TIMEOUT_S))


@pytest.fixture(scope="session")
def images() -> str:
    """Every image is built from this tree; one line for each, with its size."""
    return build_images()


@pytest.fixture
def clouds(s3_server: S3Server, gcs_server: GcsServer, azure_server: AzureServer) -> Clouds:
    """Buckets of one run, filled."""
    return Clouds(s3_server, gcs_server, azure_server)
