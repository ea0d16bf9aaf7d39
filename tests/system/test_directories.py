"""No link is followed, wherever it is, and nothing but a regular file is opened."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from sidecar.mounter.system import directories
from sidecar.mounter.system.directories import PathBlocked, open_directory, open_file
from tests.support import planted
from tests.support.swapper import Swapper


@contextmanager
def opened(path: Path, **settings: bool) -> Iterator[int]:
    descriptor = open_directory(path, **settings)  # type: ignore[arg-type]
    try:
        yield descriptor
    finally:
        os.close(descriptor)


def test_a_directory_is_reached_and_made(tmp_path: Path) -> None:
    made = []
    path = tmp_path / "a/b/a"
    descriptor = open_directory(path, make=True, on_made=lambda _, name: made.append(name))
    try:
        assert os.path.samestat(os.fstat(descriptor), path.stat())
        assert os.listdir(descriptor) == []
    finally:
        os.close(descriptor)
    assert made == ["a", "b", "a"]
    with opened(path, make=True), opened(path, walk_only=True):
        pass
    with opened(Path("/")) as root:
        assert "proc" in os.listdir(root)


def test_what_is_missing_is_named(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError) as caught:
        open_directory(tmp_path / "a/b")
    assert caught.value.filename == str(tmp_path / "a")


@pytest.mark.parametrize("place", ["a", "a/b", "a/b/c"])
@pytest.mark.parametrize("make", [True, False])
def test_a_link_is_an_error_that_names_it(tmp_path: Path, place: str, make: bool) -> None:
    outside = tmp_path / "outside"
    (outside / "b/c").mkdir(parents=True)
    (outside / "c").mkdir()
    link = tmp_path / "in" / place
    link.parent.mkdir(parents=True)
    link.symlink_to(outside)
    with pytest.raises(PathBlocked, match=f"`{link}` is a symbolic link, and no path") as caught:
        open_directory(tmp_path / "in/a/b/c", make=make)
    assert caught.value.filename == str(link)
    assert sorted(os.listdir(outside)) == ["b", "c"]


def test_a_link_that_leads_nowhere_is_not_replaced(tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(tmp_path / "absent")
    with pytest.raises(PathBlocked):
        open_directory(tmp_path / "link", make=True)
    assert not (tmp_path / "absent").exists()


@pytest.mark.parametrize(
    ("plant", "what"),
    [
        (planted.fifo, "is a FIFO"),
        (planted.device, "is a device"),
        (planted.link, "is a symbolic link"),
        (planted.directory, "is a directory"),
    ],
)
@pytest.mark.parametrize(
    "flags", [os.O_RDONLY, os.O_WRONLY | os.O_TRUNC, os.O_RDWR | os.O_CREAT, os.O_RDWR | os.O_EXCL]
)
def test_only_a_regular_file_is_opened(
    tmp_path: Path, plant: planted.Plant, what: str, flags: int
) -> None:
    outside = tmp_path / "outside"
    outside.write_text("outside")
    plant(tmp_path / "name", outside)
    with opened(tmp_path) as here, pytest.raises(PathBlocked, match=what):
        open_file(here, "name", flags)
    assert outside.read_text() == "outside"


def test_a_file_is_made_and_opened_again(tmp_path: Path) -> None:
    with opened(tmp_path) as here:
        with pytest.raises(FileNotFoundError):
            open_file(here, "name", os.O_RDWR)
        for _ in range(2):
            os.close(open_file(here, "name", os.O_RDWR | os.O_CREAT))
    assert stat.S_IMODE((tmp_path / "name").stat().st_mode) == 0o600


def test_whatever_has_a_name_is_removed_and_nothing_outside(tmp_path: Path) -> None:
    outside, place = tmp_path / "outside", tmp_path / "in"
    (outside / "kept").mkdir(parents=True)
    place.mkdir()
    for plant in (planted.fifo, planted.device, planted.link, planted.directory):
        plant(place / plant.__name__, outside / "kept")
    (place / "tree/inner").mkdir(parents=True)
    (place / "tree/inner/link").symlink_to(outside)
    (place / "plain").symlink_to(outside)
    with opened(place) as here:
        for name in (*os.listdir(place), "absent"):
            directories.remove(here, name)
    assert os.listdir(place) == []
    assert os.listdir(outside) == ["kept"]


def test_a_pinned_path_leads_to_the_same_directory(tmp_path: Path) -> None:
    pinned = directories.pinned(tmp_path / "a")
    try:
        (tmp_path / "a").rename(tmp_path / "b")
        (tmp_path / "a").mkdir()
        (pinned / "file").write_text("")
        assert os.listdir(tmp_path / "b") == ["file"]
        assert os.listdir(tmp_path / "a") == []
    finally:
        os.close(int(pinned.name))


def test_a_directory_that_is_swapped_for_a_link_all_the_time(tmp_path: Path) -> None:
    """Whatever the moment: what is made is made inside, or not at all."""
    outside, inside = tmp_path / "outside", tmp_path / "in"
    outside.mkdir()
    inside.mkdir()
    link = inside / "theirs"
    link.symlink_to(outside)
    reached = 0
    with Swapper(inside / "a", link):
        for number in range(3000):
            try:
                os.close(open_directory(inside / f"a/{number}/b", make=True))
                reached += 1
            except (NotADirectoryError, FileNotFoundError):
                pass
    assert reached
    assert os.listdir(outside) == []
