"""A mounted bucket of a module's store and transport."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from sidecar.contract.options import TransportName
from sidecar.contract.spec import StoreName
from tests.writing.buckets import Mounted, mounted


@pytest.fixture
def place(
    request: pytest.FixtureRequest, tmp_path: Path, store: StoreName, transport: TransportName
) -> Iterator[Mounted]:
    with mounted(request, tmp_path, store, transport) as found:
        yield found
