"""Renaming directories, on a server of each cloud."""

from __future__ import annotations

from pathlib import Path

import pytest

from sidecar.mounter.store.interface import Store
from tests.filesystem.view import View
from tests.support.clouds import Cloud

pytestmark = pytest.mark.filterwarnings("ignore:Sending a large body:ResourceWarning")

METADATA = {"mode": str(0o100600), "mtime": "1.5"}


def test_a_tree_goes_to_another_name(cloud: Cloud, store: Store, tmp_path: Path) -> None:
    content = {f"old/{n % 3}/ü {n}": b"%d" % n * 100 for n in range(30)}
    for key, data in content.items():
        cloud.write(key, data, METADATA)
    store.put("old/", b"", {"mode": str(0o040700)})
    store.put("old/empty/", b"")
    store.put("old/link.rclonelink", b"empty")
    store.put("older", b"stays")
    view = View(store, tmp_path)
    view.rename("old", "new")
    moved = {f"new{key[3:]}": data for key, data in content.items()}
    keys = cloud.keys()
    assert sorted(key for key in keys if not key.endswith("/")) == sorted(
        [*moved, "new/link.rclonelink", "older"]
    )
    assert sorted(view.names()) == ["new", "older"]
    assert view.names("new/empty") == []
    for key, data in moved.items():
        assert cloud.read(key) == data
    if cloud.name != "s3":  # JuiceFS's gateway keeps no metadata of such an object
        assert store.head("new/").metadata == {"mode": str(0o040700)}
    assert store.head("new/1/ü 1").metadata == METADATA
    assert view.read("new/1/ü 1") == b"1" * 100
