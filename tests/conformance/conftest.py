"""Runs each test in a plain directory and on a mount of each transport.

``CONFORMANCE_DIRECTORY=/mnt/x pytest tests/conformance`` runs the suite in that directory
only; ``CONFORMANCE_TRANSPORT`` chooses the expected differences (``kernel`` by default,
``plain`` for none).
"""

from __future__ import annotations

import itertools
import os
import shutil
from collections.abc import Generator, Iterator
from pathlib import Path

import pytest

from tests.conformance import differences, places

TRANSPORTS = ("plain", "kernel", "libfuse")
_GIVEN = os.environ.get("CONFORMANCE_DIRECTORY")
_GIVEN_TRANSPORT = os.environ.get("CONFORMANCE_TRANSPORT", "kernel")
_numbers = itertools.count()


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    transports = [_GIVEN_TRANSPORT] if _GIVEN else TRANSPORTS
    if "directory" in metafunc.fixturenames:
        metafunc.parametrize("place", transports, indirect=True, scope="session")
    elif "read_only_directory" in metafunc.fixturenames:
        # A given directory cannot be filled and then made read-only.
        metafunc.parametrize(
            "read_only_place", [] if _GIVEN else transports, indirect=True, scope="session"
        )


@pytest.fixture(scope="session")
def place(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Path]:
    """The root directory, shared by the tests of one transport."""
    if _GIVEN:
        own = Path(_GIVEN) / f"conformance-{os.getpid()}"
        own.mkdir()
        try:
            yield own
        finally:
            shutil.rmtree(own)
        return
    path = tmp_path_factory.mktemp(request.param) / "root"
    serve = places.plain(path, read_only=False)
    if request.param != "plain":
        serve = places.mounted(request.param, path, read_only=False)
    with serve as root:
        yield root


@pytest.fixture
def directory(place: Path) -> Path:
    """A fresh directory of the file system under test."""
    path = place / f"test-{next(_numbers)}"
    path.mkdir()
    return path


@pytest.fixture(scope="session")
def read_only_place(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Path]:
    path = tmp_path_factory.mktemp(f"{request.param}-read-only") / "root"
    serve = places.plain(path, read_only=True)
    if request.param != "plain":
        serve = places.mounted(request.param, path, read_only=True)
    with serve as root:
        yield root


@pytest.fixture
def read_only_directory(read_only_place: Path) -> Path:
    """The root of a read-only volume that holds :data:`places.READ_ONLY_OBJECTS`."""
    return read_only_place


@pytest.hookimpl(wrapper=True)
def pytest_pyfunc_call(pyfuncitem: pytest.Function) -> Generator[None, object, object]:
    """A test in the list of differences must fail, in the listed way."""
    test, transport = split(pyfuncitem)
    difference = differences.DIFFERENCES.get((test, transport))
    if difference is None:
        return (yield)
    try:
        yield
    except OSError as error:
        if error.errno != difference.how:
            raise
    except AssertionError:
        if difference.how != differences.OTHERWISE:
            raise
    else:
        pytest.fail(f"`{test}` no longer differs on {transport}: take it off the list")
    pytest.xfail(str(difference))


def split(item: pytest.Item) -> tuple[str, str]:
    """A test's name in the list of differences, and its transport."""
    assert isinstance(item, pytest.Function)
    parts = item.callspec.id.split("-") if hasattr(item, "callspec") else []
    transport = next((part for part in parts if part in TRANSPORTS), "")
    rest = "-".join(part for part in parts if part != transport)
    name = f"{item.path.name}::{item.originalname}"
    return (f"{name}[{rest}]" if rest else name), transport
