"""mkdir(2), rmdir(2), unlink(2) and readdir(3)."""

from __future__ import annotations

import errno
import os
import shutil
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from pathlib import Path

from tests.conformance import syscalls
from tests.conformance.programs import fails_with, opened, run, write

MANY = 3_000


def fill(directory: Path, count: int) -> set[str]:
    names = {f"entry-{number:05}" for number in range(count)}
    for name in names:
        with opened(directory / name, os.O_WRONLY | os.O_CREAT):
            pass
    return names


# --- mkdir, rmdir, unlink ------------------------------------------------------------------


def test_mkdir_and_rmdir(directory: Path) -> None:
    (directory / "inner").mkdir()
    assert os.listdir(directory) == ["inner"]
    assert os.listdir(directory / "inner") == []
    (directory / "inner").rmdir()
    assert os.listdir(directory) == []
    with fails_with(errno.ENOENT):
        (directory / "inner").stat()
    (directory / "inner").mkdir()


def test_mkdir_refused(directory: Path) -> None:
    write(directory / "file", b"")
    (directory / "inner").mkdir()
    for name in ("file", "inner", "."):
        with fails_with(errno.EEXIST):
            os.mkdir(os.path.join(directory, name))
    with fails_with(errno.ENOENT):
        (directory / "missing" / "inner").mkdir()
    with fails_with(errno.ENOTDIR):
        (directory / "file" / "inner").mkdir()


def test_rmdir_refused(directory: Path) -> None:
    write(directory / "file", b"")
    (directory / "inner" / "deep").mkdir(parents=True)
    with fails_with(errno.ENOTEMPTY):
        (directory / "inner").rmdir()
    with fails_with(errno.ENOENT):
        (directory / "missing").rmdir()
    with fails_with(errno.ENOTDIR):
        (directory / "file").rmdir()
    with fails_with(errno.EINVAL):
        os.rmdir(f"{directory}/inner/.")
    assert os.listdir(directory / "inner") == ["deep"]


def test_rmdir_of_a_directory_with_a_file_that_is_being_written(directory: Path) -> None:
    (directory / "inner").mkdir()
    with opened(directory / "inner" / "file", os.O_WRONLY | os.O_CREAT) as fd:
        os.write(fd, b"content")
        with fails_with(errno.ENOTEMPTY):
            (directory / "inner").rmdir()
    assert (directory / "inner" / "file").read_bytes() == b"content"


def test_a_directory_that_lost_its_last_file_stays(directory: Path) -> None:
    (directory / "inner").mkdir()
    write(directory / "inner" / "file", b"").unlink()
    assert (directory / "inner").is_dir()
    write(directory / "inner" / "file", b"").rename(directory / "file")
    assert os.listdir(directory / "inner") == []
    (directory / "inner").rmdir()


def test_unlink(directory: Path) -> None:
    write(directory / "file", b"content").unlink()
    assert os.listdir(directory) == []
    with fails_with(errno.ENOENT):
        (directory / "file").stat()
    with fails_with(errno.ENOENT):
        (directory / "file").unlink()
    write(directory / "file", b"again")
    assert (directory / "file").read_bytes() == b"again"


def test_unlink_of_a_directory(directory: Path) -> None:
    (directory / "inner").mkdir()
    with fails_with(errno.EISDIR):
        os.unlink(directory / "inner")


def test_unlink_while_it_is_read(directory: Path) -> None:
    path = write(directory / "file", b"content" * 100_000)
    with opened(path, os.O_RDONLY) as fd:
        path.unlink()
        assert os.fstat(fd).st_nlink == 0
        assert os.fstat(fd).st_size == 700_000
        assert os.pread(fd, 7, 699_993) == b"content"
    assert os.listdir(directory) == []


def test_unlink_while_a_duplicate_is_read_elsewhere(directory: Path) -> None:
    path = write(directory / "file", b"content")
    with opened(path, os.O_RDONLY) as one, opened(path, os.O_RDONLY) as other:
        path.unlink()
        write(path, b"another")
        assert os.read(one, 20) == os.read(other, 20) == b"content"
    assert path.read_bytes() == b"another"


# --- readdir -------------------------------------------------------------------------------


def test_dot_and_dot_dot(directory: Path) -> None:
    (directory / "inner").mkdir()
    with syscalls.reading(directory / "inner") as stream:
        lines = {line.name for line in iter(stream.read, None)}
    assert lines == {".", ".."}
    assert (directory / "inner" / ".." / "inner").is_dir()


def test_types_are_in_the_listing(directory: Path) -> None:
    write(directory / "file", b"")
    (directory / "inner").mkdir()
    with os.scandir(directory) as entries:
        types = {entry.name: entry.is_dir(follow_symlinks=False) for entry in entries}
    assert types == {"file": False, "inner": True}


def test_every_name_once(directory: Path) -> None:
    names = fill(directory, MANY)
    assert sorted(os.listdir(directory)) == sorted(names)
    with syscalls.reading(directory) as stream:
        assert sorted(stream.names()) == sorted(names)


def test_a_name_that_is_being_written_is_listed_once(directory: Path) -> None:
    with opened(directory / "new", os.O_WRONLY | os.O_CREAT) as fd:
        assert os.listdir(directory) == ["new"]
        os.fsync(fd)
        assert os.listdir(directory) == ["new"]
    assert os.listdir(directory) == ["new"]


def test_rm_of_a_large_directory(directory: Path) -> None:
    (directory / "inner").mkdir()
    fill(directory / "inner", MANY)
    run("rm", "-r", directory / "inner")
    assert os.listdir(directory) == []


def test_names_are_stable_while_others_are_deleted(directory: Path) -> None:
    names = fill(directory, 1_000)
    with syscalls.reading(directory) as stream:
        seen = [line.name for line in islice(iter(stream.read, None), 100)]
        doomed = set(sorted(names)[::2])
        for name in doomed:
            (directory / name).unlink()
        seen += stream.names()
    for name in names - doomed:
        assert seen.count(name) == 1, name
    assert len(seen) == len(set(seen))


def test_names_are_stable_while_others_are_made(directory: Path) -> None:
    names = fill(directory, 1_000)
    with syscalls.reading(directory) as stream:
        seen = [line.name for line in islice(iter(stream.read, None), 100)]
        for number in range(100):
            write(directory / f"a-new-one-{number}", b"")
        seen += stream.names()
    for name in names:
        assert seen.count(name) == 1, name
    assert len(seen) == len(set(seen))


def test_names_are_stable_while_new_files_are_saved(directory: Path) -> None:
    names = [f"open-{number:03}" for number in range(400)]
    descriptors = [os.open(directory / name, os.O_WRONLY | os.O_CREAT) for name in names]
    try:
        with syscalls.reading(directory) as stream:
            seen = [line.name for line in islice(iter(stream.read, None), 50)]
            for fd in descriptors[::3]:
                os.fsync(fd)
            seen += stream.names()
    finally:
        for fd in descriptors:
            os.close(fd)
    seen = [name for name in seen if name not in (".", "..")]
    assert sorted(seen) == names


def test_rewinddir_shows_what_changed(directory: Path) -> None:
    write(directory / "goes", b"")
    write(directory / "stays", b"")
    with syscalls.reading(directory) as stream:
        assert sorted(stream.names()) == ["goes", "stays"]
        (directory / "goes").unlink()
        write(directory / "comes", b"")
        stream.rewind()
        assert sorted(stream.names()) == ["comes", "stays"]


def test_telldir_and_seekdir(directory: Path) -> None:
    fill(directory, 500)
    with syscalls.reading(directory) as stream:
        first = [stream.read() for _ in range(200)]
        position = stream.tell()
        rest = stream.names()
        assert len(first) + len(rest) == 502
        stream.seek(position)
        assert stream.names() == rest


def test_an_open_directory_that_is_removed(directory: Path) -> None:
    (directory / "inner").mkdir()
    with syscalls.reading(directory / "inner") as stream:
        (directory / "inner").rmdir()
        assert stream.names() == []
    assert not (directory / "inner").exists()


def test_several_threads_in_one_directory(directory: Path) -> None:
    def work(worker: int) -> None:
        for number in range(30):
            name = directory / f"{worker}-{number}"
            name.write_text(name.name)
            assert name.read_text() == name.name
            assert name.name in os.listdir(directory)
            if number % 2:
                name.unlink()

    with ThreadPoolExecutor(6) as threads:
        list(threads.map(work, range(6)))
    left = {f"{worker}-{number}" for worker in range(6) for number in range(0, 30, 2)}
    assert set(os.listdir(directory)) == left


# --- trees ---------------------------------------------------------------------------------


def test_a_deep_tree(directory: Path) -> None:
    deepest = directory.joinpath(*["level-of-a-deep-tree"] * 40)
    deepest.mkdir(parents=True)
    write(deepest / "file", b"content")
    assert sum(1 for _ in os.walk(directory)) == 41
    assert (deepest / "file").read_bytes() == b"content"
    shutil.rmtree(directory / "level-of-a-deep-tree")
    assert os.listdir(directory) == []


def test_a_name_is_a_file_or_a_directory(directory: Path) -> None:
    write(directory / "name", b"")
    with fails_with(errno.EEXIST):
        (directory / "name").mkdir()
    (directory / "name").unlink()
    (directory / "name").mkdir()
    with fails_with(errno.EISDIR):
        (directory / "name").write_bytes(b"")
    (directory / "name").rmdir()
    write(directory / "name", b"content")
    assert (directory / "name").read_bytes() == b"content"


def test_names_that_share_a_beginning(directory: Path) -> None:
    for name in ("a", "a-b", "a.txt", "a b", "aa", "a0"):
        (directory / name).mkdir()
        write(directory / name / "inner", name.encode())
    assert sorted(os.listdir(directory)) == sorted(["a", "a-b", "a.txt", "a b", "aa", "a0"])
    (directory / "a" / "inner").unlink()
    (directory / "a").rmdir()
    assert (directory / "a-b" / "inner").read_bytes() == b"a-b"
    with fails_with(errno.ENOENT):
        (directory / "a").stat()
