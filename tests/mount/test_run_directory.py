"""The run's outputs directory: who can write there, and where it is not made."""

from __future__ import annotations

import os
import stat
from pathlib import Path

import pytest

from sidecar.errors import PathNotWritable
from sidecar.mounter.supervisor.path_checks import make_run_directory

RUN = "user/project/experiments/1"


def make(root: Path, *, uid: int = 0, gid: int = 0, mode: int = 0o755, run: str = RUN) -> Path:
    make_run_directory(str(root), str(root / run), uid, gid, mode)
    return root / run


def shown(path: Path) -> tuple[int, int, int]:
    found = path.lstat()
    return found.st_uid, found.st_gid, stat.S_IMODE(found.st_mode)


def test_a_known_user_has_it_alone(tmp_path: Path) -> None:
    run = make(tmp_path, uid=1000, gid=1001)
    for directory in (run, run.parent, tmp_path / "user"):
        assert shown(directory) == (1000, 1001, 0o755)


def test_nobody_known_everybody_writes_in_it_and_not_beside_it(tmp_path: Path) -> None:
    run = make(tmp_path, mode=0o777)
    assert shown(run) == (0, 0, 0o777)
    for directory in (run.parent, tmp_path / "user"):
        assert shown(directory) == (0, 0, 0o755)


def test_a_group_shares_it(tmp_path: Path) -> None:
    run = make(tmp_path, gid=2000, mode=0o2775)
    assert shown(run) == (0, 2000, 0o2775)
    assert shown(run.parent) == (0, 2000, 0o2755)


def test_the_group_of_the_volume_is_kept(tmp_path: Path) -> None:
    os.chown(tmp_path, 0, 3000)
    tmp_path.chmod(0o2770)
    assert shown(make(tmp_path, mode=0o777)) == (0, 3000, 0o2777)


def test_the_umask_does_not_matter_and_stays(tmp_path: Path) -> None:
    before = os.umask(0o077)
    try:
        assert shown(make(tmp_path, mode=0o777)) == (0, 0, 0o777)
        assert os.umask(0o077) == 0o077
    finally:
        os.umask(before)


def test_what_exists_is_kept_as_it_is(tmp_path: Path) -> None:
    make(tmp_path, mode=0o700).chmod(0o711)
    assert shown(make(tmp_path, uid=1000, gid=1000, mode=0o777)) == (0, 0, 0o711)


@pytest.mark.parametrize("place", ["user", RUN])
def test_no_link_is_followed(tmp_path: Path, place: str) -> None:
    """Who wrote to the volume before may have left one, to a directory of the node."""
    root, elsewhere = tmp_path / "volume", tmp_path / "elsewhere"
    elsewhere.mkdir(mode=0o700)
    (root / place).parent.mkdir(parents=True)
    (root / place).symlink_to(elsewhere)
    with pytest.raises(PathNotWritable, match=r"`.*/volume/user.*` is a symbolic link"):
        make(root, uid=1000, gid=1000, mode=0o777)
    assert shown(elsewhere) == (0, 0, 0o700)
    assert list(elsewhere.iterdir()) == []


def test_a_file_is_in_the_way(tmp_path: Path) -> None:
    (tmp_path / "user").write_text("")
    with pytest.raises(PathNotWritable, match=r"`.*/user` is a file"):
        make(tmp_path)


def test_the_volume_itself_is_left_as_it_is(tmp_path: Path) -> None:
    before = shown(tmp_path)
    make_run_directory(str(tmp_path), str(tmp_path), 1000, 1000, 0o777)
    assert shown(tmp_path) == before
