"""Copies made by the kernel and by ordinary programs."""

from __future__ import annotations

import os
import random
import shutil
import tarfile
from pathlib import Path

from tests.conformance.programs import forget_pages, opened, run, write

CONTENT = random.Random(9).randbytes(3_000_000)


def test_copy_file_range(directory: Path) -> None:
    source = write(directory / "source", CONTENT)
    with (
        opened(source, os.O_RDONLY) as reader,
        opened(directory / "copy", os.O_WRONLY | os.O_CREAT) as writer,
    ):
        left = len(CONTENT)
        while left:
            copied = os.copy_file_range(reader, writer, left)
            assert copied > 0
            left -= copied
    forget_pages(directory / "copy")
    assert (directory / "copy").read_bytes() == CONTENT


def test_sendfile(directory: Path) -> None:
    source = write(directory / "source", CONTENT)
    with (
        opened(source, os.O_RDONLY) as reader,
        opened(directory / "copy", os.O_WRONLY | os.O_CREAT) as writer,
    ):
        offset = 0
        while sent := os.sendfile(writer, reader, offset, len(CONTENT)):
            offset += sent
    forget_pages(directory / "copy")
    assert (directory / "copy").read_bytes() == CONTENT


def test_cp_reflink_auto(directory: Path) -> None:
    write(directory / "source", CONTENT)
    run("cp", "--reflink=auto", "source", "copy", cwd=directory)
    forget_pages(directory / "copy")
    assert (directory / "copy").read_bytes() == CONTENT


def test_cp_keeps_time_and_mode(directory: Path) -> None:
    source = write(directory / "source", b"content")
    source.chmod(0o640)
    os.utime(source, (1_000_000_000, 1_000_000_000))
    run("cp", "-p", "source", "copy", cwd=directory)
    found = (directory / "copy").stat()
    assert found.st_mtime == 1_000_000_000
    assert found.st_mode == source.stat().st_mode


def test_copytree(directory: Path) -> None:
    (directory / "source" / "deep").mkdir(parents=True)
    write(directory / "source" / "deep" / "file", b"content")
    shutil.copytree(directory / "source", directory / "copy")
    assert (directory / "copy" / "deep" / "file").read_bytes() == b"content"


def test_cp_of_a_private_directory(directory: Path, tmp_path: Path) -> None:
    (tmp_path / "source").mkdir(0o700)
    (tmp_path / "source" / "file").write_bytes(b"content")
    run("cp", "-a", tmp_path / "source", directory / "copy")
    assert (directory / "copy" / "file").read_bytes() == b"content"


def test_tar_in_and_out(directory: Path) -> None:
    (directory / "source" / "deep").mkdir(parents=True)
    for number in range(20):
        write(directory / "source" / "deep" / f"{number}", b"%d" % number * 1_000)
    run("tar", "cf", "all.tar", "source", cwd=directory)
    (directory / "out").mkdir()
    run("tar", "xf", "../all.tar", cwd=directory / "out")
    run("diff", "-r", "source", "out/source", cwd=directory)
    with tarfile.open(directory / "all.tar") as archive:
        assert len(archive.getnames()) == 22


def test_find_and_du(directory: Path) -> None:
    (directory / "inner").mkdir()
    write(directory / "inner" / "file", bytes(10_000))
    with opened(directory / "inner" / "file", os.O_RDONLY) as fd:
        os.fsync(fd)  # a local file system counts blocks only then
    found = run("find", ".", "-type", "f", "-size", "+9k", cwd=directory)
    assert found == "./inner/file\n"
    assert int(run("du", "-s", "--apparent-size", "-B1", ".", cwd=directory).split()[0]) >= 10_000


def test_programs_that_want_extended_attributes(directory: Path) -> None:
    (directory / "source").mkdir()
    write(directory / "source" / "file", b"content")
    run("cp", "-a", "source", "copy", cwd=directory)
    run("cp", "--preserve=all", "source/file", "file", cwd=directory)
    run("tar", "--xattrs", "--acls", "-cf", "all.tar", "source", cwd=directory)
    (directory / "out").mkdir()
    run("tar", "--xattrs", "--acls", "-xf", "../all.tar", cwd=directory / "out")
    run("rsync", "-aX", "source/", "synced/", cwd=directory)
    for name in ("copy/file", "file", "out/source/file", "synced/file"):
        assert (directory / name).read_bytes() == b"content"
