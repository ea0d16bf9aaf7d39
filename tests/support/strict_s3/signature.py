"""The sender of a request: AWS Signature Version 4 in the Authorization header.

Sources: "Authenticating Requests: Using the Authorization Header (AWS Signature Version 4)",
"Signature calculations for the Authorization header: transferring a payload in multiple chunks",
Amazon S3 API Reference.
"""

from __future__ import annotations

import hashlib
import hmac
import re
import time
from calendar import timegm
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from urllib.parse import quote, unquote_to_bytes

from tests.support.strict_s3.errors import S3Error
from tests.support.strict_s3.http_front import Request

ALGORITHM = "AWS4-HMAC-SHA256"
_CREDENTIAL = re.compile(r"([^/]+)/(\d{8})/([^/]+)/s3/aws4_request")
_UNRESERVED = "-._~"


@dataclass(frozen=True)
class Account:
    """A login."""

    access_key_id: str
    secret_access_key: str
    session_token: str = ""


@dataclass(frozen=True)
class Signed:
    """A signature that was right, as far as the body's chunks go on from it."""

    key: bytes
    time: str
    scope: str
    signature: str

    def of_chunk(self, before: str, digest: str) -> str:
        """The signature of a chunk whose SHA-256 is ``digest``."""
        empty = hashlib.sha256(b"").hexdigest()
        text = f"{ALGORITHM}-PAYLOAD\n{self.time}\n{self.scope}\n{before}\n{empty}\n{digest}"
        return hmac.digest(self.key, text.encode(), "sha256").hex()


def check_signature(
    request: Request, account: Account, region: str, max_skew_s: float
) -> Signed | None:
    """None for a request without a signature.

    Args:
        region: that the bucket is in.

    Raises:
        S3Error: InvalidAccessKeyId, SignatureDoesNotMatch, RequestTimeTooSkewed,
            AuthorizationHeaderMalformed, InvalidToken, AccessDenied.
    """
    headers = request.headers
    if "authorization" not in headers:
        if "X-Amz-Signature=" in request.query:
            raise S3Error("NotImplemented", "This server takes signatures in headers only.")
        return None
    fields = _parse(headers["authorization"])
    found = _CREDENTIAL.fullmatch(fields["Credential"])
    if found is None:
        raise S3Error("AuthorizationHeaderMalformed", "The credential is mal-formed.")
    key_id, day, signed_region = found.groups()
    names = fields["SignedHeaders"].split(";")
    if key_id != account.access_key_id:
        raise S3Error("InvalidAccessKeyId", fields={"AWSAccessKeyId": key_id})
    if headers.get("x-amz-security-token", "") != account.session_token:
        raise S3Error("InvalidToken")
    sent = _sent_time(headers)
    if signed_region != region:
        raise S3Error(
            "AuthorizationHeaderMalformed",
            f"The authorization header is malformed; the region '{signed_region}' is wrong; "
            f"expecting '{region}'",
            fields={"Region": region},
            headers={"x-amz-bucket-region": region},
        )
    if not sent.startswith(day):
        raise S3Error("AuthorizationHeaderMalformed", "The credential is of another day.")
    _check_clock(sent, max_skew_s)
    _check_names(names, headers)
    scope = f"{day}/{signed_region}/s3/aws4_request"
    canonical = canonical_request(request, names)
    digest = hashlib.sha256(canonical.encode("latin-1")).hexdigest()
    key = signing_key(account.secret_access_key, day, signed_region)
    text = f"{ALGORITHM}\n{sent}\n{scope}\n{digest}"
    signature = hmac.digest(key, text.encode(), "sha256").hex()
    if not hmac.compare_digest(signature, fields["Signature"]):
        raise S3Error("SignatureDoesNotMatch", fields={"CanonicalRequest": canonical})
    return Signed(key, sent, scope, signature)


def canonical_request(request: Request, names: list[str]) -> str:
    """What is signed of a request."""
    headers = "".join(f"{name}:{_trimmed(request.headers[name])}\n" for name in names)
    payload = request.headers.get("x-amz-content-sha256", "UNSIGNED-PAYLOAD")
    path = quote(unquote_to_bytes(request.path), safe=f"/{_UNRESERVED}")
    return "\n".join([
        request.method,
        path,
        _canonical_query(request.query),
        headers,
        ";".join(names),
        payload,
    ])  # fmt: skip


def _trimmed(value: str) -> str:
    """A value without ASCII spaces. It has UTF-8 as Latin-1, and a byte may look like a space."""
    return re.sub("[ \t]+", " ", value.strip(" \t"))


@lru_cache(maxsize=64)
def signing_key(secret_access_key: str, day: str, region: str) -> bytes:
    """The key of one day."""
    key = f"AWS4{secret_access_key}".encode()
    for word in (day, region, "s3", "aws4_request"):
        key = hmac.digest(key, word.encode(), "sha256")
    return key


def _parse(header: str) -> dict[str, str]:
    algorithm, _, rest = header.partition(" ")
    if algorithm != ALGORITHM:
        raise S3Error(
            "InvalidRequest",
            "The authorization mechanism you have provided is not supported. "
            f"Please use {ALGORITHM}.",
        )
    fields = dict(word.strip().partition("=")[::2] for word in rest.split(","))
    if fields.keys() != {"Credential", "SignedHeaders", "Signature"}:
        raise S3Error("AuthorizationHeaderMalformed")
    return fields


def _sent_time(headers: Mapping[str, str]) -> str:
    sent = headers.get("x-amz-date", "")
    if not re.fullmatch(r"\d{8}T\d{6}Z", sent):
        raise S3Error("AccessDenied", "AWS authentication requires a valid Date or x-amz-date")
    return sent


def _check_clock(sent: str, max_skew_s: float) -> None:
    if abs(timegm(time.strptime(sent, "%Y%m%dT%H%M%SZ")) - time.time()) > max_skew_s:
        now = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
        raise S3Error(
            "RequestTimeTooSkewed",
            fields={
                "RequestTime": sent,
                "ServerTime": now,
                "MaxAllowedSkewMilliseconds": int(max_skew_s * 1000),
            },
        )


def _check_names(names: list[str], headers: Mapping[str, str]) -> None:
    """Host and every ``x-amz-`` header is signed, and no header that is absent."""
    if names != sorted(names) or any(name not in headers for name in names):
        raise S3Error("SignatureDoesNotMatch")
    wanted = {name for name in headers if name.startswith("x-amz-")} | {"host"}
    missing = wanted - set(names)
    if missing:
        raise S3Error(
            "AccessDenied",
            "There were headers present in the request which were not signed",
            fields={"HeadersNotSigned": ", ".join(sorted(missing))},
        )


def _canonical_query(query: str) -> str:
    pairs = []
    for word in filter(None, query.split("&")):
        name, _, value = word.partition("=")
        pairs.append((_requote(name), _requote(value)))
    return "&".join(f"{name}={value}" for name, value in sorted(pairs))


def _requote(text: str) -> str:
    return quote(unquote_to_bytes(text.replace("+", " ")), safe=_UNRESERVED)
