"""rename(2)."""

from __future__ import annotations

import errno
import os
from pathlib import Path

from tests.conformance import syscalls
from tests.conformance.programs import fails_with, forget_pages, opened, run, write


def names(directory: Path) -> list[str]:
    return sorted(os.listdir(directory))


def test_to_a_new_name(directory: Path) -> None:
    write(directory / "old", b"content").rename(directory / "new")
    assert names(directory) == ["new"]
    assert (directory / "new").read_bytes() == b"content"
    with fails_with(errno.ENOENT):
        (directory / "old").stat()


def test_over_an_existing_file(directory: Path) -> None:
    write(directory / "old", b"content")
    write(directory / "new", b"other content")
    (directory / "old").rename(directory / "new")
    assert names(directory) == ["new"]
    assert (directory / "new").read_bytes() == b"content"
    assert (directory / "new").stat().st_size == 7


def test_into_another_directory(directory: Path) -> None:
    (directory / "a").mkdir()
    (directory / "b").mkdir()
    write(directory / "a" / "file", b"content").rename(directory / "b" / "moved")
    assert names(directory / "a") == []
    assert names(directory / "b") == ["moved"]
    assert (directory / "b" / "moved").read_bytes() == b"content"


def test_over_itself(directory: Path) -> None:
    path = write(directory / "file", b"content")
    path.rename(path)
    assert path.read_bytes() == b"content"


def test_there_and_back(directory: Path) -> None:
    path = write(directory / "file", b"content")
    for _ in range(5):
        path.rename(directory / "other")
        (directory / "other").rename(path)
    assert path.read_bytes() == b"content"
    assert names(directory) == ["file"]


def test_the_save_pattern_of_ml_libraries(directory: Path) -> None:
    for version in (b"one", b"two", b"three"):
        with opened(directory / "model.tmp", os.O_WRONLY | os.O_CREAT | os.O_TRUNC) as fd:
            os.write(fd, version)
            os.fsync(fd)
        os.chmod(directory / "model.tmp", 0o644)
        os.replace(directory / "model.tmp", directory / "model")
        assert (directory / "model").read_bytes() == version
    assert names(directory) == ["model"]


def test_while_it_is_written(directory: Path) -> None:
    with opened(directory / "old", os.O_RDWR | os.O_CREAT) as fd:
        os.write(fd, b"before ")
        (directory / "old").rename(directory / "new")
        assert names(directory) == ["new"]
        os.write(fd, b"after")
        assert os.pread(fd, 20, 0) == b"before after"
    assert (directory / "new").read_bytes() == b"before after"
    assert names(directory) == ["new"]


def test_what_was_saved_while_it_is_written_again(directory: Path) -> None:
    path = write(directory / "old", b"0123456789")
    with opened(path, os.O_RDWR) as fd:
        os.pwrite(fd, b"ab", 0)
        path.rename(directory / "new")
        os.pwrite(fd, b"cd", 2)
    assert names(directory) == ["new"]
    assert (directory / "new").read_bytes() == b"abcd456789"


def test_while_it_is_read(directory: Path) -> None:
    path = write(directory / "old", b"content")
    with opened(path, os.O_RDONLY) as fd:
        path.rename(directory / "new")
        os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
        assert os.read(fd, 20) == b"content"


def test_over_a_file_that_is_read(directory: Path) -> None:
    write(directory / "new", b"replaced")
    with opened(directory / "new", os.O_RDONLY) as fd:
        write(directory / "old", b"content").rename(directory / "new")
        assert os.read(fd, 20) == b"replaced"
        assert (directory / "new").read_bytes() == b"content"


def test_over_a_file_that_is_written(directory: Path) -> None:
    with opened(directory / "new", os.O_RDWR | os.O_CREAT) as fd:
        os.write(fd, b"replaced")
        write(directory / "old", b"content").rename(directory / "new")
        os.write(fd, b"!")
        assert os.pread(fd, 20, 0) == b"replaced!"
    assert (directory / "new").read_bytes() == b"content"
    assert names(directory) == ["new"]


def test_over_an_existing_file_before_the_new_one_is_closed(directory: Path) -> None:
    """As safetensors saves: a random name with O_EXCL, renamed while it is open."""
    write(directory / "model", b"old")
    with opened(directory / ".tmp1", os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600) as fd:
        os.write(fd, b"new")
        (directory / ".tmp1").rename(directory / "model")
    forget_pages(directory / "model")
    assert (directory / "model").read_bytes() == b"new"
    assert names(directory) == ["model"]


def test_the_old_name_is_free_again(directory: Path) -> None:
    write(directory / "old", b"content").rename(directory / "new")
    write(directory / "old", b"another")
    assert (directory / "new").read_bytes() == b"content"
    assert (directory / "old").read_bytes() == b"another"


def test_noreplace(directory: Path) -> None:
    write(directory / "old", b"content")
    write(directory / "taken", b"other")
    with fails_with(errno.EEXIST):
        syscalls.renameat2(directory / "old", directory / "taken", syscalls.RENAME_NOREPLACE)
    syscalls.renameat2(directory / "old", directory / "new", syscalls.RENAME_NOREPLACE)
    assert (directory / "taken").read_bytes() == b"other"
    assert (directory / "new").read_bytes() == b"content"


def test_exchange(directory: Path) -> None:
    write(directory / "a", b"one")
    write(directory / "b", b"two")
    syscalls.renameat2(directory / "a", directory / "b", syscalls.RENAME_EXCHANGE)
    assert (directory / "a").read_bytes() == b"two"


def test_what_is_missing(directory: Path) -> None:
    with fails_with(errno.ENOENT):
        (directory / "missing").rename(directory / "new")
    write(directory / "file", b"")
    with fails_with(errno.ENOENT):
        (directory / "file").rename(directory / "missing" / "file")


def test_between_files_and_directories(directory: Path) -> None:
    write(directory / "file", b"content")
    (directory / "inner").mkdir()
    with fails_with(errno.EISDIR):
        (directory / "file").rename(directory / "inner")
    with fails_with(errno.ENOTDIR):
        (directory / "inner").rename(directory / "file")
    with fails_with(errno.ENOTDIR):
        (directory / "file").rename(directory / "file" / "below")
    with fails_with(errno.EINVAL):
        (directory / "inner").rename(directory / "inner" / "below")
    assert names(directory) == ["file", "inner"]


def test_a_directory(directory: Path) -> None:
    (directory / "old").mkdir()
    write(directory / "old" / "file", b"content")
    (directory / "old").rename(directory / "new")
    assert names(directory) == ["new"]
    assert (directory / "new" / "file").read_bytes() == b"content"


def test_mv_moves_a_directory(directory: Path) -> None:
    (directory / "old" / "deep").mkdir(parents=True)
    write(directory / "old" / "deep" / "file", b"content")
    run("mv", "old", "new", cwd=directory)
    assert names(directory) == ["new"]
    assert (directory / "new" / "deep" / "file").read_bytes() == b"content"


def test_a_file_seen_through_the_new_name_only(directory: Path) -> None:
    write(directory / "old", b"content")
    assert (directory / "new").exists() is False  # The kernel may cache the absence.
    (directory / "old").rename(directory / "new")
    forget_pages(directory / "new")
    assert (directory / "new").exists()
    assert not (directory / "old").exists()


def tree(root: Path) -> dict[str, bytes | str | None]:
    """Everything below ``root``: files' contents, links' targets, None for directories."""
    found: dict[str, bytes | str | None] = {}
    for path in root.rglob("*"):
        name = str(path.relative_to(root))
        if path.is_symlink():
            found[name] = os.readlink(path)
        else:
            found[name] = path.read_bytes() if path.is_file() else None
    return found


def make_tree(root: Path) -> dict[str, bytes | str | None]:
    (root / "deep" / "deeper").mkdir(parents=True)
    (root / "empty").mkdir()
    for number in range(20):
        write(root / "deep" / f"{number}", b"%d" % number * 100)
    write(root / "deep" / "deeper" / "file", b"content")
    (root / "link").symlink_to("deep/0")
    (root / "deep" / "up").symlink_to("../empty")
    return tree(root)


def test_a_whole_tree(directory: Path) -> None:
    expected = make_tree(directory / "old")
    (directory / "old").rename(directory / "new")
    assert names(directory) == ["new"]
    assert tree(directory / "new") == expected
    (directory / "new" / "deep").rename(directory / "deep")
    assert names(directory / "new") == ["empty", "link"]
    assert tree(directory / "deep")["deeper/file"] == b"content"


def test_a_directory_there_and_back(directory: Path) -> None:
    expected = make_tree(directory / "old")
    for _ in range(3):
        (directory / "old").rename(directory / "new")
        (directory / "new").rename(directory / "old")
    assert tree(directory / "old") == expected


def test_an_empty_directory(directory: Path) -> None:
    (directory / "old").mkdir()
    (directory / "old").rename(directory / "new")
    assert names(directory) == ["new"]
    assert names(directory / "new") == []
    (directory / "new").rmdir()


def test_a_directory_over_an_empty_one(directory: Path) -> None:
    expected = make_tree(directory / "old")
    (directory / "new").mkdir()
    (directory / "old").rename(directory / "new")
    assert names(directory) == ["new"]
    assert tree(directory / "new") == expected


def test_a_directory_over_one_that_is_not_empty(directory: Path) -> None:
    expected = make_tree(directory / "old")
    (directory / "new").mkdir()
    write(directory / "new" / "file", b"other")
    with fails_with(errno.ENOTEMPTY):
        (directory / "old").rename(directory / "new")
    assert tree(directory / "old") == expected
    assert tree(directory / "new") == {"file": b"other"}


def test_a_directory_over_one_with_an_unsaved_file(directory: Path) -> None:
    (directory / "old").mkdir()
    (directory / "new").mkdir()
    with opened(directory / "new" / "file", os.O_WRONLY | os.O_CREAT), fails_with(errno.ENOTEMPTY):
        (directory / "old").rename(directory / "new")


def test_a_directory_keeps_its_number(directory: Path) -> None:
    make_tree(directory / "old")
    with (
        opened(directory / "old", os.O_RDONLY) as held,
        opened(directory / "old" / "deep" / "1", os.O_RDONLY) as file,
    ):
        numbers = os.fstat(held).st_ino, os.fstat(file).st_ino
        (directory / "old").rename(directory / "new")
        assert os.fstat(held).st_ino == (directory / "new").stat().st_ino == numbers[0]
        assert os.fstat(file).st_ino == (directory / "new" / "deep" / "1").stat().st_ino
        assert os.fstat(file).st_ino == numbers[1]
        inner = os.open("deep/2", os.O_RDONLY, dir_fd=held)
        os.close(inner)


def test_a_directory_below_which_files_are_open(directory: Path) -> None:
    old, new = directory / "old", directory / "new"
    (old / "inner").mkdir(parents=True)
    write(old / "read", b"content")
    write(old / "inner" / "changed", b"0123456789")
    with (
        opened(old / "read", os.O_RDONLY) as read,
        opened(old / "inner" / "changed", os.O_RDWR) as changed,
        opened(old / "inner" / "made", os.O_RDWR | os.O_CREAT) as made,
    ):
        os.pwrite(changed, b"ab", 0)
        os.write(made, b"before ")
        old.rename(new)
        os.posix_fadvise(read, 0, 0, os.POSIX_FADV_DONTNEED)
        assert os.read(read, 20) == b"content"
        os.pwrite(changed, b"cd", 2)
        os.write(made, b"after")
        os.fsync(made)
        assert names(new / "inner") == ["changed", "made"]
    assert names(directory) == ["new"]
    assert (new / "inner" / "changed").read_bytes() == b"abcd456789"
    assert (new / "inner" / "made").read_bytes() == b"before after"


def test_a_directory_that_is_being_read(directory: Path) -> None:
    (directory / "old").mkdir()
    expected = {f"{number:03d}" for number in range(300)}
    for name in expected:
        write(directory / "old" / name, b"")
    with syscalls.reading(directory / "old") as stream:
        lines = [stream.read() for _ in range(10)]
        (directory / "old").rename(directory / "new")
        found = [line.name for line in lines if line is not None] + stream.names()
    assert len(found) == len(set(found))
    assert {name for name in found if name not in (".", "..")} == expected


def test_the_old_directory_name_is_free_again(directory: Path) -> None:
    make_tree(directory / "old")
    (directory / "old").rename(directory / "new")
    with fails_with(errno.ENOENT):
        (directory / "old" / "deep").stat()
    (directory / "old").mkdir()
    write(directory / "old" / "file", b"content")
    assert tree(directory / "old") == {"file": b"content"}


def test_noreplace_of_a_directory(directory: Path) -> None:
    (directory / "old").mkdir()
    (directory / "taken").mkdir()
    with fails_with(errno.EEXIST):  # The kernel checks it before it asks the file system.
        syscalls.renameat2(directory / "old", directory / "taken", syscalls.RENAME_NOREPLACE)
    syscalls.renameat2(directory / "old", directory / "new", syscalls.RENAME_NOREPLACE)
    assert names(directory) == ["new", "taken"]


def test_a_directory_into_what_is_below_it(directory: Path) -> None:
    (directory / "old" / "inner").mkdir(parents=True)
    with fails_with(errno.EINVAL):
        (directory / "old").rename(directory / "old" / "inner" / "deeper")
    with fails_with(errno.ENOTEMPTY):
        (directory / "old" / "inner").rename(directory / "old")
