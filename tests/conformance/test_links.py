"""symlink(2), readlink(2), and other calls on symbolic links."""

from __future__ import annotations

import errno
import os
import shutil
import stat
from pathlib import Path

from tests.conformance.programs import NOBODY, fails_with, run, write

THE_PAST_NS = 1_000_000_000_123_456_789


def names(directory: Path) -> list[str]:
    return sorted(os.listdir(directory))


def test_a_target_is_text(directory: Path) -> None:
    for number, target in enumerate(
        ("file", "../../etc/passwd", "/", "a b\n", "grüße", "x" * 4095, "no/such//../thing")
    ):
        path = directory / f"{number}"
        os.symlink(target, path)
        assert os.readlink(path) == target
        assert path.lstat().st_size == len(target.encode())
    assert os.readlink(os.fsencode(directory / "4")) == "grüße".encode()


def test_a_target_that_is_not_utf_8(directory: Path) -> None:
    os.symlink(b"\xff\xfe", directory / "link")
    assert os.readlink(os.fsencode(directory / "link")) == b"\xff\xfe"


def test_a_link_is_followed(directory: Path) -> None:
    (directory / "inner").mkdir()
    write(directory / "inner" / "file", b"content")
    (directory / "to-file").symlink_to("inner/file")
    (directory / "to-directory").symlink_to("inner")
    (directory / "absolute").symlink_to(directory / "inner" / "file")
    assert (directory / "to-file").read_bytes() == b"content"
    assert (directory / "to-directory" / "file").read_bytes() == b"content"
    assert (directory / "absolute").read_bytes() == b"content"
    (directory / "to-file").write_bytes(b"more")
    assert (directory / "inner" / "file").read_bytes() == b"more"
    assert names(directory) == ["absolute", "inner", "to-directory", "to-file"]


def test_a_link_that_leads_nowhere(directory: Path) -> None:
    (directory / "link").symlink_to("missing")
    with fails_with(errno.ENOENT):
        (directory / "link").stat()
    assert stat.S_ISLNK((directory / "link").lstat().st_mode)
    (directory / "link").write_bytes(b"made")
    assert (directory / "missing").read_bytes() == b"made"


def test_a_link_to_itself(directory: Path) -> None:
    (directory / "link").symlink_to("link")
    with fails_with(errno.ELOOP):
        (directory / "link").stat()


def test_a_listing_says_what_is_a_link(directory: Path) -> None:
    write(directory / "file", b"")
    (directory / "inner").mkdir()
    (directory / "link").symlink_to("inner")
    with os.scandir(directory) as entries:
        found = {e.name: (e.is_symlink(), e.is_dir(follow_symlinks=False)) for e in entries}
    assert found == {"file": (False, False), "inner": (False, True), "link": (True, False)}


def test_a_taken_name(directory: Path) -> None:
    write(directory / "file", b"")
    (directory / "inner").mkdir()
    (directory / "link").symlink_to("file")
    for name in ("file", "inner", "link"):
        with fails_with(errno.EEXIST):
            (directory / name).symlink_to("other")
    with fails_with(errno.EEXIST):
        (directory / "link").mkdir()
    with fails_with(errno.EEXIST):
        os.close(os.open(directory / "link", os.O_CREAT | os.O_EXCL | os.O_WRONLY))
    assert (directory / "link").readlink() == Path("file")


def test_unlink_leaves_the_target(directory: Path) -> None:
    write(directory / "file", b"content")
    (directory / "link").symlink_to("file")
    (directory / "link").unlink()
    assert names(directory) == ["file"]
    assert (directory / "file").read_bytes() == b"content"


def test_what_a_link_is_not(directory: Path) -> None:
    write(directory / "file", b"")
    (directory / "link").symlink_to("file")
    with fails_with(errno.EINVAL):
        os.readlink(directory / "file")
    with fails_with(errno.EINVAL):
        os.readlink(directory)
    with fails_with(errno.ENOTDIR):
        (directory / "link").rmdir()
    with fails_with(errno.ELOOP):
        os.close(os.open(directory / "link", os.O_RDONLY | os.O_NOFOLLOW))


def test_a_directory_of_links_only_is_not_empty(directory: Path) -> None:
    (directory / "inner").mkdir()
    (directory / "inner" / "link").symlink_to("x")
    with fails_with(errno.ENOTEMPTY):
        (directory / "inner").rmdir()
    (directory / "inner" / "link").unlink()
    (directory / "inner").rmdir()


def test_a_link_is_renamed(directory: Path) -> None:
    (directory / "inner").mkdir()
    (directory / "link").symlink_to("target")
    number = (directory / "link").lstat().st_ino
    (directory / "link").rename(directory / "inner" / "other")
    assert names(directory) == ["inner"]
    assert (directory / "inner" / "other").readlink() == Path("target")
    assert (directory / "inner" / "other").lstat().st_ino == number


def test_a_link_replaces_a_link(directory: Path) -> None:
    """As programs update `last.ckpt`."""
    (directory / "last").symlink_to("one")
    (directory / "new").symlink_to("two")
    os.replace(directory / "new", directory / "last")
    assert names(directory) == ["last"]
    assert (directory / "last").readlink() == Path("two")


def test_a_link_replaces_a_file(directory: Path) -> None:
    write(directory / "last", b"content")
    (directory / "new").symlink_to("two")
    os.replace(directory / "new", directory / "last")
    assert names(directory) == ["last"]
    assert (directory / "last").readlink() == Path("two")


def test_a_file_replaces_a_link(directory: Path) -> None:
    write(directory / "target", b"target")
    (directory / "last").symlink_to("target")
    write(directory / "new", b"content")
    os.replace(directory / "new", directory / "last")
    assert names(directory) == ["last", "target"]
    assert not (directory / "last").is_symlink()
    assert (directory / "last").read_bytes() == b"content"
    assert (directory / "target").read_bytes() == b"target"


def test_a_link_and_a_directory_do_not_replace_each_other(directory: Path) -> None:
    (directory / "inner").mkdir()
    (directory / "link").symlink_to("inner")
    with fails_with(errno.EISDIR):
        os.rename(directory / "link", directory / "inner")
    with fails_with(errno.ENOTDIR):
        os.rename(directory / "inner", directory / "link")


def test_a_name_is_a_file_then_a_link_then_a_directory(directory: Path) -> None:
    path = directory / "name"
    for _ in range(3):
        write(path, b"content").unlink()
        path.symlink_to("elsewhere")
        path.unlink()
        path.mkdir()
        path.rmdir()
    assert names(directory) == []


def test_attributes_of_a_link_are_its_own(directory: Path) -> None:
    write(directory / "file", b"")
    (directory / "link").symlink_to("file")
    before = (directory / "file").stat()
    os.lchown(directory / "link", NOBODY, NOBODY)
    os.utime(directory / "link", ns=(THE_PAST_NS, THE_PAST_NS), follow_symlinks=False)
    found = (directory / "link").lstat()
    assert (found.st_uid, found.st_gid, found.st_mtime_ns) == (NOBODY, NOBODY, THE_PAST_NS)
    assert (directory / "file").stat() == before
    assert (directory / "link").readlink() == Path("file")


def test_cp_of_links(directory: Path) -> None:
    (directory / "source").mkdir()
    write(directory / "source" / "file", b"content")
    (directory / "source" / "link").symlink_to("file")
    run("cp", "-a", "source", "copy", cwd=directory)
    assert (directory / "copy" / "link").readlink() == Path("file")
    shutil.copytree(directory / "source", directory / "tree", symlinks=True)
    assert (directory / "tree" / "link").readlink() == Path("file")


def test_tar_of_links(directory: Path) -> None:
    (directory / "source").mkdir()
    write(directory / "source" / "file", b"content")
    (directory / "source" / "link").symlink_to("file")
    run("tar", "cf", "all.tar", "source", cwd=directory)
    (directory / "out").mkdir()
    run("tar", "xf", "../all.tar", cwd=directory / "out")
    assert (directory / "out" / "source" / "link").read_bytes() == b"content"


def test_rm_of_links(directory: Path) -> None:
    (directory / "kept").mkdir()
    write(directory / "kept" / "file", b"")
    (directory / "inner").mkdir()
    (directory / "inner" / "link").symlink_to("../kept")
    run("rm", "-r", "inner", cwd=directory)
    assert names(directory) == ["kept"]
    assert names(directory / "kept") == ["file"]
