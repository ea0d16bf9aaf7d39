"""The images, as the scripts make them, and what a run reads."""

from __future__ import annotations

import pytest

from tests.pods.runs import Clouds
from tests.support.pods import build_images
from tests.support.servers import AzureServer, GcsServer, S3Server

BUILDING_TIMEOUT_S = 900
"""A test's own limit would end the first one that needs the images on a loaded machine."""


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
