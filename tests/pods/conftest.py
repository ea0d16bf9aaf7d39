"""The images, as the scripts make them."""

from __future__ import annotations

import pytest

from tests.support.pods import build_images


@pytest.fixture(scope="session")
def images() -> str:
    """Every image is built from this tree; one line for each, with its size."""
    return build_images()
