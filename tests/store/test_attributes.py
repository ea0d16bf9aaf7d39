"""Attributes on a server of each cloud: what one mount sets, the next one shows."""

from __future__ import annotations

import os
import stat
import time
from pathlib import Path

from sidecar.mounter.filesystem.inodes.attributes import Caller
from sidecar.mounter.filesystem.inodes.inode import ROOT
from sidecar.mounter.store.interface import Store
from tests.filesystem.view import View
from tests.support.clouds import Cloud
from tests.support.servers import MinioServer

CHANGES = {"mode": 0o640, "uid": 1000, "gid": 1001, "mtime_ns": 1_000_000_000_123_456_789}


def test_a_listing_brings_metadata_where_it_can(cloud: Cloud, writable: Store) -> None:
    writable.put("file", b"", {"mode": "33184", "mtime": "1.5", "a-b": "c"})
    writable.put("plain", b"")
    found = {info.key: info.metadata for info in writable.list_page("").objects}
    if cloud.name == "s3":
        assert found == {"file": None, "plain": None}
    else:
        assert found == {"file": {"mode": "33184", "mtime": "1.5", "a-b": "c"}, "plain": {}}


def test_a_listing_brings_none_unless_it_is_wanted(store: Store) -> None:
    store.put("file", b"", {"mode": "33184"})
    assert [info.metadata for info in store.list_page("").objects] == [None]


def test_what_one_mount_sets_the_next_one_shows(
    cloud: Cloud, writable: Store, tmp_path: Path
) -> None:
    one = View(writable, tmp_path / "one")
    one.write("file", b"content")
    one.fs.make_directory(ROOT, "dir", 0o700)
    one.fs.set_attributes(one.inode("file"), CHANGES)
    assert one.fs.sync(time.monotonic() + 60) == {}  # the file was closed just before
    two = View(writable, tmp_path / "two")
    assert two.names() == ["dir", "file"]
    found = two.stat("file")
    assert (stat.S_IMODE(found.mode), found.uid, found.gid) == (0o640, 1000, 1001)
    assert found.mtime_ns == CHANGES["mtime_ns"]
    two.write("file", b"again")
    assert stat.S_IMODE(View(writable, tmp_path / "three").stat("file").mode) == 0o640
    if cloud.name != "s3":  # JuiceFS's gateway keeps no metadata of such an object
        assert stat.S_IMODE(two.stat("dir").mode) == 0o700


def test_who_made_it_is_shown_by_the_next_mount(
    cloud: Cloud, writable: Store, tmp_path: Path
) -> None:
    maker = Caller(1000, 1001)
    one = View(writable, tmp_path / "one")
    _, handle = one.fs.create(ROOT, "file", 0o640, os.O_WRONLY, maker)
    one.fs.flush(handle)
    one.fs.release(handle)
    one.fs.symlink(ROOT, "link", b"x", maker)
    one.fs.make_directory(ROOT, "dir", 0o750, maker)
    two = View(writable, tmp_path / "two")
    # JuiceFS's gateway keeps no metadata of a directory's object.
    names = ("file", "link") if isinstance(cloud.server, MinioServer) else ("file", "link", "dir")
    for name in names:
        found = two.stat(name)
        assert (found.uid, found.gid) == maker
    assert stat.S_IMODE(two.stat("file").mode) == 0o640
