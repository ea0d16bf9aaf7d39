"""Files that are replaced in one step."""

from __future__ import annotations

import os
import stat
from pathlib import Path

import pytest

from sidecar.mounter.system.atomic_file import replace_text, replacing


def test_a_file_is_replaced_also_where_a_crash_left_its_successor(tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.write_text("old")
    (tmp_path / "file.new").write_text("left by a crash")
    replace_text(file, "new", mode=0o640)
    assert file.read_text() == "new"
    assert stat.S_IMODE(file.stat().st_mode) == 0o640
    assert os.listdir(tmp_path) == ["file"]


def test_a_failure_leaves_the_old_content(tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.write_text("old")

    def fail_half_way() -> None:
        with replacing(file) as descriptor:
            os.write(descriptor, b"half of the new")
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail_half_way()
    assert file.read_text() == "old"


def test_no_link_is_followed_in_a_directory_that_others_can_write(tmp_path: Path) -> None:
    secret, shared = tmp_path / "secret", tmp_path / "shared"
    secret.write_text("secret")
    shared.mkdir()
    for name in ("file", "file.new"):
        (shared / name).symlink_to(secret)
    directory = os.open(shared, os.O_RDONLY | os.O_DIRECTORY)
    try:
        replace_text("file", "new", directory=directory)
    finally:
        os.close(directory)
    assert (secret.read_text(), (shared / "file").read_text()) == ("secret", "new")
    assert not (shared / "file").is_symlink()
