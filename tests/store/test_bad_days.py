"""The errors for a store that is down, misconfigured or misbehaves."""

from __future__ import annotations

import base64
import json
import shutil
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from http.server import BaseHTTPRequestHandler
from pathlib import Path

import pytest

from sidecar.contract.spec import StoreSource
from sidecar.errors import (
    BucketNotFound,
    EndpointUnreachable,
    LoginRejected,
    NotFound,
    SidecarError,
    TlsUntrusted,
    Unavailable,
)
from sidecar.mounter.store import open_store
from sidecar.mounter.store.credentials import VolumeCredentials
from sidecar.mounter.store.interface import Condition, Store
from tests.support.clouds import Cloud, CountingObserver, GcsCloud, RcloneCloud, S3Cloud
from tests.support.servers import (
    GcsServer,
    HttpResponder,
    RcloneServer,
    S3Server,
    TlsFiles,
    answer,
    free_port,
)
from tests.support.waiting import wait_until

NO_RETRY = 0.0


def told(action: Callable[[], object], expected: type[SidecarError]) -> str:
    with pytest.raises(expected) as caught:
        action()
    assert type(caught.value) is expected
    # An SDK's exception may contain signatures, so it must not be the cause.
    assert caught.value.__cause__ is None
    return caught.value.line()


def test_a_good_bucket_is_probed_with_one_request(cloud: Cloud, secrets: Path) -> None:
    cloud.write_secret(secrets)
    observer = CountingObserver()
    store = cloud.open(secrets, observer=observer)
    store.probe()
    store.close()
    assert observer.requests == [("list", "ok")]
    assert observer.retries == []


def test_a_missing_bucket(cloud: Cloud, secrets: Path) -> None:
    cloud.write_secret(secrets)
    store = cloud.open(secrets, bucket="no-such-bucket")
    for action in (
        store.probe,
        lambda: store.list_page(""),
        lambda: store.head("key"),
        lambda: store.get_range("key", "1", 0, memoryview(bytearray(4))),
        lambda: store.put("key", b"data"),
        lambda: store.delete("key"),
    ):
        line = told(action, BucketNotFound)
        assert line.startswith("error SC1042 BUCKET_NOT_FOUND: ")
        assert "no-such-bucket" in line
        assert "127.0.0.1" in line
    store.close()


def test_a_bucket_deleted_while_in_use_is_no_missing_object(
    cloud: Cloud, secrets: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cloud.write_secret(secrets)
    store = cloud.open(secrets)
    made = store.put("key", b"data")
    cloud.delete("key")
    if cloud.name == "azure":
        with cloud.server.client() as client:
            client.delete_container(cloud.bucket)
    elif cloud.name == "gcs":
        cloud.server.client().bucket(cloud.bucket).delete()
    else:
        cloud.server.client().remove_bucket(cloud.bucket)
    told(lambda: store.get_range("key", made.version, 0, memoryview(bytearray(4))), BucketNotFound)
    told(lambda: store.head("key"), BucketNotFound)
    store.close()


CANARY = "canaryCANARY0123456789"


def break_s3_key(fields: dict[str, str]) -> None:
    fields["AWS_ACCESS_KEY_ID"] = CANARY


def break_s3_secret(fields: dict[str, str]) -> None:
    fields["AWS_SECRET_ACCESS_KEY"] = CANARY


def break_azure_key(fields: dict[str, str]) -> None:
    encoded = base64.b64encode(CANARY.encode()).decode()
    fields["AZURE_CONNECTION_STRING"] = fields["AZURE_CONNECTION_STRING"].replace(
        fields["AZURE_ACCOUNT_KEY"], encoded
    )
    fields["AZURE_ACCOUNT_KEY"] = encoded


@pytest.mark.parametrize(
    ("kind", "change", "word"),
    [
        ("s3", break_s3_key, "InvalidAccessKeyId"),
        ("s3", break_s3_secret, "SignatureDoesNotMatch"),
        ("azure", break_azure_key, "AuthenticationFailed"),
    ],
)
def test_a_wrong_key_is_rejected_and_not_shown(
    kind: str,
    change: Callable[[dict[str, str]], None],
    word: str,
    request: pytest.FixtureRequest,
    monkeypatch: pytest.MonkeyPatch,
    secrets: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    from tests.store.conftest import make_cloud

    cloud = make_cloud(kind, request, monkeypatch)
    fields = cloud.server.credentials()
    change(fields)
    cloud.write_secret(secrets, json.dumps(fields))
    caplog.set_level("DEBUG")
    store = cloud.open(secrets, retry_budget_s=NO_RETRY)
    for action in (
        store.probe,
        lambda: store.get_range("key", "1", 0, memoryview(bytearray(4))),
        lambda: store.put("key", b"data"),
    ):
        line = told(action, LoginRejected)
        assert word in line
        assert "secret" in line
        assert CANARY not in line
    assert CANARY not in repr(store)
    store.close()


def test_a_rotated_secret_is_picked_up_without_an_error(s3_server, secrets: Path) -> None:
    from tests.support.clouds import S3Cloud

    s3_server.create_bucket("rotated")
    cloud = S3Cloud(s3_server, "rotated")
    fields = s3_server.credentials()
    cloud.write_secret(secrets, json.dumps({**fields, "AWS_SECRET_ACCESS_KEY": "old-" + CANARY}))
    observer = CountingObserver()
    store = cloud.open(secrets, observer=observer)
    told(store.probe, LoginRejected)
    cloud.write_secret(secrets)
    made = store.put("key", b"data")
    assert ("put", "credentials") in observer.retries
    assert store.get_range("key", made.version, 0, memoryview(bytearray(4))) == 4
    store.close()


ROTATED_S = 1.5
"""When the new key comes: after the first attempts with the old one, which is refused at once."""


@pytest.mark.parametrize("call", ["get", "head", "list", "put"])
@pytest.mark.parametrize("between", ["old", "none"])
def test_a_key_that_is_refused_before_the_new_one_comes_is_waited_out(
    s3_server: S3Server, secrets: Path, call: str, between: str
) -> None:
    """The kubelet syncs a secret once a minute, and an admin may delete it and create it anew."""
    bucket = f"late-{call}-{between}"
    s3_server.create_bucket(bucket)
    cloud = S3Cloud(s3_server, bucket)
    cloud.write("key", b"data")
    cloud.write_secret(secrets)
    store = cloud.open(secrets)
    version = store.head("key").version
    store.close()
    old = {**s3_server.credentials(), "AWS_SECRET_ACCESS_KEY": "old-" + CANARY}
    cloud.write_secret(secrets, json.dumps(old))
    observer = CountingObserver()
    store = cloud.open(secrets, observer=observer)
    if between == "none":
        shutil.rmtree(secrets)
    timer = threading.Timer(ROTATED_S, lambda: cloud.write_secret(secrets))
    timer.start()
    calls: dict[str, Callable[[], object]] = {
        "get": lambda: store.get_range("key", version, 0, memoryview(bytearray(4))),
        "head": lambda: store.head("key"),
        "list": lambda: store.list_page(""),
        "put": lambda: store.put("other", b"data"),
    }
    calls[call]()
    timer.join()
    assert len(observer.retries) < 20
    store.close()


def test_a_key_that_stays_refused_is_told_when_the_budget_is_spent(
    s3_server: S3Server, secrets: Path
) -> None:
    s3_server.create_bucket("stays")
    cloud = S3Cloud(s3_server, "stays")
    fields = {**s3_server.credentials(), "AWS_SECRET_ACCESS_KEY": "old-" + CANARY}
    cloud.write_secret(secrets, json.dumps(fields))
    observer = CountingObserver()
    store = cloud.open(secrets, observer=observer, retry_budget_s=1.0)
    for action in (
        lambda: store.get_range("key", "1", 0, memoryview(bytearray(4))),
        lambda: store.head("key"),
    ):
        observer.retries.clear()
        line = told(action, LoginRejected)
        assert "secret" in line
        assert CANARY not in line
        assert len(observer.retries) > 2
    store.close()


def test_nothing_listens(cloud: Cloud, secrets: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    port = free_port()
    content = cloud.server.credentials_json().replace(str(cloud.server.port), str(port))
    monkeypatch.setenv("STORAGE_EMULATOR_HOST", f"http://127.0.0.1:{port}")
    cloud.write_secret(secrets, content)
    store = cloud.open(secrets, retry_budget_s=NO_RETRY)
    for action in (store.probe, lambda: store.get_range("k", "1", 0, memoryview(bytearray(4)))):
        line = told(action, EndpointUnreachable)
        assert f"127.0.0.1:{port}" in line
        assert "connection refused" in line
    store.close()


def test_a_name_that_does_not_resolve(
    cloud: Cloud, secrets: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    content = cloud.server.credentials_json().replace(
        f"127.0.0.1:{cloud.server.port}", "store.invalid"
    )
    monkeypatch.setenv("STORAGE_EMULATOR_HOST", "http://store.invalid")
    cloud.write_secret(secrets, content)
    store = cloud.open(secrets, retry_budget_s=NO_RETRY)
    for action in (store.probe, lambda: store.get_range("k", "1", 0, memoryview(bytearray(4)))):
        line = told(action, EndpointUnreachable)
        assert "store.invalid" in line
        assert "cannot be resolved" in line
    store.close()


@pytest.fixture
def tls_cloud(tmp_path: Path):
    tls = TlsFiles(tmp_path / "tls")
    with RcloneServer(tmp_path / "rclone", tls=tls) as server:
        server.create_bucket("bucket")
        yield RcloneCloud(server, "bucket")


def test_a_self_signed_certificate_is_trusted_only_when_named(
    tls_cloud: RcloneCloud, secrets: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tls_cloud.write("key", b"data")
    tls_cloud.write_secret(secrets)

    def read(store: Store) -> bytes:
        buffer = bytearray(4)
        store.probe()
        store.get_range("key", store.head("key").version, 0, memoryview(buffer))
        return bytes(buffer)

    store = tls_cloud.open(secrets)
    for action in (store.probe, lambda: store.get_range("key", "1", 0, memoryview(bytearray(4)))):
        line = told(action, TlsUntrusted)
        assert "SSL_CERT_FILE" in line
        assert f"127.0.0.1:{tls_cloud.server.port}" in line
    store.close()

    assert tls_cloud.server.tls is not None
    monkeypatch.setenv("SSL_CERT_FILE", str(tls_cloud.server.tls.certificate))
    store = tls_cloud.open(secrets)
    assert read(store) == b"data"
    store.close()
    monkeypatch.delenv("SSL_CERT_FILE")

    fields = {**tls_cloud.server.credentials(), "AWS_VERIFY_SSL": False}
    tls_cloud.write_secret(secrets, json.dumps(fields))
    store = tls_cloud.open(secrets)
    assert read(store) == b"data"
    store.close()


# --- outages ---------------------------------------------------------------------------


@pytest.fixture(params=["s3", "gcs", "azure"])
def mortal(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """A bucket on the test's own server, which it may stop."""
    from tests.store.conftest import KINDS
    from tests.support.servers import AzureServer, MinioServer

    kinds = {
        "s3": lambda: MinioServer(tmp_path / "server"),
        "gcs": lambda: GcsServer(tmp_path / "server", keep_data=True),
        "azure": lambda: AzureServer(tmp_path / "server"),
    }
    with kinds[request.param]() as server:
        monkeypatch.setenv("STORAGE_EMULATOR_HOST", server.endpoint)
        server.create_bucket("bucket")
        yield KINDS[request.param][1](server, "bucket")


def test_an_outage_within_the_budget_is_waited_out_and_a_longer_one_is_said(
    mortal: Cloud, secrets: Path
) -> None:
    content = bytes(range(256)) * 1000
    mortal.write("key", content)
    mortal.write_secret(secrets)
    observer = CountingObserver()
    store = mortal.open(secrets, retry_budget_s=30, observer=observer)
    version = store.head("key").version
    buffer = bytearray(len(content))
    assert store.get_range("key", version, 0, memoryview(buffer)) == len(content)

    for action in (
        lambda: store.get_range("key", version, 0, memoryview(buffer)),
        lambda: store.list_page(""),
        lambda: store.put("written", content),
    ):
        observer.retries.clear()
        mortal.server.stop()
        with ThreadPoolExecutor(1) as pool:
            result = pool.submit(action)
            wait_until(lambda: observer.retries, "a retry", running=lambda: not result.done())  # noqa: B023
            mortal.server.start()
            result.result()
        # A server that is just starting may answer 503.
        seen = {reason for _, reason in observer.retries}
        assert seen <= {"connection", "stalled", "throttled", "server_error"}
    buffer[:] = bytes(len(content))
    assert store.get_range("key", version, 0, memoryview(buffer)) == len(content)
    assert bytes(buffer) == content
    assert mortal.read("written") == content

    mortal.server.stop()
    hasty = mortal.open(secrets, retry_budget_s=NO_RETRY)
    for action in (
        lambda: hasty.get_range("key", version, 0, memoryview(buffer)),
        lambda: hasty.head("key"),
        lambda: hasty.list_page(""),
        lambda: hasty.put("key", b"x", condition=Condition(absent=True)),
        lambda: hasty.delete("key"),
        lambda: hasty.copy("key", "other"),
    ):
        with pytest.raises(Unavailable) as caught:
            action()
        assert not isinstance(caught.value, NotFound)
    mortal.server.start()
    assert hasty.head("key").version == version
    hasty.close()
    store.close()


# --- the login of a service account ----------------------------------------------------


def test_a_service_account_logs_in_once_for_both_paths(
    gcs_server: GcsServer, secrets: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("STORAGE_EMULATOR_HOST", gcs_server.endpoint)
    gcs_server.create_bucket("login")
    cloud = GcsCloud(gcs_server, "login")
    cloud.write_secret(secrets)
    before = gcs_server.tokens.granted
    store = cloud.open(secrets)
    made = store.put("key", b"data")
    assert store.get_range("key", made.version, 0, memoryview(bytearray(4))) == 4
    assert store.list_page("").objects[0].key == "key"
    assert gcs_server.tokens.granted == before + 1
    store.close()


def test_a_deleted_service_account_key_is_rejected(
    gcs_server: GcsServer, secrets: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("STORAGE_EMULATOR_HOST", gcs_server.endpoint)
    cloud = GcsCloud(gcs_server, "login-refused")
    cloud.write_secret(secrets)
    monkeypatch.setattr(gcs_server.tokens, "refuse", True)
    store = cloud.open(secrets, retry_budget_s=NO_RETRY)
    for action in (store.probe, lambda: store.get_range("k", "1", 0, memoryview(bytearray(4)))):
        line = told(action, LoginRejected)
        assert "invalid_grant" in line
        assert "PRIVATE KEY" not in line
    store.close()


def test_a_token_endpoint_that_is_away_is_an_outage(
    gcs_server: GcsServer, secrets: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("STORAGE_EMULATOR_HOST", gcs_server.endpoint)
    cloud = GcsCloud(gcs_server, "login-away")
    port = free_port()
    fields = {**gcs_server.credentials(), "token_uri": f"http://127.0.0.1:{port}/token"}
    cloud.write_secret(secrets, json.dumps(fields))
    store = cloud.open(secrets, retry_budget_s=NO_RETRY)
    line = told(store.probe, EndpointUnreachable)
    assert f"127.0.0.1:{port}" in line
    store.close()


def test_a_copy_whose_token_ends_names_its_source_with_the_next(secrets: Path) -> None:
    """On Azure a SAS is in the URL of the source, too."""
    named: list[str] = []
    made = {"ETag": '"17"', "Last-Modified": "Tue, 24 Nov 2026 10:20:30 GMT"}

    def write_secret(token: str) -> None:
        fields = {"AZURE_CONNECTION_STRING": f"BlobEndpoint={url};SharedAccessSignature={token}"}
        (secrets / "cloud").mkdir(parents=True, exist_ok=True)
        (secrets / "cloud" / "key.json").write_text(json.dumps(fields))

    def respond(handler: BaseHTTPRequestHandler) -> None:
        if handler.command == "HEAD":
            handler.send_response(200)
            for name, value in {**made, "Content-Length": "3"}.items():
                handler.send_header(name, value)
            handler.end_headers()
            return
        named.append(handler.headers["x-ms-copy-source"].partition("?")[2])
        if "old" in handler.path:
            write_secret("sig=new")
            answer(handler, 403, b"", {"x-ms-error-code": "AuthenticationFailed"})
        else:
            answer(handler, 202, b"", {**made, "x-ms-copy-status": "success"})

    with HttpResponder(respond) as server:
        url = f"{server.endpoint}/name"
        write_secret("sig=old")
        source = StoreSource(
            store="azure",
            url="wasbs://bucket@name.example/",
            bucket="bucket",
            secret="cloud",
            secret_key="key.json",
        )
        credentials = VolumeCredentials(source, str(secrets))
        store = open_store(source, credentials, retry_budget_s=20, observer=CountingObserver())
        store.copy("a", "b")
        store.close()
    assert named == ["sig=old", "sig=new"]
