"""Raw S3 requests, signed by botocore: a client that shares no code with the tests' servers."""

from __future__ import annotations

import http.client
from collections.abc import Mapping
from typing import Any, NamedTuple
from urllib.parse import quote, urlencode
from xml.etree import ElementTree as ET

from botocore.auth import S3SigV4Auth
from botocore.awsrequest import AWSRequest
from botocore.credentials import Credentials

from tests.support.servers import HOST, S3Server


class Reply(NamedTuple):
    """An answer.

    Attributes:
        headers: names in lower case.
    """

    status: int
    headers: Mapping[str, str]
    body: bytes

    @property
    def xml(self) -> ET.Element:
        """The body, without namespaces."""
        root = ET.fromstring(self.body)
        for element in root.iter():
            element.tag = element.tag.rpartition("}")[2]
        return root

    @property
    def refusal(self) -> str:
        """``status code`` of an error, such as ``404 NoSuchKey``; else the status."""
        if self.body.find(b"<Error>") < 0:
            return str(self.status)
        return f"{self.status} {self.xml.findtext('Code')}"

    @property
    def etag(self) -> str:
        """In quotes, from the headers or the body."""
        return self.headers.get("etag") or self.text("ETag")

    def text(self, name: str) -> str:
        """The text of an element below the root."""
        return self.xml.findtext(name) or ""

    def texts(self, path: str) -> list[str]:
        """The texts of all elements at a path."""
        return [element.text or "" for element in self.xml.iterfind(path)]


class _Auth(S3SigV4Auth):  # type: ignore[misc]  # botocore has no types
    """A signature with the payload digest that the test gives."""

    given = ""

    def payload(self, request: Any) -> str:
        return self.given or super().payload(request)


class Raw:
    """Sends requests to one bucket.

    Attributes:
        signed: (key id, secret, region); None for requests without a signature.
    """

    def __init__(self, server: S3Server, bucket: str) -> None:
        self.server = server
        self.bucket = bucket
        self.signed: tuple[str, str, str] | None = (
            server.access_key_id,
            server.secret_access_key,
            server.region,
        )

    def __call__(
        self,
        method: str,
        key: str | None = None,
        body: bytes = b"",
        *,
        query: Mapping[str, str] | None = None,
        payload: str = "",
        unsigned: Mapping[str, str] | None = None,
        **headers: str,
    ) -> Reply:
        """Send one request.

        Args:
            key: None for the bucket itself.
            payload: value of x-amz-content-sha256; default: the body's digest.
            unsigned: headers added after signing.
            headers: signed headers, with ``_`` for ``-``.
        """
        path = f"/{self.bucket}" + ("" if key is None else f"/{quote(key, safe='/~')}")
        target = f"{path}?{urlencode(query, quote_via=quote)}" if query else path
        sent = {name.replace("_", "-"): value for name, value in headers.items()}
        return self.send(method, target, sent, body, payload=payload, unsigned=unsigned)

    def send(
        self,
        method: str,
        target: str,
        headers: Mapping[str, str],
        body: bytes,
        *,
        payload: str = "",
        unsigned: Mapping[str, str] | None = None,
    ) -> Reply:
        """As :meth:`__call__`, with any request target."""
        request = AWSRequest(
            method, f"{self.server.endpoint}{target}", headers=dict(headers), data=body
        )
        if self.signed:
            key_id, secret, region = self.signed
            auth = _Auth(Credentials(key_id, secret), "s3", region)
            auth.given = payload
            auth.add_auth(request)
        connection = http.client.HTTPConnection(HOST, self.server.port, timeout=30)
        try:
            connection.putrequest(method, target, skip_accept_encoding=True)
            fields = {**dict(request.headers.items()), **(unsigned or {})}
            if body or method in {"PUT", "POST"}:
                fields.setdefault("Content-Length", str(len(body)))
            for name, value in fields.items():
                connection.putheader(name, value.encode())
            connection.endheaders(body or None)
            response = connection.getresponse()
            found = {name.lower(): value for name, value in response.getheaders()}
            return Reply(response.status, found, response.read())
        finally:
            connection.close()

    def begin(self, key: str, **headers: str) -> str:
        """Create a multipart upload; its id."""
        # Not parsed: the answer contains the key, which may not be valid in XML.
        body = self("POST", key, query={"uploads": ""}, **headers).body.decode()
        return body.partition("<UploadId>")[2].partition("</UploadId>")[0]

    def part(
        self, key: str, upload: str, number: int | str, body: bytes = b"", **more: Any
    ) -> Reply:
        """UploadPart, or UploadPartCopy."""
        query = {"partNumber": str(number), "uploadId": upload}
        return self("PUT", key, body, query=query, **more)

    def complete(self, key: str, upload: str, etags: Mapping[int, str], **headers: str) -> Reply:
        """CompleteMultipartUpload, with the parts in the mapping's order."""
        parts = "".join(
            f"<Part><PartNumber>{number}</PartNumber><ETag>{etag}</ETag></Part>"
            for number, etag in etags.items()
        )
        body = f"<CompleteMultipartUpload>{parts}</CompleteMultipartUpload>".encode()
        return self("POST", key, body, query={"uploadId": upload}, **headers)

    def upload(self, key: str, *parts: bytes, **headers: str) -> Reply:
        """A complete multipart upload."""
        upload = self.begin(key, **headers)
        etags = {
            number: self.part(key, upload, number, part).etag
            for number, part in enumerate(parts, 1)
        }
        return self.complete(key, upload, etags)
