"""Deletion of many keys through the SDKs: their requests and their errors."""

from __future__ import annotations

import re
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest

from sidecar.contract.spec import StoreName, StoreSource
from sidecar.errors import AccessDenied, StoreError
from sidecar.mounter.store import open_store
from sidecar.mounter.store.azure import store as azure_module
from sidecar.mounter.store.azure.credentials import AzureCredentials
from sidecar.mounter.store.credentials import Credentials
from sidecar.mounter.store.gcs.credentials import GcsCredentials
from sidecar.mounter.store.interface import Store
from sidecar.mounter.store.s3.credentials import S3Credentials
from tests.store.conftest import make_cloud
from tests.store.raw import FixedCredentials
from tests.support.clouds import CountingObserver
from tests.support.servers import HttpResponder, answer

GOOGLE = "/storage.googleapis.com"
"""gcsfs sends batches only to an address that contains this."""


class Google:
    """The parts of the JSON API that these tests use: batches and single deletions."""

    def __init__(self, refused: set[str]) -> None:
        self.refused = refused
        self.batched: list[str] = []
        self.alone: list[str] = []

    def respond(self, handler: BaseHTTPRequestHandler) -> None:
        body = handler.rfile.read(int(handler.headers["Content-Length"] or 0)).decode()
        if handler.command == "DELETE":
            name = unquote(urlsplit(handler.path).path.rpartition("/")[2])
            self.alone.append(name)
            return answer(handler, 403 if name in self.refused else 204)
        names = [unquote(name) for name in re.findall(r"DELETE /storage/v1/b/\w+/o/(\S+) ", body)]
        self.batched += names
        parts = [
            f"--b\r\n\r\nHTTP/1.1 {403 if name in self.refused else 204} x\r\n\r\n"
            for name in names
        ]
        text = "".join(parts) + "--b--"
        return answer(handler, 200, text.encode(), {"Content-Type": "multipart/mixed; boundary=b"})


def opened(kind: StoreName, credentials: Credentials, observer: CountingObserver) -> Store:
    return open_store(
        StoreSource(store=kind, url=f"{kind}://bucket/p/", bucket="bucket", prefix="p/"),
        FixedCredentials(credentials),
        retry_budget_s=0,
        observer=observer,
    )


def test_google_is_sent_a_batch_of_plain_names() -> None:
    google, observer = Google(refused=set()), CountingObserver()
    with HttpResponder(google.respond) as server:
        login = GcsCredentials(endpoint_url=server.endpoint + GOOGLE, anonymous=True)
        store = opened("gcs", login, observer)
        store.delete_many(["a", "dir/", "ü/%41", "all*", "[a]", "why?"])
        store.close()
    assert sorted(google.batched) == ["p/a", "p/dir/", "p/ü/%41"]
    assert google.alone == ["p/all*", "p/[a]", "p/why?"]  # gcsfs would take them for patterns
    assert observer.requests == [("delete", "ok")] * 4


def test_what_a_batch_refuses_is_explained(caplog: pytest.LogCaptureFixture) -> None:
    google, observer = Google(refused={"p/b"}), CountingObserver()
    with HttpResponder(google.respond) as server:
        login = GcsCredentials(endpoint_url=server.endpoint + GOOGLE, anonymous=True)
        store = opened("gcs", login, observer)
        with pytest.raises(AccessDenied, match="denies delete of `b`") as caught:
            store.delete_many(["a", "b"])
        store.close()
    assert google.alone[:2] == ["p/a", "p/b"]
    assert caught.value.__context__ is None
    assert not caplog.records


def test_what_s3_refuses_of_many_is_explained() -> None:
    asked: list[str] = []

    def respond(handler: BaseHTTPRequestHandler) -> None:
        handler.rfile.read(int(handler.headers["Content-Length"] or 0))
        asked.append(f"{handler.command} {handler.path.partition('?')[0]}")
        if handler.command == "DELETE":
            return answer(handler, 403, b"<Error><Code>AccessDenied</Code></Error>")
        body = (
            b"<DeleteResult><Deleted><Key>p/a</Key></Deleted>"
            b"<Error><Key>p/b</Key><Code>AccessDenied</Code></Error></DeleteResult>"
        )
        return answer(handler, 200, body)

    with HttpResponder(respond) as server:
        login = S3Credentials("key", "secret", endpoint_url=server.endpoint)
        store = opened("s3", login, CountingObserver())
        with pytest.raises(AccessDenied, match="denies delete of `b`"):
            store.delete_many(["a", "b"])
        store.close()
    assert asked[:2] == ["POST /bucket", "DELETE /bucket/p/b"]


ODD = ["a", "dir/", "ü/%41", "all*", "why?", "a b+c&d", "x" * 900]


def test_azure_deletes_many_at_once(
    request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch, secrets: Path
) -> None:
    monkeypatch.setattr(azure_module, "DELETE_BATCH", len(ODD))
    cloud = make_cloud("azure", request, monkeypatch)
    cloud.write_secret(secrets)
    for key in [*ODD, "stays"]:
        cloud.write(key, b"x")
    observer = CountingObserver()
    store = cloud.open(secrets, observer=observer)
    store.delete_many([*ODD, "absent", "missing"])
    store.close()
    assert cloud.keys() == ["stays"]
    assert observer.requests == [("delete", "ok")] * 2


@pytest.mark.parametrize("status", [403, 200, 302])
def test_what_azure_does_not_delete_at_once_is_explained(status: int) -> None:
    asked: list[str] = []

    def respond(handler: BaseHTTPRequestHandler) -> None:
        handler.rfile.read(int(handler.headers["Content-Length"] or 0))
        asked.append(f"{handler.command} {handler.path.partition('?')[0]}")
        of_a = handler.path.endswith("/a")
        elsewhere = {"Location": "/elsewhere"} if status == 302 else {}
        answer(handler, 202 if of_a else status, b"", {} if of_a else elsewhere)

    with HttpResponder(respond) as server:
        login = AzureCredentials("name", "a2V5", blob_endpoint=f"{server.endpoint}/name")
        store = opened("azure", login, CountingObserver())
        with pytest.raises(StoreError) as caught:
            store.delete_many(["a", "b"])
        store.close()
    assert isinstance(caught.value, AccessDenied) == (status == 403)
    assert asked.count("DELETE /name/bucket/p/a") == 1
    assert asked.count("DELETE /name/bucket/p/b") > 1
