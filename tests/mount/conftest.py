"""Empty buckets."""

from __future__ import annotations

import pytest

from sidecar.contract.options import TransportName
from tests.mount.buckets import TRANSPORTS, make_cloud
from tests.support.clouds import Cloud


@pytest.fixture(params=["s3", "gcs", "azure"])
def cloud(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Cloud:
    """An empty bucket of each cloud."""
    return make_cloud(request, monkeypatch, request.param)


@pytest.fixture
def s3(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Cloud:
    """An empty bucket on S3, for tests that do not depend on the cloud."""
    return make_cloud(request, monkeypatch, "s3")


@pytest.fixture(params=TRANSPORTS)
def transport(request: pytest.FixtureRequest) -> TransportName:
    """Each transport."""
    name: TransportName = request.param
    return name
