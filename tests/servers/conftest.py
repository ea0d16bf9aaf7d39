from __future__ import annotations

import uuid
from collections.abc import Iterator

import pytest

from tests.servers.raw import Raw
from tests.support.strict_server import StrictS3Server


@pytest.fixture
def server(strict_s3_server: StrictS3Server) -> Iterator[StrictS3Server]:
    """The strict S3, reset after each test."""
    yield strict_s3_server
    strict_s3_server.reset()


@pytest.fixture
def raw(server: StrictS3Server) -> Raw:
    """A client for raw requests to an empty bucket."""
    bucket = f"strict-{uuid.uuid4().hex[:12]}"
    server.create_bucket(bucket)
    return Raw(server, bucket)
