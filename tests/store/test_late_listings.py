"""A store whose listings lag behind its objects: a mount shows what it changed itself."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

import pytest

from sidecar.errors import NotEmpty, NotFound
from sidecar.mounter.store.interface import Store
from tests.filesystem.view import View
from tests.store.conftest import make_cloud
from tests.support.clouds import Cloud
from tests.support.strict_server import StrictS3Server

LIFETIME_S = 0.02


@pytest.fixture
def cloud(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Cloud:
    return make_cloud("strict", request, monkeypatch)


@pytest.fixture
def freeze(cloud: Cloud) -> Callable[[], None]:
    """Let listings show what is there now, for as long as the test takes."""
    server = cloud.server
    assert isinstance(server, StrictS3Server)
    return lambda: server.settings(cloud.bucket, list_lag_s=3600)


@pytest.fixture
def view(store: Store, tmp_path: Path) -> View:
    return View(store, tmp_path, ttl_s=LIFETIME_S)


def outlive() -> None:
    """Wait until nothing that was known counts any more."""
    time.sleep(2 * LIFETIME_S)


def is_there(view: View, path: str) -> bool:
    """What stat says, and the listing must say too."""
    outlive()
    try:
        view.stat(path)
        found = True
    except NotFound:
        found = False
    outlive()
    directory, _, name = path.rpartition("/")
    assert (name in view.names(directory)) == found
    try:
        view.stat(path)  # of the listing
    except NotFound:
        assert not found
    return found


def test_what_was_made_is_shown(view: View, freeze: Callable[[], None]) -> None:
    freeze()
    view.write("file", b"content")
    view.fs.make_directory(view.inode(""), "directory")
    view.fs.symlink(view.inode(""), "link", b"file")
    view.write("directory/inner", b"")
    view.write("saved.tmp", b"content")
    view.rename("saved.tmp", "saved")
    for path in ("file", "directory", "link", "directory/inner", "saved"):
        assert is_there(view, path), path
    assert not is_there(view, "saved.tmp")
    assert sorted(view.names()) == ["directory", "file", "link", "saved"]
    assert view.read("saved") == b"content"


def test_a_successor_shows_what_was_made(
    store: Store, tmp_path: Path, freeze: Callable[[], None]
) -> None:
    """The changes were made by a worker that was killed."""
    one = View(store, tmp_path, ttl_s=LIFETIME_S)
    one.fs.recovery.begin()
    one.write("before", b"old")
    freeze()
    one.write("file", b"content")
    one.write("before", b"new content")
    one.fs.make_directory(one.inode(""), "directory")
    one.write("directory/inner", b"")
    one.fs.symlink(one.inode(""), "link", b"file")
    two = View(store, tmp_path, ttl_s=LIFETIME_S)
    two.fs.recovery.restore()
    for path in ("file", "directory", "link", "directory/inner"):
        assert is_there(two, path), path
    assert sorted(two.names()) == ["before", "directory", "file", "link"]
    assert two.stat("before").size_bytes == len(b"new content")


def test_what_was_removed_is_not_shown(
    cloud: Cloud, view: View, freeze: Callable[[], None]
) -> None:
    for key in ("file", "renamed", "link.rclonelink", "directory/inner", "made/"):
        cloud.write(key, b"" if key.endswith("/") else b"content")
    freeze()
    assert sorted(view.names()) == ["directory", "file", "link", "made", "renamed"]
    view.unlink("file")
    view.unlink("link")
    view.rename("renamed", "new")
    view.unlink("directory/inner")
    for name in ("directory", "made"):
        view.fs.remove_directory(view.inode(""), name)
    for path in ("file", "link", "renamed", "directory", "made"):
        assert not is_there(view, path), path
    assert view.names() == ["new"]


def test_what_was_written_again_is_the_new_version(
    cloud: Cloud, view: View, freeze: Callable[[], None]
) -> None:
    cloud.write("file", b"old")
    freeze()
    view.write("file", b"new content")
    outlive()
    view.names()
    assert view.stat("file").size_bytes == 11
    outlive()
    assert view.stat("file").size_bytes == 11
    assert view.read("file") == b"new content"


def test_a_directory_with_new_files_is_not_empty(view: View, freeze: Callable[[], None]) -> None:
    freeze()
    view.fs.make_directory(view.inode(""), "directory")
    view.write("directory/file", b"content")
    with pytest.raises(NotEmpty):
        view.fs.remove_directory(view.inode(""), "directory")


def test_a_directory_that_lost_its_last_file_stays(
    cloud: Cloud, store: Store, view: View, freeze: Callable[[], None]
) -> None:
    for number in range(3):
        cloud.write(f"directory/{number}", b"content")
    freeze()
    directory = view.inode("directory")
    for number in range(3):
        view.fs.unlink(directory, str(number))
        outlive()
    assert store.head("directory/").size_bytes == 0


def test_a_directory_is_renamed_with_its_new_files(
    cloud: Cloud, view: View, freeze: Callable[[], None]
) -> None:
    cloud.write("old/sub/gone", b"content")
    cloud.write("new/was/here", b"content")
    freeze()
    view.unlink("new/was/here")
    view.fs.remove_directory(view.inode("new"), "was")
    view.fs.remove_directory(view.inode(""), "new")
    view.unlink("old/sub/gone")
    view.write("old/sub/file", b"content")
    view.fs.make_directory(view.inode("old"), "empty")
    view.fs.make_directory(view.inode("old/sub"), "deep")
    view.write("old/sub/deep/file", b"deep content")
    view.rename("old", "new")
    assert not is_there(view, "old")
    for path in ("new", "new/empty", "new/sub", "new/sub/deep", "new/sub/file"):
        assert is_there(view, path), path
    assert not is_there(view, "new/sub/gone")
    assert not is_there(view, "new/was")
    assert view.read("new/sub/deep/file") == b"deep content"
    freeze()  # with what is there by now
    kept = [key for key in sorted(cloud.keys()) if not key.endswith("/")]
    assert kept == ["new/sub/deep/file", "new/sub/file"]


def test_it_is_known_when_the_kernel_has_forgotten_the_directory(
    view: View, freeze: Callable[[], None], store: Store
) -> None:
    store.put("directory/first", b"")
    freeze()
    view.write("directory/second", b"content")
    inode = view.inode("directory")
    file = view.inode("directory/second")
    for number in (file, inode):
        view.fs.forget(number, 1 << 30)
    assert is_there(view, "directory/second")


@pytest.mark.parametrize("listed_before", [False, True])
def test_what_another_client_changes_since_is_seen(
    cloud: Cloud, view: View, listed_before: bool
) -> None:
    """This store's listings are not late, so whether they are believed does not depend on time."""
    for name in ("deleted", "replaced", "removed"):
        view.write(name, b"content")
    view.unlink("removed")
    view.fs.make_directory(view.inode(""), "directory")
    view.fs.remove_directory(view.inode(""), "directory")
    if listed_before:
        outlive()
        view.names()
    client = cloud.server.client()  # type: ignore[union-attr]
    client.remove_object(cloud.bucket, "deleted")
    cloud.write("replaced", b"another content")
    cloud.write("removed", b"content again")
    cloud.write("directory/file", b"content")
    assert not is_there(view, "deleted")
    assert is_there(view, "removed")
    assert is_there(view, "directory")
    outlive()
    assert view.stat("replaced").size_bytes == 15
    assert sorted(view.names()) == ["directory", "removed", "replaced"]


def test_who_is_right_of_many_names_is_asked_of_some(
    cloud: Cloud, view: View, store: Store
) -> None:
    """Files that were made, and deleted by others before this mount listed them."""
    assert isinstance(cloud.server, StrictS3Server)
    names = [f"{number:03}" for number in range(100)]
    for name in names:
        view.write(name, b"content")
    store.delete_many(names)
    outlive()
    cloud.server.reset_counts()
    assert view.names() == []
    assert cloud.server.counts().requests["HeadObject"] == 64
    outlive()
    cloud.server.reset_counts()
    assert view.names() == []
    assert cloud.server.counts().requests["HeadObject"] == 0


def test_a_listing_that_is_of_now_is_not_doubted(cloud: Cloud, view: View, store: Store) -> None:
    """What this mount made costs no request more, and nor does what was listed since."""
    assert isinstance(cloud.server, StrictS3Server)
    names = [f"{number:03}" for number in range(100)]
    for name in names:
        view.write(name, b"content")
    outlive()
    cloud.server.reset_counts()
    assert view.names() == names
    assert cloud.server.counts().requests == {"ListObjectsV2": 1}
