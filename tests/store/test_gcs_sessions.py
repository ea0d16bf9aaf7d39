"""Uploads to Google Cloud Storage whose parts go in order, as Google documents them."""

from __future__ import annotations

import json
import os
import threading
from concurrent.futures import ThreadPoolExecutor
from http.server import BaseHTTPRequestHandler
from pathlib import Path

import pytest

from sidecar.errors import StoreProtocolError
from sidecar.mounter.system.state_directory import StateDirectory
from sidecar.mounter.writing.active_upload import ActiveUpload
from sidecar.mounter.writing.part_layout import PartLayout
from sidecar.mounter.writing.spool import Spool
from sidecar.mounter.writing.spool_log import SentPart
from tests.store.raw import open_at
from tests.support.clouds import CountingObserver
from tests.support.memory_store import MemoryStore
from tests.support.servers import HttpResponder, answer
from tests.support.waiting import wait_until


class Session:
    """A resumable upload as Google documents it; fake-gcs-server ends one at a status query.

    Args:
        lost: which PUTs with content, counted from 0, are taken and not answered.
        cut: which of them keep only their first chunk.
    """

    def __init__(self, lost: set[int], cut: set[int]) -> None:
        self.content = b""
        self.finished = False
        self._lost, self._cut, self._count = lost, cut, -1

    def respond(self, handler: BaseHTTPRequestHandler) -> None:
        data = handler.rfile.read(int(handler.headers.get("Content-Length", "0")))
        if handler.command == "POST":
            host = handler.headers["Host"]
            answer(handler, 200, b"", {"Location": f"http://{host}/upload/session"})
            return
        span, _, total = handler.headers["Content-Range"].removeprefix("bytes ").partition("/")
        if span != "*":
            self._count += 1
            assert int(span.partition("-")[0]) == len(self.content), "not where it stopped"
            self.content += data[:262144] if self._count in self._cut else data
            self.finished = total == str(len(self.content))
            if self._count in self._lost:
                handler.close_connection = True
                return
        if self.finished:
            made = {"name": "key", "size": str(len(self.content)), "generation": "7"}
            answer(
                handler, 200, json.dumps({**made, "timeCreated": "2026-11-24T00:00:00Z"}).encode()
            )
        else:
            arrived = {"Range": f"bytes=0-{len(self.content) - 1}"} if self.content else {}
            answer(handler, 308, b"", arrived)


@pytest.mark.parametrize(
    ("lost", "cut"),
    [(set(), set()), ({0}, set()), ({2}, set()), ({0}, {0}), (set(), {1}), ({0, 1, 2}, set())],
)
def test_an_upload_session_goes_on_where_it_stopped(lost: set[int], cut: set[int]) -> None:
    session = Session(lost, cut)
    observer = CountingObserver()
    with HttpResponder(session.respond) as server:
        store = open_at("gcs", server.endpoint, observer, retry_budget_s=20)
        content = os.urandom(1_500_000)
        upload = store.start_upload("key")
        upload.put_part(1, content[:700_000])
        upload.put_part(2, content[700_000:])
        made = upload.complete()
        store.close()
    assert session.content == content
    assert session.finished
    assert (made.size_bytes, made.version) == (len(content), "7")
    assert bool(observer.retries) == bool(lost | cut)


def test_a_session_that_was_kept_is_no_object() -> None:
    """What the spool's log says may be made up: nothing is sent to it, and nothing deleted."""
    asked: list[str] = []

    def respond(handler: BaseHTTPRequestHandler) -> None:
        asked.append(handler.path)
        answer(handler, 200, b"")

    with HttpResponder(respond) as server:
        store = open_at("gcs", server.endpoint, CountingObserver(), retry_budget_s=20)
        state = {"session": "/storage/v1/b/other/o/precious?x=y", "metadata": {}}
        with pytest.raises(StoreProtocolError):
            store.resume_upload("key", state, {})
        with pytest.raises(StoreProtocolError):
            store.abandon("key", state)
        store.close()
    assert asked == []


def test_another_process_goes_on_with_a_session() -> None:
    session = Session(set(), set())
    with HttpResponder(session.respond) as server:
        store = open_at("gcs", server.endpoint, CountingObserver(), retry_budget_s=20)
        content = os.urandom(3 * 262144 + 5)
        begun = store.start_upload("key")
        begun.put_part(1, content[:262144])
        begun.put_part(2, content[262144:524288])  # Not recorded any more.
        resumed = store.resume_upload("key", begun.state, {1: (262144, "")})
        resumed.put_part(2, content[262144:524288])
        resumed.put_part(3, content[524288:])
        resumed.complete(parts=3)
        store.close()
    assert session.content == content
    assert session.finished


def test_what_waits_goes_in_one_request() -> None:
    """And a successor goes on also where several parts more are there than it knows of."""
    session = Session(set(), set())
    may_answer, asked = threading.Event(), threading.Event()

    def respond(handler: BaseHTTPRequestHandler) -> None:
        if handler.command == "PUT" and not asked.is_set():
            asked.set()
            may_answer.wait(60)
        session.respond(handler)

    with HttpResponder(respond) as server, ThreadPoolExecutor(5) as pool:
        store = open_at("gcs", server.endpoint, (observer := CountingObserver()), retry_budget_s=20)
        parts = [*(os.urandom(262144) for _ in range(4)), b"tail"]
        begun = store.start_upload("key")
        done = [pool.submit(begun.put_part, 1, parts[0])]
        assert asked.wait(60)
        done += [pool.submit(begun.put_part, n, part) for n, part in enumerate(parts[1:4], 2)]
        wait_until(lambda: len(begun._waiting) >= 3, "three wait")  # type: ignore[attr-defined]
        may_answer.set()
        for one in done:
            one.result(60)
        assert observer.requests.count(("part", "ok")) == 2
        resumed = store.resume_upload("key", begun.state, {1: (262144, "")})
        for number, part in enumerate(parts[1:], 2):
            resumed.put_part(number, part)
        resumed.complete(parts=5)
        assert observer.retries == []  # nothing was sent that is there
        store.close()
    assert session.content == b"".join(parts)
    assert session.finished


def test_a_session_whose_log_has_a_gap(tmp_path: Path) -> None:
    """Two threads were told that their parts are there; the sidecar ended before one noted it."""
    session = Session(set(), set())
    parts = [os.urandom(262144), os.urandom(262144), b"tail"]
    layout = PartLayout(262144, MemoryStore().limits)
    spool = Spool(StateDirectory.open(tmp_path), 10**9, layout).create()
    spool.write(0, b"".join(parts))
    with HttpResponder(session.respond) as server:
        store = open_at("gcs", server.endpoint, CountingObserver(), retry_budget_s=20)
        begun = store.start_upload("key")
        record = spool.log.note_begun("key", begun.state, resumable=True)
        for number, part in enumerate(parts, 1):
            begun.put_part(number, part)
        for number in (1, 3):
            spool.log.note_sent(record, number, SentPart(len(parts[number - 1]), ""))
        resumed = ActiveUpload(store, "key", spool.log)
        resumed.resume(record, spool.parts())
        assert resumed.sent == {1}
        assert resumed.cannot_replace([2])
        assert resumed.cannot_replace([3])
        assert not resumed.cannot_replace([4])  # nothing was written there yet
        again = store.resume_upload("key", begun.state, record.parts)
        again.put_part(2, parts[1])
        again.put_part(3, parts[2])
        again.complete(parts=3)
        resumed.close()
        store.close()
    assert session.content == b"".join(parts)
