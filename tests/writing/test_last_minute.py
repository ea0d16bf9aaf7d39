"""The last minute of a pod whose store is slow: what is saved, what is told, and when."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from sidecar.contract.options import Options, Times
from sidecar.contract.spec import Volume
from sidecar.units import MIB
from tests.reading.buckets import make_bucket
from tests.support.clouds import S3Cloud
from tests.support.proxy import Ends, Head, Proxy, http_answer
from tests.support.servers import S3Server
from tests.support.sidecar import Sidecar

LARGE_BYTES = 16 * MIB
SLOW = 4 * MIB
"""Bytes a second."""


class SlowProxy(Proxy):
    """Takes bodies at a limited rate, as a line does that all connections share.

    Attributes:
        bytes_per_s: the rate; 0: no limit.
        refuses: no body is taken.
    """

    def __init__(self, upstream_port: int) -> None:
        super().__init__(upstream_port)
        self.bytes_per_s = 0
        self.refuses = False
        self._line = threading.Lock()

    def exchange(self, request: Head, body: bytes, ends: Ends) -> bool:
        if self.refuses and body:
            ends.client.sendall(http_answer(403, "Forbidden"))
            return True
        for _ in range(0, len(body), MIB // 4):
            with self._line:
                if rate := self.bytes_per_s:
                    time.sleep(MIB / 4 / rate)
        return super().exchange(request, body, ends)


class Place:
    """A mounted bucket behind a slow line."""

    def __init__(self, sidecar: Sidecar, cloud: S3Cloud, proxy: SlowProxy, path: Path) -> None:
        self.sidecar = sidecar
        self.cloud = cloud
        self.proxy = proxy
        self.path = path

    def pod_ends(self, grace_s: int) -> None:
        """As the preStop hook tells it."""
        (self.sidecar.state / "stopping").write_text(f"{grace_s}\n")

    def told(self) -> str:
        """What the kubelet would read of the container's end."""
        return self.sidecar.termination_message.read_text()


@pytest.fixture
def place(s3_server: S3Server, tmp_path: Path) -> Iterator[Place]:
    cloud, mount = make_bucket(s3_server), tmp_path / "m"
    with SlowProxy(s3_server.port) as proxy:
        secret = {**s3_server.credentials(), "AWS_ENDPOINT_URL": proxy.endpoint}
        sidecar = Sidecar(
            tmp_path / "run",
            [Volume(name="out", kind="outputs", path=str(mount), source=cloud.source())],
            outputs_path=mount,
            secrets={"cloud": json.dumps(secret)},
            options=Options(part_bytes=5 * MIB, save_s=3600),
            times=Times(ready_timeout_s=30, grace_margin_s=2),
        )
        with sidecar:
            yield Place(sidecar, cloud, proxy, mount)


def test_an_open_file_is_saved_when_the_pod_begins_to_end(place: Place) -> None:
    with (place.path / "log").open("wb", buffering=0) as log:
        log.write(b"first")
        place.pod_ends(60)
        place.sidecar.wait_for(lambda: "log" in place.cloud.keys())  # noqa: SIM118 - a list
        log.write(b", second")
        place.sidecar.wait_for(lambda: place.cloud.read("log") == b"first, second")
        place.sidecar.wait_for(lambda: place.told() == "")
    assert place.sidecar.stop() == 0


def test_the_message_says_what_is_not_saved_whenever_the_end_comes(place: Place) -> None:
    with contextlib.suppress(OSError), (place.path / "large").open("wb", buffering=0) as file:
        place.proxy.bytes_per_s = SLOW // 4
        file.write(os.urandom(LARGE_BYTES))
        place.pod_ends(600)
        place.sidecar.wait_for(place.told)
        place.sidecar.kill()
        assert "error SC1089 NOT_SAVED: 1 file(s) are only in the spool" in place.told()
        line = f"not saved yet: outputs/out: large (no time left; {LARGE_BYTES} bytes)"
        assert line in place.told()
        place.proxy.bytes_per_s = 0


@pytest.mark.parametrize("closed", ["before", "after"])
def test_what_can_be_whole_in_time_is_whole(place: Place, closed: str) -> None:
    """Six large files take 24 s of a line that has 22: some are whole, and all small ones.

    Also if all of them are being saved when the pod begins to end.
    """
    large = [(place.path / f"large{number}").open("wb", buffering=0) for number in range(6)]
    try:
        place.proxy.bytes_per_s = SLOW
        for offset in range(0, LARGE_BYTES, MIB):
            for file in large:
                file.write(bytes([offset // MIB]) * MIB)
        small = [(place.path / f"small{number}").open("wb", buffering=0) for number in range(20)]
        for file in small:
            file.write(b"small")
        with ThreadPoolExecutor(6) as closing:
            if closed == "after":
                place.pod_ends(24)
                place.sidecar.wait_for(lambda: "the pod is ending" in place.sidecar.log())
            closes = closing.map(close, large)
            if closed == "before":
                time.sleep(0.3)  # all six are being saved
                place.pod_ends(24)
            errors = list(closes)
        assert not any(map(close, small))
    finally:
        place.proxy.bytes_per_s = 0
    assert set(errors) == {0, errno.EIO}, "the experiment could end, and knows what failed"
    found = place.cloud.keys()
    assert {f"small{number}" for number in range(20)} <= set(found)
    for number, error in enumerate(errors):
        if not error:
            assert len(place.cloud.read(f"large{number}")) == LARGE_BYTES


def test_of_large_files_that_wait_the_smallest_comes_first(place: Place) -> None:
    place.proxy.bytes_per_s = SLOW
    sizes = {"first": LARGE_BYTES, "larger": 3 * LARGE_BYTES, "smaller": 6 * MIB}
    files = {name: (place.path / name).open("wb", buffering=0) for name in sizes}
    ended: list[str] = []

    def close_it(name: str) -> None:
        assert not close(files[name])
        ended.append(name)

    files["first"].write(bytes(sizes["first"]))
    place.pod_ends(600)
    place.sidecar.wait_for(place.told)  # it is being saved, which takes seconds
    with ThreadPoolExecutor(2) as closing:
        for name in ("larger", "smaller"):
            for _ in range(0, sizes[name], MIB):
                files[name].write(bytes(MIB))
            closing.submit(close_it, name)
            time.sleep(0.3)
    place.proxy.bytes_per_s = 0
    close_it("first")
    assert ended == ["smaller", "larger", "first"]


@pytest.mark.parametrize(
    "folder",
    ["データ" * 12 + "/" + "ファイル" * 19, "/".join(["a" * 229] * 4)],
    ids=["112-characters", "920-bytes"],
)
def test_a_hundred_long_names_end_in_an_honest_list(place: Place, folder: str) -> None:
    """Names and reasons are more than one message between two processes holds."""
    parent = place.path / folder
    parent.mkdir(parents=True)
    with contextlib.ExitStack() as stack:
        for number in range(100):
            file = (parent / f"f{number:03}").open("wb", buffering=0)
            stack.callback(close, file)
            file.write(b"content")
        place.proxy.refuses = True
        place.pod_ends(20)
        place.sidecar.wait_for(lambda: "100 file(s)" in place.told())
        left = place.sidecar.volume_status("out")
        assert left["unsaved_count"] == 100
        assert 4 <= len(left["unsaved"]) <= 100
        assert place.sidecar.stop() == 4
    said = place.sidecar.said()
    listed = [line for line in said if line.startswith("not saved: ")]
    assert listed[-1] == f"not saved: outputs/out: {101 - len(listed)} more"
    first, *others = place.told().splitlines()
    assert first.startswith("error SC1089 NOT_SAVED: 100 file(s) are only in the spool")
    named = [line for line in others if line.startswith(f"not saved: outputs/out: {folder}/f")]
    assert len(set(named)) == len(named) >= 1
    more, _, where = others[len(named)].removeprefix("... and ").partition(" ")
    assert (int(more), where) == (1 + len(listed) - len(others), "more lines, in the log")
    assert others[len(named) + 1 :] == []
    assert len(place.told().encode()) <= 4096
    place.proxy.refuses = False
    with place.sidecar:
        place.sidecar.wait_for(lambda: len(saved(place)) == 100)
        assert {place.cloud.read(key) for key in saved(place)} == {b"content"}


def saved(place: Place) -> list[str]:
    """The keys of the files in the bucket."""
    return [key for key in place.cloud.keys() if not key.endswith("/")]  # noqa: SIM118


def close(file: object) -> int:
    """The errno of close(2); 0 if there is none."""
    try:
        file.close()  # type: ignore[attr-defined]
    except OSError as error:
        return error.errno or -1
    return 0


@pytest.mark.parametrize("text", ["", "soon", "-5", "9" * 30])
def test_a_file_that_makes_no_sense_does_no_harm(place: Place, text: str) -> None:
    (place.sidecar.state / "stopping").write_text(text)
    (place.path / "file").write_bytes(b"content")
    assert place.cloud.read("file") == b"content"
    assert place.sidecar.stop() == 0
