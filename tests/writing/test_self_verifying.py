"""fio by AIO, direct I/O and maps; the long form is in tests/soak_tools."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.writing.buckets import Mounted, mounted
from tests.writing.self_verifying import ENGINES, verify_again, write_and_verify

SIZE_MIB = 4


@pytest.fixture(scope="module")
def place(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Mounted]:
    with mounted(request, tmp_path_factory.mktemp("s3"), "s3") as found:
        yield found


@pytest.mark.parametrize("engine", ["direct", "aio-direct", "map"])
def test_every_block_has_its_checksum(place: Mounted, engine: str, tmp_path: Path) -> None:
    path = place.fresh_directory() / "file"
    fio(write_and_verify(path, ENGINES[engine], SIZE_MIB))
    copy = tmp_path / "file"
    copy.write_bytes(place.objects(path.parent)["file"])
    fio(verify_again(copy, ENGINES[engine], SIZE_MIB))


def test_a_wrong_block_is_found(tmp_path: Path) -> None:
    path = tmp_path / "file"
    fio(write_and_verify(path, ENGINES["pwrite"], SIZE_MIB))
    with path.open("r+b") as file:
        file.seek(1_000_000)
        file.write(b"wrong")
    with pytest.raises(AssertionError, match="verify failed"):
        fio(verify_again(path, ENGINES["pwrite"], SIZE_MIB))


def fio(command: list[str]) -> None:
    """Run fio, which must find no error."""
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
