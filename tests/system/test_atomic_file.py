"""Atomic replacement of files."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from pathlib import Path

import pytest

from sidecar.mounter.system.atomic_file import replace_text, replacing


@pytest.fixture
def directory(tmp_path: Path) -> Iterator[int]:
    descriptor = os.open(tmp_path, os.O_RDONLY | os.O_DIRECTORY)
    yield descriptor
    os.close(descriptor)


def test_a_file_is_replaced_also_where_a_crash_left_its_successor(
    tmp_path: Path, directory: int
) -> None:
    file = tmp_path / "file"
    file.write_text("old")
    (tmp_path / "file.new").write_text("left by a crash")
    replace_text("file", "new", directory, mode=0o640)
    assert file.read_text() == "new"
    assert stat.S_IMODE(file.stat().st_mode) == 0o640
    assert os.listdir(tmp_path) == ["file"]


def test_a_failure_leaves_the_old_content(tmp_path: Path, directory: int) -> None:
    file = tmp_path / "file"
    file.write_text("old")

    def fail_half_way() -> None:
        with replacing("file", directory) as descriptor:
            os.write(descriptor, b"half of the new")
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail_half_way()
    assert file.read_text() == "old"


def test_no_link_is_followed_in_a_directory_that_others_can_write(
    tmp_path: Path, directory: int, tmp_path_factory: pytest.TempPathFactory
) -> None:
    secret = tmp_path_factory.mktemp("elsewhere") / "secret"
    secret.write_text("secret")
    for name in ("file", "file.new"):
        (tmp_path / name).symlink_to(secret)
    replace_text("file", "new", directory)
    assert (secret.read_text(), (tmp_path / "file").read_text()) == ("secret", "new")
    assert not (tmp_path / "file").is_symlink()
