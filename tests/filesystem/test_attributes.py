"""Mode, owner and times are kept with objects: what is read back, and at what cost."""

from __future__ import annotations

import os
import stat
import threading
import time
from pathlib import Path

import pytest

from sidecar.errors import Unsupported, WouldBlock
from sidecar.mounter.filesystem.inodes.attributes import Caller, from_metadata, to_metadata
from sidecar.mounter.filesystem.inodes.inode import ROOT
from sidecar.mounter.store.interface import ObjectInfo
from tests.filesystem.view import View
from tests.support.memory_store import MemoryStore, bare_store, before

CHANGES = {"mode": 0o600, "uid": 7, "gid": 8, "mtime_ns": 1_000_000_000_000_000_005}
PAST_NS = -5_000_000_001
STORES = [MemoryStore, bare_store]


def metadata_prefetch(store: MemoryStore) -> int:
    return store.requests.get("head", 0)


def shown(view: View, path: str) -> dict[str, int]:
    found = view.stat(path)
    return {
        "mode": stat.S_IMODE(found.mode),
        "uid": found.uid,
        "gid": found.gid,
        "mtime_ns": found.mtime_ns,
    }


@pytest.mark.parametrize("new", STORES)
def test_another_mount_shows_what_was_set(new: type[MemoryStore], tmp_path: Path) -> None:
    store = new()
    one = View(store, tmp_path / "one")
    one.write("file", b"content")
    one.fs.make_directory(ROOT, "dir")
    one.fs.symlink(ROOT, "link", b"x")
    for name in ("file", "dir"):
        one.fs.set_attributes(one.inode(name), CHANGES)
    link = {name: value for name, value in CHANGES.items() if name != "mode"}
    one.fs.set_attributes(one.inode("link"), link)
    assert one.fs.sync(time.monotonic() + 60) == {}  # the file was closed just before
    for view in (one, View(store, tmp_path / "two")):
        assert shown(view, "file") == CHANGES
        assert shown(view, "dir") == CHANGES
        assert shown(view, "link") == CHANGES | {"mode": 0o777}


@pytest.mark.parametrize("new", STORES)
def test_what_is_kept_stays_when_a_file_is_written_by_another_mount(
    new: type[MemoryStore], tmp_path: Path
) -> None:
    store = new()
    store.put("file", b"old", {"mode": str(0o100640), "uid": "5", "other-tool": "x"})
    view = View(store, tmp_path)
    view.write("file", b"new")
    found = store.head("file").metadata
    assert found is not None
    assert (found["mode"], found["uid"]) == (str(0o100640), "5")


def test_other_tools_keys_stay_when_an_attribute_is_set(tmp_path: Path) -> None:
    store = bare_store()
    store.put("file", b"", {"other-tool": "x"})
    view = View(store, tmp_path)
    view.fs.set_attributes(view.inode("file"), {"mode": 0o600})
    assert store.head("file").metadata == {"other-tool": "x", "mode": str(0o100600)}


@pytest.mark.parametrize("new", STORES)
def test_the_mode_of_a_new_directory(new: type[MemoryStore], tmp_path: Path) -> None:
    store = new()
    View(store, tmp_path / "one").fs.make_directory(ROOT, "dir", 0o700)
    assert stat.S_IMODE(View(store, tmp_path / "two").stat("dir").mode) == 0o700
    assert store.head("dir/").metadata == {"mode": str(0o040700)}


@pytest.mark.parametrize("new", STORES)
def test_a_change_of_metadata_alone_is_seen(new: type[MemoryStore], tmp_path: Path) -> None:
    store = new()
    store.put("file", b"", {"mode": str(0o100640)})
    view = View(store, tmp_path, ttl_s=0)
    assert shown(view, "file")["mode"] == 0o640
    content, info = store._objects["file"]
    changed = ObjectInfo(
        info.key, info.size_bytes, info.mtime_s + 1, info.version, {"mode": str(0o100600)}
    )
    store._objects["file"] = content, changed  # S3's ETag and GCS's generation stay
    assert shown(view, "file")["mode"] == 0o600


@pytest.mark.parametrize("new", STORES)
def test_what_somebody_else_gives_an_object_is_seen(new: type[MemoryStore], tmp_path: Path) -> None:
    """In place, so that the version stays."""
    store = new()
    store.put("file", b"old")
    view = View(store, tmp_path, ttl_s=0)
    view.stat("file")
    store.describe("file", {"type": "text/plain"})
    view.write("file", b"new")
    assert store.head("file").properties == {"type": "text/plain"}


@pytest.mark.parametrize("new", STORES)
def test_what_a_saved_file_has_costs_no_head(new: type[MemoryStore], tmp_path: Path) -> None:
    """Saved again and again by one mount."""
    store = new()
    store.put("file", b"old")
    store.describe("file", {"type": "text/plain"})
    view = View(store, tmp_path)
    view.write("file", b"new")
    asked = metadata_prefetch(store)
    for data in (b"newer", b"newest"):
        view.write("file", data)
    view.rename("file", "other")
    view.fs.set_attributes(view.inode("other"), CHANGES)
    assert store.head("other").properties == {"type": "text/plain"}
    assert metadata_prefetch(store) == asked + 1  # the test's own


def test_a_listing_that_brings_metadata_costs_no_head(tmp_path: Path) -> None:
    store = MemoryStore()
    for number in range(100):
        store.put(f"{number:02}", b"", {"mode": str(0o100640)})
    view = View(store, tmp_path)
    for name in view.names():
        assert shown(view, name)["mode"] == 0o640
    assert metadata_prefetch(store) == 0


def test_one_head_for_each_version(tmp_path: Path) -> None:
    store = bare_store()
    for number in range(50):
        store.put(f"{number:02}", b"", {"mode": str(0o100640)})
    view = View(store, tmp_path, ttl_s=0)
    for _ in range(3):
        for number in range(50):
            inode = view.inode(f"{number:02}")
            assert stat.S_IMODE(view.fs.get_attributes(inode).attributes.mode) == 0o640
    assert metadata_prefetch(store) == 50


def test_our_own_writes_cost_no_head(tmp_path: Path) -> None:
    store = bare_store()
    view = View(store, tmp_path)
    view.write("file", b"content")
    view.fs.make_directory(ROOT, "dir")
    assert shown(view, "file")["mode"] == 0o644
    assert view.stat("dir").mode == stat.S_IFDIR | 0o755
    view.rename("file", "other")
    assert shown(view, "other")["mode"] == 0o644
    assert metadata_prefetch(store) == 0


def test_names_alone_cost_no_head(tmp_path: Path) -> None:
    """READDIRPLUS returns inodes, but attributes that are not valid."""
    store = bare_store()
    for number in range(50):
        store.put(f"{number:02}", b"")
    view = View(store, tmp_path)
    handle = view.fs.open_directory(ROOT)
    names = [line.name for line in list(view.fs.read_directory(handle, 0))[2:]]
    entries = [entry for entry in view.fs.enter(handle, names).values() if entry is not None]
    assert [entry.attributes_ttl_s for entry in entries] == [0.0] * 50
    assert all(entry.ttl_s > 0 for entry in entries)
    assert metadata_prefetch(store) == 0
    assert view.fs.get_attributes(view.inode("07")).attributes_ttl_s > 0


def test_who_asks_in_the_order_of_the_listing_does_not_wait_for_each(tmp_path: Path) -> None:
    condition, waiting, most = threading.Condition(), 0, 0

    def wait(_: str) -> None:
        """For several HEADs to arrive."""
        nonlocal waiting, most
        with condition:
            waiting += 1
            most = max(most, waiting)
            condition.notify_all()
            condition.wait_for(lambda: waiting >= 4, timeout=0.2)
            waiting -= 1

    store = bare_store(head=before(wait))
    for number in range(60):
        store.put(f"{number:02}", b"", {"mode": str(0o100640)})
    view = View(store, tmp_path)
    for name in view.names():
        assert shown(view, name)["mode"] == 0o640
    assert metadata_prefetch(store) == 60
    assert most >= 4


def test_who_asks_at_random_pays_for_nothing_else(tmp_path: Path) -> None:
    store = bare_store()
    for number in range(1000):
        store.put(f"{number:03}", b"")
    view = View(store, tmp_path)
    view.names()
    for name in ("900", "100", "500", "040"):
        view.stat(name)
    assert metadata_prefetch(store) == 4


def test_a_read_only_volume_asks_for_no_attributes(tmp_path: Path) -> None:
    store = bare_store()
    store.put("dir/file", b"", {"mode": str(0o100640)})
    store.put("dir/", b"", {"mode": str(0o040700)})
    view = View(store, tmp_path, read_only=True)
    assert shown(view, "dir/file")["mode"] == 0o644
    assert stat.S_IMODE(view.stat("dir").mode) == 0o755
    assert metadata_prefetch(store) == 0


def test_who_may_not_wait_does_not_ask(tmp_path: Path) -> None:
    store = bare_store()
    store.put("file", b"")
    view = View(store, tmp_path)
    view.names()
    with pytest.raises(WouldBlock):
        view.fs.lookup(ROOT, "file", wait=False)
    assert metadata_prefetch(store) == 0
    view.inode("file")
    assert view.fs.lookup(ROOT, "file", wait=False).attributes_ttl_s > 0


@pytest.mark.parametrize("mtime_ns", [0, 1, PAST_NS, -1, 10**18 + 5, 2**62])
def test_times_come_back(mtime_ns: int) -> None:
    assert from_metadata(to_metadata({"mtime_ns": mtime_ns}, stat.S_IFREG)) == {
        "mtime_ns": mtime_ns
    }


@pytest.mark.parametrize(
    "text",
    [
        *("", "x", "-1", "1e3", "99999999999999999999", "٣", " 7", "0x1ff", "1.5"),
        pytest.param("7" * 5000, id="5000 digits"),
    ],
)
def test_what_makes_no_sense_is_not_there(text: str) -> None:
    assert from_metadata({"mode": text, "uid": text, "gid": text}) == {}


def test_an_open_for_writing_that_may_not_wait_does_not_ask(tmp_path: Path) -> None:
    """A worker that takes over has inodes, but not their attributes, which a write must keep."""
    store = bare_store()
    store.put("file", b"")
    dead = View(store, tmp_path)
    dead.fs.recovery.begin()
    inode = dead.inode("file")
    view = View(store, tmp_path)
    view.fs.recovery.restore()
    asked = metadata_prefetch(store)
    with pytest.raises(WouldBlock):
        view.fs.open(inode, os.O_WRONLY, wait=False)
    assert metadata_prefetch(store) == asked
    view.fs.release(view.fs.open(inode, os.O_WRONLY))
    view.fs.release(view.fs.open(inode, os.O_WRONLY, wait=False))


def test_a_time_of_5000_digits_is_not_there() -> None:
    """Which int() refuses."""
    assert from_metadata({"mtime": "7" * 5000}) == {}
    assert from_metadata({"mtime": f"1.{'7' * 5000}"}) == {"mtime_ns": 1_777_777_777}


@pytest.mark.parametrize(
    ("text", "mtime_ns"),
    [("1.5", 1_500_000_000), ("12", 12 * 10**9), ("1.1234567899", 1_123_456_789)],
)
def test_times_of_other_tools(text: str, mtime_ns: int) -> None:
    assert from_metadata({"mtime": text}) == {"mtime_ns": mtime_ns}


def test_the_root_has_the_volume_s(tmp_path: Path) -> None:
    view = View(MemoryStore(), tmp_path)
    view.fs.set_attributes(ROOT, {"mode": 0o755})
    with pytest.raises(Unsupported):
        view.fs.set_attributes(ROOT, {"mode": 0o700})


# --- what is new -----------------------------------------------------------------------------

MAKER = Caller(1000, 1001)


def make_all(view: View, parent: int = ROOT) -> None:
    """A file, a directory and a link of :data:`MAKER`."""
    _, handle = view.fs.create(parent, "file", 0o640, os.O_WRONLY, MAKER)
    view.fs.flush(handle)
    view.fs.release(handle)
    view.fs.make_directory(parent, "dir", 0o750, MAKER)
    view.fs.symlink(parent, "link", b"x", MAKER)


def owners(view: View, *paths: str) -> list[tuple[int, int]]:
    found = [view.stat(path) for path in paths]
    return [(attributes.uid, attributes.gid) for attributes in found]


@pytest.mark.parametrize("new", STORES)
def test_another_mount_shows_who_made_it(new: type[MemoryStore], tmp_path: Path) -> None:
    store = new()
    one = View(store, tmp_path / "one")
    make_all(one)
    for view in (one, View(store, tmp_path / "two")):
        assert owners(view, "file", "dir", "link") == [MAKER] * 3
        assert shown(view, "file")["mode"] == 0o640
        assert shown(view, "dir")["mode"] == 0o750
    read_only = View(store, tmp_path / "three", read_only=True)
    assert owners(read_only, "file", "dir", "link") == [(os.getuid(), os.getgid())] * 3


@pytest.mark.parametrize("new", STORES)
def test_a_successor_shows_who_made_it(new: type[MemoryStore], tmp_path: Path) -> None:
    store = new()
    one = View(store, tmp_path)
    one.fs.recovery.begin()
    make_all(one)
    one.fs.create(ROOT, "open", 0o644, os.O_WRONLY, MAKER)  # and not saved
    two = View(store, tmp_path)
    two.fs.recovery.restore()
    assert owners(two, "file", "dir", "link", "open") == [MAKER] * 4


def test_what_is_new_costs_no_further_request(tmp_path: Path) -> None:
    store = bare_store()
    make_all(View(store, tmp_path))
    changes = {name: count for name, count in store.requests.items() if name != "list"}
    assert changes == {"put": 3}


def test_what_the_volume_says_anyway_is_not_kept(tmp_path: Path) -> None:
    store = MemoryStore()
    view = View(store, tmp_path)
    view.fs.make_directory(ROOT, "dir", 0o755, Caller(os.getuid(), os.getgid()))
    view.fs.symlink(ROOT, "link", b"x", Caller(os.getuid(), os.getgid()))
    assert store.head("dir/").metadata == {}
    assert store.head("link.rclonelink").metadata == {}


@pytest.mark.parametrize("new", STORES)
def test_a_group_is_given_also_where_the_directory_is_not_known_yet(
    new: type[MemoryStore], tmp_path: Path
) -> None:
    store = new()
    store.put("dir/", b"", {"mode": str(0o042775), "gid": "3000"})
    view = View(store, tmp_path)
    make_all(view, view.inode("dir"))
    names = ("dir/file", "dir/dir", "dir/link")
    assert owners(view, *names) == [(MAKER.uid, 3000)] * 3
    assert shown(view, "dir/dir")["mode"] == 0o2750
    assert shown(view, "dir/file")["mode"] == 0o640


def test_a_directory_has_two_links_however_many_it_has_below(tmp_path: Path) -> None:
    store = MemoryStore()
    for name in ("a/x", "b/x", "c/x"):
        store.put(f"dir/{name}", b"")
    view = View(store, tmp_path)
    assert view.names("dir") == ["a", "b", "c"]
    assert (view.stat("").nlink, view.stat("dir").nlink, view.stat("dir/a/x").nlink) == (2, 2, 1)
