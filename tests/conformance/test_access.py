"""Permission bits, for another user."""

from __future__ import annotations

import errno
import os
import subprocess
from pathlib import Path

import pytest

from tests.conformance.programs import NOBODY, as_nobody, write


def test_what_everybody_may_read(directory: Path) -> None:
    write(directory / "file", b"content").chmod(0o644)
    assert as_nobody("assert open('file').read() == 'content'", directory) == 0
    assert as_nobody("assert os.listdir('.') == ['file']", directory) == 0


@pytest.mark.parametrize(
    "statement",
    [
        pytest.param("open('file', 'a')", id="write"),
        pytest.param("open('new', 'w')", id="create"),
        pytest.param("os.truncate('file', 0)", id="truncate"),
        pytest.param("os.unlink('file')", id="unlink"),
        pytest.param("os.mkdir('new')", id="mkdir"),
        pytest.param("os.rmdir('inner')", id="rmdir"),
        pytest.param("os.rename('file', 'new')", id="rename"),
    ],
)
def test_what_only_the_owner_may(directory: Path, statement: str) -> None:
    write(directory / "file", b"content").chmod(0o644)
    (directory / "inner").mkdir()
    assert as_nobody(statement, directory) == errno.EACCES
    assert (directory / "file").read_bytes() == b"content"


@pytest.mark.parametrize(
    "statement",
    [
        pytest.param("os.chmod('file', 0o777)", id="chmod"),
        pytest.param("os.chown('file', os.getuid(), -1)", id="chown"),
        pytest.param("os.utime('file', (1, 1))", id="utime"),
    ],
)
def test_attributes_are_the_owner_s(directory: Path, statement: str) -> None:
    write(directory / "file", b"content").chmod(0o644)
    assert as_nobody(statement, directory) == errno.EPERM


def test_a_file_without_bits_for_others(directory: Path) -> None:
    write(directory / "file", b"content").chmod(0o600)
    assert as_nobody("open('file')", directory) == errno.EACCES
    assert as_nobody("assert not os.access('file', os.R_OK)", directory) == 0


def test_a_file_given_to_another_user_is_that_user_s(directory: Path) -> None:
    path = write(directory / "file", b"content")
    path.chmod(0o600)
    os.chown(path, NOBODY, NOBODY)
    assert as_nobody("assert open('file').read() == 'content'", directory) == 0
    assert as_nobody("f = open('file', 'w'); f.write('new'); f.close()", directory) == 0
    assert path.read_bytes() == b"new"


def test_a_program_runs_only_with_its_bit(directory: Path) -> None:
    path = write(directory / "program", b"#!/bin/sh\nexit 7\n")
    path.chmod(0o644)
    assert not os.access(path, os.X_OK)
    path.chmod(0o755)
    assert os.access(path, os.X_OK)
    assert subprocess.run([path], check=False).returncode == 7
