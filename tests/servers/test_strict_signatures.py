"""Signatures, digests of bodies, request heads."""

from __future__ import annotations

import base64
import datetime as dt
import hashlib
import socket
import zlib

import botocore.auth
import pytest
from botocore.auth import S3SigV4Auth
from botocore.awsrequest import AWSRequest
from botocore.credentials import Credentials

from tests.servers.raw import Raw
from tests.support.servers import HOST
from tests.support.strict_server import StrictS3Server

WRONG = base64.b64encode(b"x" * 16).decode()


def b64(digest: bytes) -> str:
    return base64.b64encode(digest).decode()


def test_a_right_signature_is_taken(raw: Raw) -> None:
    assert raw("PUT", "a b+c/ü~", b"content").refusal == "200"
    assert raw("GET", "a b+c/ü~").body == b"content"


@pytest.mark.parametrize(
    ("signed", "refusal"),
    [
        (("strictaccesskey", "another", "us-east-1"), "403 SignatureDoesNotMatch"),
        (("nobody", "strict-secret-key-1", "us-east-1"), "403 InvalidAccessKeyId"),
        (
            ("strictaccesskey", "strict-secret-key-1", "eu-west-1"),
            "400 AuthorizationHeaderMalformed",
        ),
        (None, "403 AccessDenied"),
    ],
)
def test_another_login_is_refused(raw: Raw, signed: tuple[str, str, str], refusal: str) -> None:
    raw.signed = signed
    assert raw("GET", "key").refusal == refusal


def test_the_right_region_is_named(raw: Raw) -> None:
    raw.signed = (raw.server.access_key_id, raw.server.secret_access_key, "eu-west-1")
    reply = raw("GET", "key")
    assert reply.text("Region") == "us-east-1"
    assert reply.headers["x-amz-bucket-region"] == "us-east-1"
    assert raw("HEAD", "key").headers["x-amz-bucket-region"] == "us-east-1"


@pytest.mark.parametrize("hours", [-1, 1])
def test_a_clock_that_is_wrong_is_refused(
    raw: Raw, monkeypatch: pytest.MonkeyPatch, hours: int
) -> None:
    then = dt.datetime.now(dt.UTC).replace(tzinfo=None) + dt.timedelta(hours=hours)
    monkeypatch.setattr(botocore.auth, "get_current_datetime", lambda: then)
    reply = raw("GET", "key")
    assert reply.refusal == "403 RequestTimeTooSkewed"
    assert reply.text("MaxAllowedSkewMilliseconds") == "900000"


def test_an_amz_header_that_is_not_signed_is_refused(raw: Raw) -> None:
    reply = raw("PUT", "key", unsigned={"x-amz-meta-a": "b"})
    assert reply.refusal == "403 AccessDenied"
    assert reply.text("HeadersNotSigned") == "x-amz-meta-a"


def test_what_was_signed_may_not_change(raw: Raw) -> None:
    raw("PUT", "key", x_amz_meta_a="b")
    assert raw("PUT", "key", x_amz_meta_a="b", unsigned={"x-amz-meta-a": "c"}).refusal == (
        "403 SignatureDoesNotMatch"
    )


def test_another_mechanism_is_refused(raw: Raw) -> None:
    raw.signed = None
    reply = raw("GET", "key", unsigned={"authorization": "AWS key:signature"})
    assert reply.refusal == "400 InvalidRequest"


def test_a_session_needs_its_token(tmp_path) -> None:
    with StrictS3Server(tmp_path, session_token="token") as server:
        raw = Raw(server, "bucket")
        assert raw("PUT").refusal == "400 InvalidToken"
        assert raw("PUT", x_amz_security_token="other").refusal == "400 InvalidToken"
        assert raw("PUT", x_amz_security_token="token").refusal == "200"


@pytest.mark.parametrize(
    ("headers", "refusal"),
    [
        ({"payload": "0" * 64}, "400 XAmzContentSHA256Mismatch"),
        ({"payload": "UNSIGNED-PAYLOAD"}, "200"),
        ({"payload": "STREAMING-SOMETHING"}, "501 NotImplemented"),
        ({"content_md5": b64(hashlib.md5(b"content").digest())}, "200"),
        ({"content_md5": WRONG}, "400 BadDigest"),
        ({"content_md5": "no digest"}, "400 InvalidDigest"),
        ({"content_md5": b64(b"short")}, "400 InvalidDigest"),
        ({"x_amz_checksum_crc32": b64(zlib.crc32(b"content").to_bytes(4, "big"))}, "200"),
        ({"x_amz_checksum_crc32": b64(b"1234")}, "400 BadDigest"),
        ({"x_amz_checksum_crc32c": b64(b"1234")}, "400 BadDigest"),
        ({"x_amz_checksum_sha1": b64(hashlib.sha1(b"content").digest())}, "200"),
        ({"x_amz_checksum_sha1": b64(b"1" * 20)}, "400 BadDigest"),
        ({"x_amz_checksum_sha256": b64(hashlib.sha256(b"content").digest())}, "200"),
        ({"x_amz_checksum_sha256": b64(b"1" * 32)}, "400 BadDigest"),
    ],
)
def test_digests_of_a_body(raw: Raw, headers: dict[str, str], refusal: str) -> None:
    assert raw("PUT", "key", b"content", **headers).refusal == refusal
    assert raw("HEAD", "key").status == (200 if refusal == "200" else 404)


def test_crc32c(raw: Raw) -> None:
    # RFC 3720, B.4: 32 bytes of zeros.
    digest = b64(bytes.fromhex("8a9136aa"))
    assert raw("PUT", "key", bytes(32), x_amz_checksum_crc32c=digest).refusal == "200"


@pytest.mark.parametrize("spoilt", [False, True])
def test_chunks_with_a_trailer(raw: Raw, spoilt: bool) -> None:
    digest = b64(zlib.crc32(b"content" + b"!" * spoilt).to_bytes(4, "big"))
    body = f"3\r\ncon\r\n4\r\ntent\r\n0\r\nx-amz-checksum-crc32:{digest}\r\n\r\n".encode()
    reply = raw(
        "PUT",
        "key",
        body,
        payload="STREAMING-UNSIGNED-PAYLOAD-TRAILER",
        x_amz_decoded_content_length="7",
        x_amz_trailer="x-amz-checksum-crc32",
        content_encoding="aws-chunked,gzip",
    )
    assert reply.refusal == ("400 BadDigest" if spoilt else "200")
    if not spoilt:
        found = raw("GET", "key")
        assert (found.body, found.headers["content-encoding"]) == (b"content", "gzip")


@pytest.mark.parametrize("spoilt", [False, True])
def test_signed_chunks(raw: Raw, spoilt: bool) -> None:
    """As in "Transferring payload in multiple chunks", with botocore's key derivation."""
    how = "STREAMING-AWS4-HMAC-SHA256-PAYLOAD"
    assert raw.signed
    key_id, secret, region = raw.signed
    auth = S3SigV4Auth(Credentials(key_id, secret), "s3", region)
    auth.payload = lambda request: how
    target = f"/{raw.bucket}/key"
    request = AWSRequest(
        "PUT",
        f"{raw.server.endpoint}{target}",
        headers={"x-amz-decoded-content-length": "7"},
    )
    auth.add_auth(request)
    before = request.headers["authorization"].rpartition("=")[2]
    empty = hashlib.sha256(b"").hexdigest()
    body = b""
    for chunk in (b"content", b""):
        digest = hashlib.sha256(chunk).hexdigest()
        text = "\n".join(
            [
                "AWS4-HMAC-SHA256-PAYLOAD",
                request.context["timestamp"],
                auth.credential_scope(request),
                before,
                empty,
                digest,
            ]
        )
        before = auth.signature(text, request)
        sent = b"cOntent" if spoilt and chunk else chunk
        body += f"{len(chunk):x};chunk-signature={before}\r\n".encode() + sent + b"\r\n"
    raw.signed = None
    reply = raw.send("PUT", target, dict(request.headers.items()), body)
    assert reply.refusal == ("403 SignatureDoesNotMatch" if spoilt else "200")


@pytest.mark.parametrize(
    ("unsigned", "refusal"),
    [
        ({"a": "x" * 9000}, "400 RequestHeaderSectionTooLarge"),
        ({"transfer-encoding": "chunked"}, "501 NotImplemented"),
    ],
)
def test_heads_that_are_refused(raw: Raw, unsigned: dict[str, str], refusal: str) -> None:
    assert raw("PUT", "key", unsigned=unsigned).refusal == refusal


def test_a_line_that_is_too_long(raw: Raw) -> None:
    assert raw("GET", "key", query={"prefix": "x" * 9000}).refusal == "414 URITooLong"


def test_a_body_needs_its_length(raw: Raw) -> None:
    raw.signed = None
    raw.server.settings(raw.bucket, public=True)
    with socket.create_connection((HOST, raw.server.port)) as connection:
        connection.sendall(f"PUT /{raw.bucket}/key HTTP/1.1\r\nHost: x\r\n\r\n".encode())
        assert connection.recv(1000).startswith(b"HTTP/1.1 411 ")


@pytest.mark.parametrize(
    ("key_bytes", "expected"), [(1025, b"HTTP/1.1 400 "), (1, b"HTTP/1.1 100 Continue\r\n\r\n")]
)
def test_a_client_may_wait_to_be_asked_for_its_body(
    raw: Raw, key_bytes: int, expected: bytes
) -> None:
    raw.server.settings(raw.bucket, public=True)
    with socket.create_connection((HOST, raw.server.port)) as connection:
        connection.sendall(
            f"PUT /{raw.bucket}/{'x' * key_bytes} HTTP/1.1\r\nHost: x\r\nContent-Length: 3\r\n"
            "Expect: 100-continue\r\n\r\n".encode()
        )
        assert connection.recv(1000).startswith(expected)
        if key_bytes == 1:
            connection.sendall(b"abc")
            assert connection.recv(1000).startswith(b"HTTP/1.1 200 ")
