"""Nothing but bulk deletion and a pod's own identity needs an SDK."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler
from pathlib import Path

import pytest

from sidecar.contract.spec import StoreName, StoreSource
from sidecar.errors import (
    EndpointUnreachable,
    LoginRejected,
    SidecarError,
    StoreProtocolError,
    Unavailable,
)
from sidecar.mounter.store import open_store
from sidecar.mounter.store.azure.credentials import AzureCredentials
from sidecar.mounter.store.credentials import Credentials
from sidecar.mounter.store.gcs.credentials import GcsCredentials
from sidecar.mounter.store.http.pool import Endpoint
from sidecar.mounter.store.http.values import http_time_s
from sidecar.mounter.store.interface import Page, Store
from sidecar.mounter.store.s3.credentials import S3Credentials
from sidecar.mounter.store.s3.requests import S3Requests
from tests.store.raw import FixedCredentials
from tests.store.test_listing import UNUSUAL_KEYS, all_pages
from tests.support.clouds import Cloud, CountingObserver
from tests.support.servers import HttpResponder, answer, free_port

READ = """
import json, sys
from sidecar.mounter.store.credentials import VolumeCredentials
from sidecar.mounter.store import open_store
from sidecar.mounter.store.interface import Revision
from sidecar.mounter.worker.write_check import check_writes
from sidecar.contract.spec import StoreSource
from tests.support.clouds import CountingObserver

source = StoreSource(**json.loads(sys.argv[1]))
credentials = VolumeCredentials(source, sys.argv[2])
store = open_store(source, credentials, retry_budget_s=0, observer=CountingObserver())
store.probe()
(found,) = store.list_page("").objects
buffer = bytearray(found.size_bytes)
assert store.get_range(found.key, found.version, 0, memoryview(buffer)) == found.size_bytes
if "--write" in sys.argv:
    check_writes(store, "probe")
if "--change" in sys.argv:
    upload = store.start_upload("large", {"mtime": "1"})
    upload.put_part(1, bytes(6 * 2**20))
    made = upload.complete()
    assert store.head("large").size_bytes == made.size_bytes == 6 * 2**20
    store.copy("large", "large", metadata={"mtime": "2"})
    made = store.copy("large", "moved")
    fresh = b"0123456789"
    revision = Revision(
        made.size_bytes,
        [(0, 10)],
        lambda offset, size: (fresh + bytes(size))[:size] if not offset else bytes(size),
        8 * 2**20,
        lambda actions: [action() for action in actions],
    )
    store.patch(made, "moved", revision, {}, lambda state: None)
    store.delete("large")
store.close()
sdks = ("s3fs", "gcsfs", "adlfs", "botocore", "aiobotocore", "azure", "fsspec", "aiohttp")
print(json.dumps([buffer.decode(), [name for name in sdks if name in sys.modules]]))
"""


@pytest.mark.parametrize(
    "options", [[], ["--write"], ["--change"]], ids=["read", "written", "changed"]
)
def test_an_sdk_is_not_imported(cloud: Cloud, secrets: Path, options: list[str]) -> None:
    cloud.write("key", b"content")
    cloud.write_secret(secrets)
    source = cloud.source()
    names = ("store", "url", "bucket", "prefix", "secret", "secret_key")
    fields = json.dumps({name: getattr(source, name) for name in names})
    done = subprocess.run(
        [sys.executable, "-c", READ, fields, str(secrets), *options],
        check=False,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == ["content", []]


# --- pages that no healthy server gives --------------------------------------------------


def list_from(
    kind: StoreName, *bodies: bytes, retry_budget_s: float = 20, token: str | None = None
) -> Page:
    """The page that is parsed from a server's answer; several answers are given in turn."""
    script = list(bodies)

    def respond(handler: BaseHTTPRequestHandler) -> None:
        body = script.pop(0) if len(script) > 1 else script[0]
        if body.endswith(b"<cut>"):
            handler.send_response(200)
            handler.send_header("Content-Length", str(len(body) + 100))
            handler.end_headers()
            handler.wfile.write(body)
            handler.close_connection = True
        else:
            answer(handler, 200, body)

    with HttpResponder(respond) as server:
        credentials: Credentials
        if kind == "s3":
            credentials = S3Credentials(endpoint_url=server.endpoint, anonymous=True)
        elif kind == "gcs":
            credentials = GcsCredentials(endpoint_url=server.endpoint, anonymous=True)
        else:
            credentials = AzureCredentials(blob_endpoint=server.endpoint, anonymous=True)
        store = open_store(
            StoreSource(store=kind, url=f"{kind}://bucket", bucket="bucket"),
            FixedCredentials(credentials),
            retry_budget_s=retry_budget_s,
            observer=CountingObserver(),
        )
        try:
            return store.list_page("", token)
        finally:
            store.close()


CONTENTS = (
    b"<Contents><Key>%s</Key><Size>3</Size><ETag>&quot;v&quot;</ETag>"
    b"<LastModified>2026-11-24T00:00:00.000Z</LastModified></Contents>"
)
S3_PAGE = b"<ListBucketResult>%s</ListBucketResult>"
LAUGHS = b'<!DOCTYPE l [<!ENTITY a "ha"><!ENTITY b "&a;&a;&a;">]>' + S3_PAGE % (CONTENTS % b"&b;")


@pytest.mark.parametrize("kind", ["s3", "gcs", "azure"])
@pytest.mark.parametrize(
    "body", [b"", b"<html>log in first</html>", b"[]", b"{}", b"null", b"\xff\xfe", b"[" * 100_000]
)
def test_what_is_no_listing_is_never_an_empty_directory(kind: StoreName, body: bytes) -> None:
    with pytest.raises(StoreProtocolError, match="no page of a listing") as caught:
        list_from(kind, body)
    assert "log in first" not in caught.value.line()
    assert caught.value.__context__ is None


@pytest.mark.parametrize(
    ("kind", "body"),
    [
        ("s3", LAUGHS),
        ("s3", b"<!DOCTYPE l SYSTEM 'file:///etc/hostname'>" + S3_PAGE % b""),
        ("s3", S3_PAGE % b"<IsTruncated>true</IsTruncated>"),
        ("s3", S3_PAGE % b"<Contents><Key>k</Key></Contents>"),
        ("s3", S3_PAGE % (CONTENTS % b"k")[:-20]),
        ("gcs", b'{"kind": "storage#objects", "items": [{"name": "k"}]}'),
        ("azure", b"<EnumerationResults/>"),
        ("azure", b"<EnumerationResults><Blobs><Blob><Name>k</Name></Blob></Blobs>"),
    ],
)
def test_a_page_with_something_missing_or_added_is_refused(kind: StoreName, body: bytes) -> None:
    with pytest.raises(StoreProtocolError, match="no page of a listing"):
        list_from(kind, body)


def test_a_page_that_is_cut_short_is_asked_for_again() -> None:
    whole = S3_PAGE % (CONTENTS % b"key")
    page = list_from("s3", whole + b"<cut>", whole)
    assert [item.key for item in page.objects] == ["key"]
    with pytest.raises((Unavailable, StoreProtocolError), match="ended early"):
        list_from("s3", whole + b"<cut>", retry_budget_s=0)


@pytest.mark.parametrize(
    ("written", "key"),
    [
        (b"a&#x01;b", "a\x01b"),
        (b"a&#1;b&#x1F;", "a\x01b\x1f"),
        (b"a\x01b", "a\x01b"),
        (b"a&#x1;\xee\x80\x80&#xE001;", "a\x01\ue000\ue001"),  # what could stand in for it
        (b"a&#x01;&amp;#x1;&lt;&#xFFFE;\xef\xbf\xbf", "a\x01&#x1;<\ufffe\uffff"),
        (b"a&#x01;&#10;&#x10FFFF;", "a\x01\n\U0010ffff"),
    ],
)
def test_characters_that_xml_forbids_are_read(written: bytes, key: str) -> None:
    page = list_from("s3", S3_PAGE % (CONTENTS % written))
    assert [item.key for item in page.objects] == [key]


@pytest.mark.parametrize(
    "written", [b"a&#x01;&#xD800;", b"a&#x110000;", b"a&#x01;<b", b"&#x01;&z;"]
)
def test_what_is_still_no_xml_is_refused(written: bytes) -> None:
    with pytest.raises(StoreProtocolError, match="no page of a listing") as caught:
        list_from("s3", S3_PAGE % (CONTENTS % written))
    assert caught.value.code == "SC1052"


def test_a_listing_that_does_not_go_on_ends() -> None:
    more = b"<IsTruncated>true</IsTruncated><NextContinuationToken>t</NextContinuationToken>"
    token = list_from("s3", S3_PAGE % more).next_token
    with pytest.raises(StoreProtocolError, match="does not go on"):
        list_from("s3", S3_PAGE % more, token=token, retry_budget_s=0)


def test_keys_are_unescaped_exactly_where_the_server_says_so() -> None:
    escaped = b"<EncodingType>url</EncodingType>" + CONTENTS % b"a+b%2B%01c"
    assert list_from("s3", S3_PAGE % escaped).objects[0].key == "a b+\x01c"
    assert list_from("s3", S3_PAGE % (CONTENTS % b"a+b%2B")).objects[0].key == "a+b%2B"
    blob = (
        b"<EnumerationResults><Blobs><Blob><Name%s>a+%%EF%%BF%%BE</Name><Properties>"
        b"<Last-Modified>Sun, 06 Nov 1994 08:49:37 GMT</Last-Modified><Etag>v</Etag>"
        b"<Content-Length>1</Content-Length></Properties></Blob></Blobs></EnumerationResults>"
    )
    assert list_from("azure", blob % b' Encoded="true"').objects[0].key == "a+\ufffe"
    assert list_from("azure", blob % b"").objects[0].key == "a+%EF%BF%BE"
    assert http_time_s("Sun, 06 Nov 1994 08:49:37 GMT") == 784111777


def test_a_server_that_escapes_differently_lists_the_same_keys(rclone_server, secrets) -> None:
    from tests.support.clouds import RcloneCloud

    rclone_server.create_bucket("unusual")
    cloud = RcloneCloud(rclone_server, "unusual")
    cloud.write_secret(secrets)
    for key in UNUSUAL_KEYS:
        cloud.write(key, b"x")
    store = cloud.open(secrets)
    objects, _ = all_pages(store, "", delimiter="", limit=3)
    store.close()
    assert {item.key for item in objects} == set(UNUSUAL_KEYS)


# --- the pod's identity --------------------------------------------------------------------


@pytest.fixture
def ambient(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[str], Store]]:
    """An S3 bucket whose credentials come from a web identity, exchanged at an endpoint."""
    token = tmp_path / "token"
    token.write_text("canary-token")
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("AWS_WEB_IDENTITY_TOKEN_FILE", str(token))
    monkeypatch.setenv("AWS_ROLE_ARN", "arn:aws:iam::123456789012:role/reader")
    monkeypatch.setenv("AWS_REGION", "eu-central-1")
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "1")
    opened: list[Store] = []

    def make(exchange: str) -> Store:
        monkeypatch.setenv("AWS_ENDPOINT_URL_STS", exchange)
        store = open_store(
            StoreSource(store="s3", url="s3://bucket", bucket="bucket"),
            FixedCredentials(S3Credentials(ambient=True, endpoint_url="http://127.0.0.1:9")),
            retry_budget_s=0,
            observer=CountingObserver(),
        )
        opened.append(store)
        return store

    yield make
    for store in opened:
        store.close()


@pytest.mark.parametrize(
    ("status", "code", "expected"),
    [
        (400, "InvalidIdentityToken", LoginRejected),
        (403, "AccessDenied", LoginRejected),
        (503, "ServiceUnavailable", Unavailable),
    ],
)
def test_an_identity_that_is_refused_is_told(
    ambient: Callable[[str], Store], status: int, code: str, expected: type[SidecarError]
) -> None:
    body = f"<ErrorResponse><Error><Code>{code}</Code></Error></ErrorResponse>".encode()
    with HttpResponder(lambda handler: answer(handler, status, body)) as server:
        store = ambient(server.endpoint)
        with pytest.raises(expected, match=code) as caught:
            store.probe()
    assert type(caught.value) is expected
    assert caught.value.__cause__ is None
    assert "canary" not in caught.value.line()


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"<html>log in first</html>",
        b"<a" * 20_000,
        b"<AssumeRoleWithWebIdentityResponse/>",
        (
            b"<AssumeRoleWithWebIdentityResponse><AssumeRoleWithWebIdentityResult><Credentials>"
            b"<Expiration>soon</Expiration></Credentials></AssumeRoleWithWebIdentityResult>"
            b"</AssumeRoleWithWebIdentityResponse>"
        ),
    ],
)
def test_an_identity_that_is_none_is_one_line(ambient: Callable[[str], Store], body: bytes) -> None:
    with HttpResponder(lambda handler: answer(handler, 200, body)) as server:
        store = ambient(server.endpoint)
        with pytest.raises(SidecarError, match=r"S3|AWS login") as caught:
            store.probe()
    assert "log in first" not in caught.value.line()


def test_an_identity_service_that_is_away_is_an_outage(
    ambient: Callable[[str], Store],
) -> None:
    with pytest.raises(EndpointUnreachable, match="AWS login"):
        ambient(f"http://127.0.0.1:{free_port()}").probe()


def test_a_bucket_in_another_region_is_followed_within_the_one_attempt(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """AWS itself cannot be reached, so the other region's address is replaced."""
    elsewhere = {"x-amz-bucket-region": "eu-west-3"}
    page = S3_PAGE % (CONTENTS % b"key")
    with (
        HttpResponder(lambda handler: answer(handler, 301, b"", elsewhere)) as first,
        HttpResponder(lambda handler: answer(handler, 200, page)) as second,
    ):
        target = Endpoint.parse(second.endpoint)
        monkeypatch.setattr(
            S3Requests,
            "redirect",
            lambda _, fields: target if "x-amz-bucket-region" in fields else None,
        )
        observer = CountingObserver()
        store = open_store(
            StoreSource(store="s3", url="s3://bucket", bucket="bucket"),
            FixedCredentials(S3Credentials(endpoint_url=first.endpoint, anonymous=True)),
            retry_budget_s=0,
            observer=observer,
        )
        store.probe()
        assert [item.key for item in store.list_page("").objects] == ["key"]
        store.close()
    assert observer.requests == [("list", "ok")] * 2
    assert observer.retries == []
