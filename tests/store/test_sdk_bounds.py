"""What the clouds' libraries send is bounded as ours is: in size, in time, and in where it goes."""

from __future__ import annotations

import contextlib
import json
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler
from pathlib import Path

import pytest

from sidecar.contract.spec import StoreName, StoreSource
from sidecar.errors import SidecarError, StoreError
from sidecar.mounter.store import open_store
from sidecar.mounter.store.azure import sdk as azure_sdk
from sidecar.mounter.store.azure.credentials import AzureCredentials
from sidecar.mounter.store.gcs import sdk as gcs_sdk
from sidecar.mounter.store.gcs.credentials import GcsCredentials
from sidecar.mounter.store.http import exchange
from sidecar.mounter.store.interface import Store
from sidecar.mounter.store.s3 import sdk as s3_sdk
from sidecar.mounter.store.s3.credentials import S3Credentials
from sidecar.units import KIB, MIB
from tests.store.nodes import NODES, identified
from tests.store.raw import FixedCredentials
from tests.support.clouds import CountingObserver, GcsCloud
from tests.support.servers import GcsServer, HttpResponder, answer
from tests.support.waiting import wait_until

ENDLESS_BYTES = 128 * MIB
IN_FLIGHT_BYTES = 32 * MIB
"""What two sockets hold, and what the largest answer may have."""
STORES = ["s3", "gcs", "google", "azure"]
Respond = Callable[[BaseHTTPRequestHandler], None]


@contextlib.contextmanager
def opened(kind: str, respond: Respond) -> Iterator[Store]:
    """The store of a cloud at a server; ``google`` takes batches."""
    with HttpResponder(respond) as server:
        login = {
            "s3": S3Credentials("key", "secret", "t0ken", endpoint_url=server.endpoint),
            "gcs": GcsCredentials(endpoint_url=server.endpoint, anonymous=True),
            "google": GcsCredentials(
                endpoint_url=f"{server.endpoint}/storage.googleapis.com", anonymous=True
            ),
            "azure": AzureCredentials("name", "a2V5", blob_endpoint=f"{server.endpoint}/name"),
        }[kind]
        store: StoreName = "gcs" if kind == "google" else kind  # type: ignore[assignment]
        found = open_store(
            StoreSource(store=store, url=f"{store}://bucket", bucket="bucket"),
            FixedCredentials(login),
            retry_budget_s=0,
            observer=CountingObserver(),
        )
        yield found
        found.close()


def send_for_ever(
    handler: BaseHTTPRequestHandler, status: int, piece: bytes, pause_s: float
) -> int:
    """Send an answer without an end; how much of it was taken."""
    sent = 0
    with contextlib.suppress(OSError):
        handler.rfile.read(int(handler.headers["Content-Length"] or 0))
        handler.send_response(status)
        handler.send_header("Content-Type", "multipart/mixed; boundary=b")
        handler.send_header("Transfer-Encoding", "chunked")
        handler.end_headers()
        while sent < ENDLESS_BYTES:
            handler.wfile.write(b"%x\r\n%s\r\n" % (len(piece), piece))
            sent += len(piece)
            time.sleep(pause_s)
    handler.close_connection = True
    return sent


@pytest.mark.parametrize("kind", STORES)
@pytest.mark.parametrize("status", [301, 302, 307, 308])
def test_a_redirect_leads_nowhere(kind: str, status: int) -> None:
    elsewhere: list[dict[str, str]] = []

    def take(handler: BaseHTTPRequestHandler) -> None:
        elsewhere.append(dict(handler.headers))
        answer(handler, 200)

    with HttpResponder(take) as other:

        def send_away(handler: BaseHTTPRequestHandler) -> None:
            handler.rfile.read(int(handler.headers["Content-Length"] or 0))
            answer(handler, status, b"", {"Location": f"{other.endpoint}/bucket"})

        with opened(kind, send_away) as store, pytest.raises(StoreError):
            store.delete_many(["a", "b"])
    assert elsewhere == []


@pytest.mark.parametrize("kind", STORES)
@pytest.mark.parametrize("status", [200, 403])
def test_an_answer_without_an_end_is_left(kind: str, status: int) -> None:
    taken: list[int] = []

    def respond(handler: BaseHTTPRequestHandler) -> None:
        taken.append(send_for_ever(handler, status, bytes(MIB), 0))

    with opened(kind, respond) as store, pytest.raises(StoreError):
        store.delete_many(["a"])
    assert max(taken) < IN_FLIGHT_BYTES


@pytest.mark.parametrize(
    "document",
    [b"<DeleteResult>" + b"<a/>" * 900_000 + b"</DeleteResult>", b"<!DOCTYPE a><DeleteResult/>"],
    ids=["elements", "a document type"],
)
def test_a_document_of_another_kind_is_not_parsed(document: bytes) -> None:
    def respond(handler: BaseHTTPRequestHandler) -> None:
        handler.rfile.read(int(handler.headers["Content-Length"] or 0))
        answer(handler, 200, document)

    with opened("s3", respond) as store, pytest.raises(SidecarError, match="cannot be read"):
        store.delete_many(["a"])


@pytest.mark.parametrize("kind", STORES)
def test_an_answer_that_drips_is_left(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also in the loop of the SDK, which would go on after the caller has stopped waiting."""
    monkeypatch.setattr(s3_sdk, "_DELETE_TIMEOUT_S", 0.5)
    monkeypatch.setattr(exchange, "_SILENCE_S", 0.3)
    monkeypatch.setattr(gcs_sdk, "_DELETE_TIMEOUT_S", 0.5)
    monkeypatch.setattr(azure_sdk, "_DELETE_TIMEOUT_S", 0.5)
    ended: list[int] = []

    def respond(handler: BaseHTTPRequestHandler) -> None:
        if handler.command == "DELETE" and "User-Agent" not in handler.headers:  # our own
            return answer(handler, 403)
        ended.append(send_for_ever(handler, 200, b" ", 0.02))
        return None

    with opened(kind, respond) as store:
        with contextlib.suppress(SidecarError):
            store.delete_many(["a"])
        wait_until(lambda: ended, "the server's answer ends")


# --- tokens --------------------------------------------------------------------------------


def misbehave(handler: BaseHTTPRequestHandler, how: str, taken: list[int]) -> None:
    """Answer without an end, or lead elsewhere; ``taken`` gets how much was taken of the answer."""
    if how == "drips":
        taken.append(send_for_ever(handler, 200, b" ", 0.02))
    elif how == "is endless":
        taken.append(send_for_ever(handler, 200, b" " * 64 * KIB, 0))
    else:
        handler.rfile.read(int(handler.headers["Content-Length"] or 0))
        answer(handler, 307, b"", {"Location": "/elsewhere"})


@pytest.mark.parametrize("how", ["drips", "is endless", "leads elsewhere"])
def test_who_gives_tokens_is_bounded(
    gcs_server: GcsServer, secrets: Path, monkeypatch: pytest.MonkeyPatch, how: str
) -> None:
    monkeypatch.setattr(exchange, "_SILENCE_S", 0.3)
    monkeypatch.setenv("STORAGE_EMULATOR_HOST", gcs_server.endpoint)
    asked: list[str] = []
    taken: list[int] = []

    def respond(handler: BaseHTTPRequestHandler) -> None:
        asked.append(handler.path)
        misbehave(handler, how, taken)

    with HttpResponder(respond) as server:
        cloud = GcsCloud(gcs_server, "bucket")
        fields = {**gcs_server.credentials(), "token_uri": f"{server.endpoint}/token"}
        cloud.write_secret(secrets, json.dumps(fields))
        store = cloud.open(secrets, retry_budget_s=0)
        with pytest.raises(SidecarError, match="GCS"):
            store.probe()
        store.close()
    assert set(asked) == {"/token"}
    assert max(taken, default=0) < IN_FLIGHT_BYTES


@pytest.mark.parametrize("kind", NODES)
@pytest.mark.parametrize("how", ["drips", "is endless", "leads elsewhere"])
def test_what_gives_a_pod_its_identity_is_bounded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str, how: str
) -> None:
    for module, name, value in (
        (exchange, "_SILENCE_S", 0.3),
        (s3_sdk, "_NODE_SILENCE_S", 0.3),
        (azure_sdk, "_LOGIN_TIMEOUT_S", 2.0),
    ):
        monkeypatch.setattr(module, name, value)
    asked: list[str] = []
    taken: list[int] = []

    def respond(handler: BaseHTTPRequestHandler) -> None:
        asked.append(handler.path)
        misbehave(handler, how, taken)

    with (
        identified(kind, respond, tmp_path, monkeypatch) as store,
        pytest.raises(SidecarError) as caught,
    ):
        store.probe()
    assert caught.value.line()
    assert asked
    assert "/elsewhere" not in asked
    assert max(taken, default=0) < IN_FLIGHT_BYTES


ODD_TOKENS = [
    b"",
    b"\xff",
    b"null",
    b"[]",
    b"[" * 60_000,
    b'{"access_token": null}',
    b'{"access_token": "a", "expires_in": "soon"}',
    b'{"access_token": "a", "expires_in": 1e300}',
    b'{"access_token": "a", "expires_in": 99999999999999}',
    b'{"access_token": "a", "expires_in": []}',
    b'{"access_token": ["a"], "expires_in": 3600}',
    b'{"access_token": "a\\r\\nx: y", "expires_in": 3600}',
]


@pytest.mark.parametrize("status", [200, 400])
@pytest.mark.parametrize("body", ODD_TOKENS)
def test_what_is_no_token_is_one_line(
    gcs_server: GcsServer,
    secrets: Path,
    monkeypatch: pytest.MonkeyPatch,
    body: bytes,
    status: int,
) -> None:
    monkeypatch.setenv("STORAGE_EMULATOR_HOST", gcs_server.endpoint)

    def respond(handler: BaseHTTPRequestHandler) -> None:
        handler.rfile.read(int(handler.headers["Content-Length"] or 0))
        answer(handler, status, body)

    with HttpResponder(respond) as server:
        cloud = GcsCloud(gcs_server, "no-such-bucket")
        fields = {**gcs_server.credentials(), "token_uri": f"{server.endpoint}/token"}
        cloud.write_secret(secrets, json.dumps(fields))
        store = cloud.open(secrets, retry_budget_s=0)
        with pytest.raises(SidecarError):
            store.probe()
        store.close()
