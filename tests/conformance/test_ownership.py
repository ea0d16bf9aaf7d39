"""Owner and group of files that users other than root create.

Statements use relative names: their user has no access to the directories above.
"""

from __future__ import annotations

import errno
import os
import stat
from pathlib import Path

import pytest

from tests.conformance.programs import User, as_user, write

ONE = User(1000, 1001)
TWO = User(2000, 2001)
TEAM = 3000
"""A supplementary group."""
MAKERS = {
    "file": "os.close(os.open('new', os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o666))",
    "truncated": "os.close(os.open('new', os.O_CREAT | os.O_TRUNC | os.O_WRONLY, 0o666))",
    "directory": "os.mkdir('new', 0o777)",
    "link": "os.symlink('anywhere', 'new')",
    "node": "os.mknod('new', 0o666 | stat.S_IFREG)",
}


def owner(path: Path) -> tuple[int, int]:
    found = path.lstat()
    return found.st_uid, found.st_gid


def mode(path: Path) -> int:
    return stat.S_IMODE(path.lstat().st_mode)


@pytest.fixture
def everybody_s(directory: Path) -> Path:
    """A directory in which every user may create names."""
    directory.chmod(0o777)
    return directory


@pytest.mark.parametrize("maker", MAKERS)
def test_what_is_made_belongs_to_its_maker(everybody_s: Path, maker: str) -> None:
    assert as_user(MAKERS[maker], everybody_s, ONE) == 0
    assert owner(everybody_s / "new") == (1000, 1001)


@pytest.mark.parametrize("maker", MAKERS)
def test_what_root_makes_is_root_s(directory: Path, maker: str) -> None:
    assert as_user(MAKERS[maker], directory, User(0, 0)) == 0
    assert owner(directory / "new") == (0, 0)


def test_the_maker_sees_it_at_once(everybody_s: Path) -> None:
    statement = """
with open('new', 'w') as file:
    made = os.fstat(file.fileno())
    assert (made.st_uid, made.st_gid) == (1000, 1001), made
    made = os.stat('new')
    assert (made.st_uid, made.st_gid) == (1000, 1001), made
"""
    assert as_user(statement, everybody_s, ONE) == 0


@pytest.mark.parametrize("umask", [0o000, 0o002, 0o022, 0o027, 0o077, 0o777])
@pytest.mark.parametrize("maker", ["file", "directory", "node"])
def test_the_umask_takes_bits_away(everybody_s: Path, maker: str, umask: int) -> None:
    asked = 0o777 if maker == "directory" else 0o666
    assert as_user(MAKERS[maker], everybody_s, ONE, umask=umask) == 0
    assert mode(everybody_s / "new") == asked & ~umask


def test_it_is_its_owner_s_again_when_it_is_opened_again(everybody_s: Path) -> None:
    assert as_user("open('new', 'w').write('one')", everybody_s, ONE) == 0
    assert as_user("open('new', 'a').write(' more')", everybody_s, ONE) == 0
    assert as_user("os.chmod('new', 0o640); os.utime('new', (1, 1))", everybody_s, ONE) == 0
    assert (everybody_s / "new").read_text() == "one more"
    assert owner(everybody_s / "new") == (1000, 1001)
    assert mode(everybody_s / "new") == 0o640


def test_another_user_reads_it_and_changes_nothing(everybody_s: Path) -> None:
    assert as_user("open('new', 'w').write('one')", everybody_s, ONE) == 0
    assert as_user("assert open('new').read() == 'one'", everybody_s, TWO) == 0
    assert as_user("open('new', 'a')", everybody_s, TWO) == errno.EACCES
    assert as_user("os.truncate('new', 0)", everybody_s, TWO) == errno.EACCES
    assert as_user("os.chmod('new', 0o666)", everybody_s, TWO) == errno.EPERM
    assert as_user("os.utime('new', (1, 1))", everybody_s, TWO) == errno.EPERM


def test_a_directory_of_one_s_own(everybody_s: Path) -> None:
    made = "os.makedirs('a/b/c'); open('a/b/c/file', 'w').write('x')"
    assert as_user(made, everybody_s, ONE) == 0
    for name in ("a", "a/b", "a/b/c", "a/b/c/file"):
        assert owner(everybody_s / name) == (1000, 1001)
    assert as_user("open('a/b/c/other', 'w')", everybody_s, TWO) == errno.EACCES
    assert as_user("os.mkdir('a/other')", everybody_s, TWO) == errno.EACCES
    assert as_user("shutil.rmtree('a')", everybody_s, ONE) == 0


def test_a_private_directory_is_closed_to_others(everybody_s: Path) -> None:
    assert as_user("os.mkdir('own', 0o700)", everybody_s, ONE) == 0
    assert as_user("open('own/file', 'w').write('x')", everybody_s, ONE) == 0
    assert as_user("os.listdir('own')", everybody_s, TWO) == errno.EACCES
    assert as_user("open('own/file')", everybody_s, TWO) == errno.EACCES


# --- groups ----------------------------------------------------------------------------------


@pytest.fixture
def team_s(directory: Path) -> Path:
    """A setgid directory: what is created in it gets its group."""
    os.chown(directory, 0, TEAM)
    directory.chmod(0o2775)
    return directory


@pytest.mark.parametrize("maker", MAKERS)
def test_a_setgid_directory_gives_its_group(team_s: Path, maker: str) -> None:
    assert as_user(MAKERS[maker], team_s, ONE.with_groups(TEAM), umask=0o002) == 0
    made = team_s / "new"
    assert owner(made) == (1000, TEAM)
    if maker == "directory":
        assert mode(made) == 0o2775
    elif maker != "link":
        assert mode(made) == 0o664


def test_the_setgid_bit_goes_on_downwards(team_s: Path) -> None:
    made = "os.makedirs('a/b'); open('a/b/file', 'w').close(); os.symlink('x', 'a/b/link')"
    assert as_user(made, team_s, ONE.with_groups(TEAM)) == 0
    for name in ("a", "a/b"):
        assert owner(team_s / name) == (1000, TEAM)
        assert mode(team_s / name) == 0o2755
    assert owner(team_s / "a/b/file") == (1000, TEAM)
    assert owner(team_s / "a/b/link") == (1000, TEAM)


def test_without_the_bit_a_group_is_not_given(team_s: Path) -> None:
    team_s.chmod(0o775)
    assert as_user(MAKERS["directory"], team_s, ONE.with_groups(TEAM)) == 0
    assert owner(team_s / "new") == (1000, 1001)
    assert mode(team_s / "new") == 0o755


def test_a_team_writes_what_its_members_made(team_s: Path) -> None:
    member, other = ONE.with_groups(TEAM), TWO.with_groups(TEAM)
    assert as_user("open('log', 'w').write('one')", team_s, member, umask=0o002) == 0
    assert as_user("open('log', 'a').write(' two')", team_s, other, umask=0o002) == 0
    assert (team_s / "log").read_text() == "one two"
    assert owner(team_s / "log") == (1000, TEAM)
    assert as_user("os.rename('log', 'old')", team_s, other) == 0
    assert as_user("open('old', 'a')", team_s, TWO) == errno.EACCES


def test_who_is_not_of_the_group_makes_nothing_there(team_s: Path) -> None:
    for maker in MAKERS.values():
        assert as_user(maker, team_s, TWO) == errno.EACCES


def test_an_owner_gives_a_file_to_a_group_of_hers_only(everybody_s: Path) -> None:
    member = ONE.with_groups(TEAM)
    assert as_user("open('new', 'w').close()", everybody_s, member) == 0
    assert as_user(f"os.chown('new', -1, {TEAM})", everybody_s, member) == 0
    assert owner(everybody_s / "new") == (1000, TEAM)
    assert as_user("os.chown('new', -1, 4000)", everybody_s, member) == errno.EPERM
    assert as_user("os.chown('new', 2000, -1)", everybody_s, member) == errno.EPERM


# --- names ---------------------------------------------------------------------------------


@pytest.mark.parametrize("maker", ["file", "directory", "link"])
def test_in_a_sticky_directory_only_the_owner_removes_it(directory: Path, maker: str) -> None:
    directory.chmod(0o1777)
    remove = "os.rmdir('new')" if maker == "directory" else "os.unlink('new')"
    assert as_user(MAKERS[maker], directory, ONE) == 0
    assert as_user(remove, directory, TWO) == errno.EPERM
    assert as_user("os.rename('new', 'other')", directory, TWO) == errno.EPERM
    assert as_user(remove, directory, ONE) == 0


def test_a_new_name_keeps_the_owner(everybody_s: Path) -> None:
    made = "open('file', 'w').write('x'); os.mkdir('dir'); os.symlink('x', 'link')"
    assert as_user(made, everybody_s, ONE) == 0
    for name in ("file", "dir", "link"):
        assert as_user(f"os.rename('{name}', '{name}-2')", everybody_s, TWO) == 0
        assert owner(everybody_s / f"{name}-2") == (1000, 1001)


def test_the_save_pattern_makes_the_saver_the_owner(everybody_s: Path) -> None:
    write(everybody_s / "model", b"root's")
    save = """
with open('model.tmp', 'w') as file:
    file.write('of one')
    os.fsync(file.fileno())
os.replace('model.tmp', 'model')
"""
    assert as_user(save, everybody_s, ONE) == 0
    assert owner(everybody_s / "model") == (1000, 1001)
    assert (everybody_s / "model").read_text() == "of one"


def test_overwriting_keeps_the_owner(everybody_s: Path) -> None:
    write(everybody_s / "file", b"root's").chmod(0o666)
    assert as_user("open('file', 'w').write('of one')", everybody_s, ONE) == 0
    assert owner(everybody_s / "file") == (0, 0)
    assert mode(everybody_s / "file") == 0o666


def test_a_link_is_given_away_without_what_it_leads_to(everybody_s: Path) -> None:
    write(everybody_s / "file", b"")
    assert as_user("os.symlink('file', 'link')", everybody_s, ONE) == 0
    os.chown(everybody_s / "link", 2000, 2001, follow_symlinks=False)
    assert owner(everybody_s / "link") == (2000, 2001)
    assert owner(everybody_s / "file") == (0, 0)


def test_a_copy_belongs_to_who_copies(everybody_s: Path) -> None:
    write(everybody_s / "file", b"content").chmod(0o640)
    (everybody_s / "file").chmod(0o644)
    copy = "sys.exit(subprocess.call(['cp', '-r', 'file', 'copy']))"
    assert as_user(copy, everybody_s, ONE) == 0
    assert owner(everybody_s / "copy") == (1000, 1001)
    assert (everybody_s / "copy").read_bytes() == b"content"
