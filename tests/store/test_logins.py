"""Logins that end, and clocks that are wrong, while a mount is used."""

from __future__ import annotations

import contextlib
import datetime as dt
import json
import random
import time
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

import pytest

from sidecar.contract.spec import StoreName
from sidecar.errors import LoginRejected, SidecarError
from sidecar.mounter.store import signing
from sidecar.mounter.store.interface import FileSlice
from sidecar.units import MIB
from tests.store.nodes import NODES, give_tokens, identified
from tests.store.raw import VERSION, Entry, content, fetch, open_at, page, response
from tests.support.clouds import Cloud, CountingObserver
from tests.support.proxy import Ends, Head, Proxy, read_body, read_head
from tests.support.raw_server import Answer, Piece, RawServer

REFUSALS = {
    "s3": response(b"<Error><Code>ExpiredToken</Code></Error>", status="400 Bad Request"),
    "gcs": response(status="401 Unauthorized"),
    "azure": response(status="401 Unauthorized", x_ms_error_code="InvalidAuthenticationInfo"),
}


def token_of(request: Head) -> str:
    token = request.fields.get("x-amz-security-token")
    return token or request.fields["authorization"].removeprefix("Bearer ")


@pytest.mark.parametrize("node", NODES)
@pytest.mark.parametrize("operation", ["get", "put"])
def test_a_token_that_the_store_takes_no_longer_is_replaced(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, node: str, operation: str
) -> None:
    """Though it says that it is good for a day: it was withdrawn, or a clock is wrong."""
    kind = NODES[node][0]
    bad: set[str] = set()
    used: list[str] = []

    def store_answers(request: Head, _body: bytes) -> Iterator[Piece]:
        used.append(token_of(request))
        if used[-1] in bad:
            yield REFUSALS[kind]
        elif request.method == "GET":
            yield content()
        else:
            item = page("gcs", [Entry("key")])[page("gcs", [Entry("key")]).index(b"[") + 1 :]
            about = {"ETag": f'"{VERSION}"', "Last_Modified": "Tue, 24 Nov 2026 10:20:30 GMT"}
            yield response(item[: item.index(b"]")] if kind == "gcs" else b"", **about)

    with (
        RawServer(store_answers) as server,
        identified(node, give_tokens(), tmp_path, monkeypatch, server.endpoint) as store,
    ):
        fetch(store)
        bad |= set(used)
        if operation == "get":
            fetch(store)
        else:
            store.put("key", b"data")
        fetch(store)
    assert len(set(used)) == 2
    assert used[-1] not in bad


SKEW_S = 3600
"""More than a quarter of an hour, which stores take."""


@pytest.fixture(params=[SKEW_S, -SKEW_S], ids=["fast", "slow"])
def wrong_clock(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """This node's; the servers' is right."""
    right = time.time
    monkeypatch.setattr(time, "time", lambda: right() + request.param)
    monkeypatch.setattr(signing.clock, "ahead_s", 0.0)


def sent_s(request: Head) -> float:
    fields = request.fields
    if "x-amz-date" in fields:
        sent = dt.datetime.strptime(f"{fields['x-amz-date']}+0000", "%Y%m%dT%H%M%SZ%z")
    else:
        sent = dt.datetime.strptime(f"{fields['x-ms-date']}+0000", "%a, %d %b %Y %H:%M:%S GMT%z")
    return sent.timestamp()


def strict(asked: list[tuple[str, bool]], code: str) -> Answer:
    """A store that takes only what is sent at the right time.

    Args:
        asked: gets each request's method, and whether it was refused.
    """

    def answer(request: Head, _body: bytes) -> Iterator[Piece]:
        now = dt.datetime.now(dt.UTC)
        is_wrong = abs(sent_s(request) - now.timestamp()) > 900
        asked.append((request.method, is_wrong))
        if not is_wrong:
            yield response(status="204 No Content") if request.method == "DELETE" else content()
            return
        body = b"" if request.method == "HEAD" else f"<Error><Code>{code}</Code></Error>".encode()
        date = now.strftime("%a, %d %b %Y %H:%M:%S GMT")
        yield response(body, status="403 Forbidden", x_ms_error_code=code, Date=date)

    return answer


@pytest.mark.usefixtures("wrong_clock")
@pytest.mark.parametrize(
    ("kind", "code"), [("s3", "RequestTimeTooSkewed"), ("azure", "AuthenticationFailed")]
)
def test_a_node_whose_clock_is_wrong(kind: StoreName, code: str) -> None:
    """Google's tokens say no time of a request."""
    asked: list[tuple[str, bool]] = []
    observer = CountingObserver()
    with RawServer(strict(asked, code)) as server:
        store = open_at(kind, server.endpoint, observer, retry_budget_s=0)
        for _ in range(3):
            fetch(store)
        store.close()
    assert asked == [("GET", True), *[("GET", False)] * 3]
    assert observer.failures == []


@pytest.mark.usefixtures("wrong_clock")
def test_s3_does_not_say_why_it_refuses_a_head() -> None:
    asked: list[tuple[str, bool]] = []
    with RawServer(strict(asked, "RequestTimeTooSkewed")) as server:
        store = open_at("s3", server.endpoint, CountingObserver(), retry_budget_s=0)
        with contextlib.suppress(SidecarError):
            store.head("key")
        store.close()
    assert [is_wrong for _, is_wrong in asked][:2] == [True, False]


@pytest.mark.usefixtures("wrong_clock")
def test_the_sdk_does_not_sign_by_a_wrong_clock() -> None:
    asked: list[tuple[str, bool]] = []
    with RawServer(strict(asked, "RequestTimeTooSkewed")) as server:
        store = open_at("s3", server.endpoint, CountingObserver(), retry_budget_s=0)
        fetch(store)
        store.delete_many(["one", "two"])
        store.close()
    assert asked[2:] == [("DELETE", False)] * 2


def test_a_store_whose_date_makes_no_sense_is_not_followed() -> None:
    refusal = response(
        b"<Error><Code>RequestTimeTooSkewed</Code></Error>",
        status="403 Forbidden",
        Date="tomorrow",
    )
    with RawServer(lambda _request, _body: iter([refusal])) as server:
        store = open_at("s3", server.endpoint, CountingObserver(), retry_budget_s=0)
        with pytest.raises(LoginRejected) as caught:
            fetch(store)
        store.close()
    assert "set the node's clock" in caught.value.line()


def test_a_login_that_is_new_and_has_expired(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    give = give_tokens(time.time() - 3600)
    with (
        identified("container", give, tmp_path, monkeypatch) as store,
        pytest.raises(LoginRejected, match="has expired by the node's clock"),
    ):
        store.probe()


# --- in the middle of an upload -----------------------------------------------------------------

PART_BYTES = 5 * MIB


class Ending(Proxy):
    """Refuses one request that writes, having read half of its body, and closes the connection."""

    def __init__(self, upstream_port: int, refusal: bytes, turn: int) -> None:
        super().__init__(upstream_port)
        self._refusal = refusal
        self._left = turn

    def _one(self, incoming: BinaryIO, ends: Ends) -> bool:
        request = read_head(incoming)
        if request is None:
            return False
        self._left -= request.method in {"PUT", "POST"}
        if self._left or request.method not in {"PUT", "POST"}:
            return self.exchange(request, read_body(incoming, request), ends)
        self._left = -1
        incoming.read(int(request.fields.get("content-length", "0")) // 2)
        ends.client.sendall(self._refusal)
        return False


@pytest.mark.parametrize("turn", range(1, 6), ids=["start", "1", "2", "3", "complete"])
@pytest.mark.parametrize("in_a_file", [True, False], ids=["of a file", "in memory"])
def test_a_login_that_ends_in_the_middle_of_an_upload(
    cloud: Cloud,
    secrets: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    turn: int,
    in_a_file: bool,
) -> None:
    if cloud.name == "azure":
        turn -= 1  # no request begins one
        if not turn:
            return
    content = random.Random(1).randbytes(2 * PART_BYTES + 1000)
    path = tmp_path / "content"
    path.write_bytes(content)
    observer = CountingObserver()
    server = cloud.server
    with Ending(server.port, REFUSALS[cloud.name], turn) as ending, path.open("rb") as file:
        secret = json.dumps(server.credentials()).replace(f":{server.port}", f":{ending.port}")
        cloud.write_secret(secrets, secret)
        monkeypatch.setenv("STORAGE_EMULATOR_HOST", ending.endpoint)
        store = cloud.open(secrets, retry_budget_s=0, observer=observer)
        upload = store.start_upload("key")
        for number, start in enumerate(range(0, len(content), PART_BYTES), 1):
            size = min(PART_BYTES, len(content) - start)
            part = FileSlice(file.fileno(), start, size)
            upload.put_part(number, part if in_a_file else content[start : start + size])
        upload.complete()
        store.close()
    assert cloud.read("key") == content
    assert [reason for _, reason in observer.retries] == ["credentials"]
    assert observer.failures == []
