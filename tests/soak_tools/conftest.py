"""A mount for each transport and user, and a summary at the end of the report."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from sidecar.contract.spec import Access
from tests.soak_tools.tools import NOBODY, Examiner, Findings
from tests.writing.buckets import Mounted, mounted

_FINDINGS: pytest.StashKey[list[Findings]] = pytest.StashKey()
_PLACES = {
    "kernel-root": ("kernel", 0),
    "kernel-nobody": ("kernel", NOBODY),
    "libfuse-root": ("libfuse", 0),
}


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark all tests here: they take minutes and need `scripts/install.sh soak-tools`."""
    here = Path(__file__).parent
    for item in items:
        if here in item.path.parents:
            item.add_marker(pytest.mark.soak_tools)


@pytest.fixture(scope="module", params=_PLACES)
def place(request: pytest.FixtureRequest) -> Iterator[Mounted]:
    """An empty bucket that belongs to the user, mounted where every user has access.

    Afterwards everything must be saved, and the log must have no error.
    """
    transport, uid = _PLACES[request.param]
    # pytest's own directories are accessible to root only.
    base = Path(tempfile.mkdtemp(prefix=f"soak-tools-{request.param}-"))
    base.chmod(0o755)
    access = Access(uid=uid, gid=uid)
    try:
        with mounted(request, base, "s3", transport, access=access) as found:  # type: ignore[arg-type]
            yield found
            assert found.sidecar.stop() == 0, found.sidecar.log()
            errors = [line for line in found.sidecar.log().splitlines() if "level=error" in line]
            assert errors == []
    finally:
        shutil.rmtree(base)


@pytest.fixture
def examiner(request: pytest.FixtureRequest, place: Mounted) -> Iterator[Examiner]:
    """Runs programs in new directories of the mount and of the local disk."""
    name = request.module.__name__.rpartition("test_")[2]
    user = request.node.callspec.params["place"].partition("-")[2]
    examiner = Examiner(place, name, user)
    yield examiner
    request.config.stash.setdefault(_FINDINGS, []).extend(examiner.findings)


def pytest_terminal_summary(
    terminalreporter: pytest.TerminalReporter, config: pytest.Config
) -> None:
    """Print what was run, what failed, and why that is right."""
    for findings in config.stash.get(_FINDINGS, []):
        terminalreporter.write_line(str(findings))
