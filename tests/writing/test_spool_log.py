"""The log beside a spool file, as a successor reads it, also after a torn write."""

from __future__ import annotations

import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from sidecar.errors import StateUnusable
from sidecar.metrics import VolumeMetrics
from sidecar.mounter.store.interface import ObjectInfo
from sidecar.mounter.system.state_directory import StateDirectory
from sidecar.mounter.writing.active_upload import Description
from sidecar.mounter.writing.frames import frame
from sidecar.mounter.writing.part_layout import PartLayout
from sidecar.mounter.writing.spool import Spool
from sidecar.mounter.writing.spool_log import SpoolLog
from sidecar.mounter.writing.uploader import Uploader
from sidecar.units import MIB
from tests.support.memory_store import MemoryStore


def fetch(base: ObjectInfo, offset: int, buffer: memoryview) -> None:
    raise AssertionError(f"{base.key} is not needed")


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "00000000.state"


def new_log(path: Path) -> SpoolLog:
    return SpoolLog(StateDirectory.open(path.parent), path.name)


def read_log(path: Path) -> SpoolLog:
    return SpoolLog.read(StateDirectory.open(path.parent), path.name)


def new_spool(directory: Path, total_bytes: int) -> Spool:
    layout = PartLayout(MIB, MemoryStore().limits)
    return Spool(StateDirectory.open(directory), total_bytes, layout)


def test_what_follows_a_torn_record_is_read(path: Path) -> None:
    """A worker was killed in the middle of a record, and its successor wrote on."""
    new_log(path).note_missing([1])
    with path.open("ab") as file:
        file.write(frame(b'["sent", [1, 2, 838, "x"]]')[:-7])
    successor = read_log(path)
    assert successor.missing == {1}
    successor.note_missing([2, 3])
    assert read_log(path).missing == {1, 2, 3}


def test_a_record_that_a_full_disk_cuts_short_is_an_error_and_hides_none(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    log = new_log(path)
    log.note_missing([1])
    write = os.write
    with monkeypatch.context() as full:
        full.setattr(os, "write", lambda fd, data: write(fd, data[:7]))
        with pytest.raises(OSError, match="No space left"):
            log.note_missing([2])
    assert log.missing == {1}
    log.note_missing([3])
    assert read_log(path).missing == {1, 3}


def framed(*records: bytes) -> bytes:
    return b"msspol01" + b"".join(map(frame, records))


FIRST_RELEASE = framed(
    b'["exclusive", [true]]',
    b'["begin", [1, "file", {"since_s": 1795666508.4605558}, false]]',
    b'["begin", [2, "file", {"upload": "1", "metadata": {"mtime": "1795666508.412566201"}}, true]]',
    b'["end", [1]]',
    b'["sent", [2, 1, 1048576, "one"]]',
    b'["missing", [[1]]]',
    b'["sent", [2, 2, 1048576, "two"]]',
    b'["missing", [[2]]]',
    b'["sent", [2, 3, 1048576, "three"]]',
    b'["exclusive", [false]]',
    b'["here", [2]]',
    b'["unsent", [2, 2]]',
    b'["attributes", [true]]',
    b'["attempt", [3145735, [{"mtime": "1795666508.5"}, {"mtime": "1795666508.412566201"}]]]',
    b'["base", ["old", 3145728, 1795666509.6322658, "v2"]]',
)


def test_a_log_of_the_first_release_is_read(path: Path) -> None:
    path.write_bytes(FIRST_RELEASE)
    log = read_log(path)
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
    assert read_log(path).attempts == []


def test_a_spool_file_of_the_first_release_is_taken_over(tmp_path: Path) -> None:
    """One part is only in the upload, one was written to after it was sent."""
    store = MemoryStore()
    upload = store.start_upload("file", {"mtime": "1795666508.412566201"})
    upload.put_part(1, b"1" * MIB)
    upload.put_part(2, b"2" * MIB)
    upload.put_part(3, b"3" * MIB)
    (tmp_path / "00000004.state").write_bytes(FIRST_RELEASE.rpartition(frame(b'["base"')[:4])[0])
    data = tmp_path / "00000004.data"
    with data.open("wb") as file:
        file.seek(MIB)
        file.write(b"changed".ljust(MIB, b"2") + b"3" * MIB + b"the end")
    spool = new_spool(tmp_path, 10 * MIB)
    adopted = spool.adopt(data.name)
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


GOOD = frame(b'["missing", [[1]]]')


@pytest.mark.parametrize(
    ("content", "why"),
    [
        (b"msspol02" + GOOD, "it begins with b'msspol02'; known is b'msspol01'"),
        (b"[" * 100_000, "it begins with"),
        (framed(b'["lost", [2]]'), "the record at byte 8 makes no sense"),
        (framed(b'["missing", 1]'), "the record at byte 8 makes no sense"),
        (framed(b'["sent", [1, 2]]'), "the record at byte 8 makes no sense"),
        (framed(b"\xff\xfe"), "the record at byte 8 makes no sense"),
        (framed(b"[" * 100_000), "the record at byte 8 makes no sense"),
        (b"msspol01" + GOOD[:-1] + b"}" + GOOD, "30 bytes at byte 8: the checksum is wrong"),
        (b"msspol01" + GOOD + bytes(512) + GOOD, "512 bytes at byte 38: no record begins"),
        (framed(b'["missing", [-1]]'), "the record at byte 8 makes no sense"),
        (framed(b'["missing", [1e400]]'), "the record at byte 8 makes no sense"),
        (framed(b'["sent", [1, 1, 1' + b"0" * 5000 + b', "a"]]'), "the record at byte 8"),
        (framed(b'["here", [100000000000]]'), "the record at byte 8 makes no sense"),
        (framed(b'["begin", [1, "../other", {}, true]]'), "the record at byte 8 makes no sense"),
        (framed(b'["begin", [1, "a//b", {}, true]]'), "the record at byte 8 makes no sense"),
        (framed(b'["base", ["a", -5, 0.0, "1"]]'), "the record at byte 8 makes no sense"),
        (framed(b'["attempt", [5, [{"mtime": 7}]]]'), "the record at byte 8 makes no sense"),
    ],
)
def test_a_log_that_cannot_be_used_says_so(path: Path, content: bytes, why: str) -> None:
    path.write_bytes(content)
    with pytest.raises(StateUnusable, match=why):
        read_log(path)
    assert list(SpoolLog.all_in(StateDirectory.open(path.parent))) == []
    assert path.read_bytes() == content


def test_what_cannot_be_used_is_set_aside(tmp_path: Path) -> None:
    spool = new_spool(tmp_path, MIB)
    file = spool.create()
    file.write(0, b"content")
    file.log.note_missing([2])
    kept = spool.set_aside(file.name)
    spool.clear()
    assert kept.read_bytes() == b"content"
    assert spool.leftovers() == []
    assert len(list(tmp_path.iterdir())) == 2
