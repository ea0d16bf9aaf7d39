"""The log beside a spool file: what a successor reads there, also of a predecessor cut short."""

from __future__ import annotations

import json
import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from sidecar.errors import StateUnusable
from sidecar.metrics import VolumeMetrics
from sidecar.mounter.store.interface import ObjectInfo
from sidecar.mounter.writing.active_upload import Description
from sidecar.mounter.writing.part_layout import PartLayout
from sidecar.mounter.writing.spool import Spool
from sidecar.mounter.writing.spool_log import SentPart, SpoolLog
from sidecar.mounter.writing.uploader import Uploader
from tests.support.memory_store import MemoryStore

MIB = 1024 * 1024


def fetch(base: ObjectInfo, offset: int, buffer: memoryview) -> None:
    raise AssertionError(f"{base.key} is not needed")


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "00000000.state"


def test_what_follows_a_torn_line_is_read(path: Path) -> None:
    """A worker was killed in the middle of a line, and its successor wrote on."""
    SpoolLog(path).note_missing([1])
    with path.open("ab") as file:
        file.write(b'["sent", [1, 2, 838')
    successor = SpoolLog.read(path)
    assert successor.missing == {1}
    successor.note_missing([2, 3])
    assert SpoolLog.read(path).missing == {1, 2, 3}


def test_a_line_that_a_full_disk_cuts_short_is_an_error_and_hides_none(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    log = SpoolLog(path)
    log.note_missing([1])
    write = os.write
    with monkeypatch.context() as full:
        full.setattr(os, "write", lambda fd, data: write(fd, data[:7]))
        with pytest.raises(OSError, match="No space left"):
            log.note_missing([2])
    assert log.missing == {1}
    log.note_missing([3])
    assert SpoolLog.read(path).missing == {1, 3}


# As it was written before the first record named a format.
BEFORE_FORMATS = b"""\
["exclusive", true]
["begin", [1, "file", {"since_s": 1795666508.4605558}, false]]
["begin", [2, "file", {"number": 1, "metadata": {"mtime": "1795666508.412566201"}}, true]]
["end", 1]
["sent", [2, 1, 1048576, "one"]]
["missing", [1]]
["sent", [2, 2, 1048576, "two"]]
["missing", [2]]
["sent", [2, 3, 1048576, "three"]]
["exclusive", false]
["here", 2]
["unsent", [2, 2]]
["attributes", true]
["attempt", [3145735, [{"mtime": "1795666508.5"}, {"mtime": "1795666508.412566201"}]]]
["base", ["old", 3145728, 1795666509.6322658, "v2"]]
"""


def test_a_log_without_a_format_is_read(path: Path) -> None:
    path.write_bytes(BEFORE_FORMATS)
    log = SpoolLog.read(path)
    (upload,) = log.uploads.values()
    assert (upload.number, upload.key, upload.resumable) == (2, "file", True)
    assert upload.metadata == {"mtime": "1795666508.412566201"}
    assert upload.parts == {1: (MIB, "one"), 3: (MIB, "three")}
    assert log.missing == {1}
    assert log.base == ObjectInfo("old", 3 * MIB, 1795666509.6322658, "v2")
    assert (log.attributes_set, log.exclusive) == (True, False)
    (attempt,) = log.attempts
    assert attempt.made(ObjectInfo("file", 3145735, 0.0, "", {"mtime": "1795666508.5"}))
    log.note_saved()
    assert SpoolLog.read(path).attempts == []


def test_what_this_version_writes_is_read_by_the_one_before(path: Path) -> None:
    """It knew no format, and passed over records that it did not know."""
    log = SpoolLog(path)
    log.note_missing([1, 2])
    log.note_sent(log.note_begun("key", {"id": 7}, resumable=True), 1, SentPart(5, "one"))
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    assert lines == [
        ["format", 1],
        ["missing", [1, 2]],
        ["begin", [1, "key", {"id": 7}, True]],
        ["sent", [1, 1, 5, "one"]],
    ]


def test_a_spool_file_of_the_version_before_is_taken_over(tmp_path: Path) -> None:
    """One part is only in the upload, one was written to after it was sent."""
    store = MemoryStore()
    upload = store.start_upload("file", {"mtime": "1795666508.412566201"})
    upload.put_part(1, b"1" * MIB)
    upload.put_part(2, b"2" * MIB)
    upload.put_part(3, b"3" * MIB)
    (tmp_path / "00000004.state").write_bytes(BEFORE_FORMATS.rpartition(b'["base"')[0])
    data = tmp_path / "00000004.data"
    with data.open("wb") as file:
        file.seek(MIB)
        file.write(b"changed".ljust(MIB, b"2") + b"3" * MIB + b"the end")
    spool = Spool(tmp_path, 10 * MIB, PartLayout(MIB, store.limits))
    adopted = spool.adopt(str(data))
    with ThreadPoolExecutor(2) as threads:
        metrics = VolumeMetrics(tmp_path / "metrics", "data/memory", "data-memory")
        uploader = Uploader(store, threads, fetch, metrics)
        uploader.adopt(adopted)
        made = uploader.save("file", adopted, Description({"mtime": "1795666508.5"}))
    expected = b"1" * MIB + b"changed".ljust(MIB, b"2") + b"3" * MIB + b"the end"
    found = bytearray(made.size_bytes)
    store.get_range("file", made.version, 0, memoryview(found))
    assert found == expected
    assert not store.uploads
    assert adopted.attempts[0].made(made)


@pytest.mark.parametrize(
    ("content", "why"),
    [
        (b'["missing", [1]]\n["sent", [1,["missing", [2]]\n', "line 2"),
        (b'["missing", [1]]\n["lost", [2]]\n', "line 2"),
        (b'["missing", 1]\n', "line 1"),
        (b'["sent", [1, 2]]\n', "line 1"),
        (b"\xff\xfe\n", "line 1"),
        (b"\0" * 4096 + b"\n", "line 1"),
        (b'["format", 2]\n["evicted", [1]]\n', "format 2"),
    ],
)
def test_a_log_that_cannot_be_used_says_so(path: Path, content: bytes, why: str) -> None:
    path.write_bytes(content)
    with pytest.raises(StateUnusable, match=why):
        SpoolLog.read(path)
    assert list(SpoolLog.all_in(path.parent)) == []
    assert path.read_bytes() == content


def test_what_cannot_be_used_is_set_aside(tmp_path: Path) -> None:
    spool = Spool(tmp_path, MIB, PartLayout(MIB, MemoryStore().limits))
    file = spool.create()
    file.write(0, b"content")
    file.log.note_missing([2])
    kept = spool.set_aside(str(file.path))
    spool.clear()
    assert kept.read_bytes() == b"content"
    assert spool.leftovers() == []
    assert len(list(tmp_path.iterdir())) == 2
