"""Which names a file may have."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from tests.conformance.programs import fails_with

NAMES = {
    "space": " leading, trailing ",
    "newline": "two\nlines",
    "percent": "100%25 %s %2F",
    "plus": "a+b&c=d?e#f",
    "quotes": "'\"`$(x)\\",
    "unicode": "naïve-日本語-😀",
    "control": "\x01\x1f\x7f",
    "dots": "...",
    "colon": "c:\\x:y",
    "one_byte": "x",
    "255_bytes": "n" * 255,
    "255_bytes_of_unicode": "é" * 127 + "n",
}


@pytest.mark.parametrize("kind", NAMES)
def test_a_name_comes_back_as_it_was_given(directory: Path, kind: str) -> None:
    name = NAMES[kind]
    path = directory / name
    path.write_text(kind)
    assert os.listdir(directory) == [name]
    assert path.read_text() == kind
    path.rename(directory / "other")
    (directory / "other").rename(path)
    path.unlink()
    assert os.listdir(directory) == []


@pytest.mark.parametrize("kind", NAMES)
def test_a_directory_may_have_the_name(directory: Path, kind: str) -> None:
    path = directory / NAMES[kind]
    path.mkdir()
    (path / "inner").write_text(kind)
    assert os.listdir(directory) == [NAMES[kind]]
    assert (path / "inner").read_text() == kind


def test_composed_and_decomposed_letters_are_two_names(directory: Path) -> None:
    names = {"\u00e9", "e\u0301"}
    for name in names:
        (directory / name).write_text(name)
    assert set(os.listdir(directory)) == names


def test_upper_and_lower_case_are_two_names(directory: Path) -> None:
    for name in ("name", "NAME"):
        (directory / name).write_text(name)
    assert (directory / "name").read_text() == "name"
    assert (directory / "NAME").read_text() == "NAME"


@pytest.mark.parametrize("name", ["n" * 256, "é" * 128], ids=["ascii", "unicode"])
def test_over_255_bytes_is_too_long(directory: Path, name: str) -> None:
    with fails_with(errno.ENAMETOOLONG):
        (directory / name).write_text("")
    with fails_with(errno.ENAMETOOLONG):
        (directory / name).mkdir()
    with fails_with(errno.ENAMETOOLONG):
        os.stat(directory / name)
    (directory / "short").write_text("")
    with fails_with(errno.ENAMETOOLONG):
        (directory / "short").rename(directory / name)


def test_a_name_that_is_not_utf_8(directory: Path) -> None:
    path = os.fsencode(directory) + b"/\xff\xfe"
    with open(path, "w"):
        pass
    assert os.listdir(os.fsencode(directory)) == [b"\xff\xfe"]


def test_an_empty_name_does_not_exist(directory: Path) -> None:
    with fails_with(errno.ENOENT):
        os.stat("")
    with fails_with(errno.ENOENT):
        os.stat(directory / "missing")
