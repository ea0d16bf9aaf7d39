"""The run's outputs directory: its owner and mode, and that no link is followed."""

from __future__ import annotations

import contextlib
import os
import stat
import tempfile
from collections.abc import Callable
from pathlib import Path

import pytest

from sidecar.errors import PathMissing, PathNotReadable, PathNotWritable
from sidecar.mounter.supervisor.path_checks import check_directory, make_run_directory
from tests.support.swapper import Swapper

NOBODY = 65534
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


def test_the_umask_stays_also_where_there_is_no_volume(tmp_path: Path) -> None:
    before = os.umask(0o027)
    try:
        with pytest.raises(PathMissing):
            make(tmp_path / "gone")
        assert os.umask(0o027) == 0o027
    finally:
        os.umask(before)


def test_what_exists_is_kept_as_it_is(tmp_path: Path) -> None:
    make(tmp_path, mode=0o700).chmod(0o711)
    assert shown(make(tmp_path, uid=1000, gid=1000, mode=0o777)) == (0, 0, 0o711)


@pytest.mark.parametrize("place", ["user", RUN])
def test_no_link_is_followed(tmp_path: Path, place: str) -> None:
    """An earlier writer of the volume may have left one to a directory of the node."""
    root, elsewhere = tmp_path / "volume", tmp_path / "elsewhere"
    elsewhere.mkdir(mode=0o700)
    (root / place).parent.mkdir(parents=True)
    (root / place).symlink_to(elsewhere)
    with pytest.raises(PathNotWritable, match=r"`.*/volume/user.*` is a symbolic link"):
        make(root, uid=1000, gid=1000, mode=0o777)
    assert shown(elsewhere) == (0, 0, 0o700)
    assert list(elsewhere.iterdir()) == []


@pytest.mark.parametrize("place", ["volume", "above/volume"])
def test_the_volume_itself_is_reached_without_links(tmp_path: Path, place: str) -> None:
    elsewhere, link = tmp_path / "elsewhere", tmp_path / place.partition("/")[0]
    (elsewhere / "volume").mkdir(parents=True)
    link.symlink_to(elsewhere)
    with pytest.raises(PathNotReadable, match=r"is not used: `.*` is a symbolic link, and no path"):
        make(tmp_path / place, uid=1000, gid=1000, mode=0o777)
    with pytest.raises(PathNotReadable, match=r"is not used: `.*` is a symbolic link, and no path"):
        check_directory(str(tmp_path / place), write=True)
    assert [found.name for found in elsewhere.rglob("*")] == ["volume"]


@pytest.fixture(params=["link", "directory"])
def theirs(tmp_path: Path, request: pytest.FixtureRequest) -> Path:
    """What takes the place of a new directory: a link to another place, or another directory."""
    (tmp_path / "volume").mkdir()
    theirs = tmp_path / "volume/theirs"
    victim = theirs if request.param == "directory" else tmp_path / "victim"
    victim.mkdir(mode=0o700)
    (victim / "file").write_text("")
    if victim != theirs:
        theirs.symlink_to(victim)
    return theirs


def assert_nothing_given(theirs: Path) -> None:
    now = theirs if theirs.exists() else theirs.with_name("user")
    victim = now.resolve()
    assert shown(victim) == (0, 0, 0o700)
    assert os.listdir(victim) == ["file"]


def test_what_takes_the_place_of_a_new_directory_is_not_given_away(
    theirs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In the worst moment: after mkdir(2), before the directory is opened."""
    mkdir = os.mkdir

    def swapped(name: str, mode: int, *, dir_fd: int) -> None:
        mkdir(name, mode, dir_fd=dir_fd)
        os.rename(name, "made", src_dir_fd=dir_fd, dst_dir_fd=dir_fd)
        os.rename("theirs", name, src_dir_fd=dir_fd, dst_dir_fd=dir_fd)

    monkeypatch.setattr(os, "mkdir", swapped)
    with contextlib.suppress(PathNotWritable):
        make(theirs.parent, uid=1000, gid=1000, mode=0o777, run="user")
    assert_nothing_given(theirs)


def test_who_swaps_a_directory_all_the_time_gets_nothing_given(theirs: Path) -> None:
    """An earlier run that still writes to the volume."""
    made = 0
    with Swapper(theirs.with_name("user"), theirs):
        for _ in range(3000):
            with contextlib.suppress(PathNotWritable):
                make(theirs.parent, uid=1000, gid=1000, mode=0o777, run="user")
                made += 1
    assert made  # else nothing was tried
    assert_nothing_given(theirs)


def as_nobody(function: Callable[[], object]) -> int:
    """Call it in a process of another user; the exit status."""
    pid = os.fork()
    if not pid:
        status = 1
        try:
            os.setgroups([])
            os.setgid(NOBODY)
            os.setuid(NOBODY)
            function()
            status = 0
        finally:
            os._exit(status)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def test_who_is_not_root_makes_it_and_gives_it_to_nobody() -> None:
    with tempfile.TemporaryDirectory() as place:  # pytest's own are closed to others
        os.chown(place, NOBODY, NOBODY)
        root = Path(place)
        assert as_nobody(lambda: make(root, uid=1000, gid=1000)) == 0
        assert shown(root / RUN)[:2] == (NOBODY, NOBODY)
        assert as_nobody(lambda: check_directory(place, write=True)) == 0
        assert os.listdir(root) == ["user"]


def test_who_may_not_list_a_directory_above_walks_through_it() -> None:
    with tempfile.TemporaryDirectory() as place:
        root = Path(place) / "closed/volume"
        root.mkdir(parents=True)
        os.chown(root, NOBODY, NOBODY)
        for closed in (Path(place), root.parent):
            closed.chmod(0o711)
        assert as_nobody(lambda: check_directory(str(root), write=True)) == 0


def test_a_file_is_in_the_way(tmp_path: Path) -> None:
    (tmp_path / "user").write_text("")
    with pytest.raises(PathNotWritable, match=r"`.*/user` is a file"):
        make(tmp_path)


def test_the_volume_itself_is_left_as_it_is(tmp_path: Path) -> None:
    before = shown(tmp_path)
    make_run_directory(str(tmp_path), str(tmp_path), 1000, 1000, 0o777)
    assert shown(tmp_path) == before
