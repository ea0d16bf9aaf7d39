"""A new object's Content-Type by its name, on a server of each cloud."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from sidecar.mounter.filesystem.inodes.inode import ROOT
from sidecar.mounter.store.content_types import content_type
from sidecar.mounter.store.interface import Store
from sidecar.units import MIB
from tests.filesystem.view import View
from tests.store.conftest import make_cloud
from tests.support import described
from tests.support.clouds import Cloud

LARGE = os.urandom(9 * MIB)
DEFAULTS = {"application/octet-stream", "binary/octet-stream"}


@pytest.fixture(params=["strict", "gcs", "azure"])
def cloud(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Cloud:
    return make_cloud(request.param, request, monkeypatch)


def seen_type(cloud: Cloud, key: str) -> object:
    found = described.seen(cloud, key)
    return found.get("content-type") or found["content_type"]


@pytest.mark.parametrize(
    ("key", "wanted"),
    [
        ("dir.html/metrics.json", "application/json"),
        ("a.JSON", "application/json"),
        ("plot.png", "image/png"),
        ("data.tar.gz", "application/gzip"),
        ("log.txt.zst", "application/zstd"),
        ("data.json.tmp", "application/json"),
        ("data.csv.part", "text/csv"),
        ("dir/.f31.txt.ZYO3zK", "text/plain"),
        ("model.safetensors", None),
        ("data.json.sha256", None),
        ("link.json.rclonelink", None),
        (".json", None),
        ("README", None),
        ("json", None),
        ("dir.json/", None),
        ("dir.json/name", None),
        ("a:b?c.png", "image/png"),
    ],
)
def test_a_type(key: str, wanted: str | None) -> None:
    assert content_type(key) == wanted


def test_a_new_file_has_a_type_by_its_ending(cloud: Cloud, writable: Store, tmp_path: Path) -> None:
    view = View(writable, tmp_path)
    view.write("metrics.json", b"{}")
    view.write("empty.txt", b"")
    view.write("large.png", LARGE)
    view.write("model.safetensors", b"1")
    view.fs.symlink(ROOT, "link.html", b"metrics.json")
    view.fs.make_directory(ROOT, "dir.html")
    view.write(".page.html.a1B2c3", b"page")
    view.rename(".page.html.a1B2c3", "page.html")
    view.rename("metrics.json", "dir.html/copy.json")
    assert seen_type(cloud, "dir.html/copy.json") == "application/json"
    assert seen_type(cloud, "empty.txt") == "text/plain"
    assert seen_type(cloud, "large.png") == "image/png"
    assert seen_type(cloud, "page.html") == "text/html"
    for key in ("model.safetensors", "link.html.rclonelink", "dir.html/"):
        assert seen_type(cloud, key) in DEFAULTS, key


def test_what_an_object_has_is_not_guessed_again(
    cloud: Cloud, writable: Store, tmp_path: Path
) -> None:
    described.write(cloud, "file.json", b"{}")
    view = View(writable, tmp_path)
    view.fs.set_attributes(view.inode("file.json"), {"mode": 0o600})
    assert seen_type(cloud, "file.json") == described.TYPE
    view.write("file.json", b"[]")  # O_TRUNC
    assert seen_type(cloud, "file.json") == described.TYPE
    view.rename("file.json", "file.png")
    assert seen_type(cloud, "file.png") == described.TYPE
