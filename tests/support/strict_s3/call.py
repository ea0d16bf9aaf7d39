"""One request with all that answering it takes."""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from tests.support.strict_s3.attributes import ENCRYPTION, Attributes
from tests.support.strict_s3.data_files import Segment
from tests.support.strict_s3.errors import S3Error
from tests.support.strict_s3.http_front import Request
from tests.support.strict_s3.limits import Limits
from tests.support.strict_s3.payload import Payload
from tests.support.strict_s3.signature import Account, Signed
from tests.support.strict_s3.state import Bucket, State


@dataclass
class Call:
    """A request whose sender is known.

    Attributes:
        operation: S3's name of it.
        query: decoded.
        signed: None for an anonymous request.
        waits: called for each piece of a body that came.
    """

    operation: str
    request: Request
    state: State
    limits: Limits
    bucket_name: str
    key: str
    query: Mapping[str, str]
    account: Account
    region: str
    signed: Signed | None

    @property
    def bucket(self) -> Bucket:
        """Raises S3Error: NoSuchBucket."""
        return self.state.bucket(self.bucket_name)

    @property
    def headers(self) -> Mapping[str, str]:
        """The request's headers, with names in lower case."""
        return self.request.headers

    def payload(self) -> Payload:
        """The body. Raises S3Error as :class:`Payload`."""
        return Payload(self.request, self.signed)

    def document(self) -> bytes:
        """A body that is a document. Raises S3Error as :class:`Payload`."""
        return self.payload().read(self.limits.max_document_bytes)

    def allow(self, action: str, key: str | None = None, bucket: Bucket | None = None) -> None:
        """Raises S3Error: AccessDenied, if the bucket's policy denies an action.

        Sources: "Policy actions for Amazon S3", "Required permissions for Amazon S3 API
        operations". "GetObject" and "HeadObject" say that a login without s3:ListBucket does not
        learn that an object is absent.
        """
        settings = (bucket or self.bucket).settings
        prefix = settings.denied.get(action)
        if prefix is not None and (self.key if key is None else key).startswith(prefix):
            raise S3Error("AccessDenied", fields={"Action": f"s3:{action}"})

    def check_key(self) -> None:
        """Raises S3Error: KeyTooLongError."""
        size = len(self.key.encode())
        if size > self.limits.max_key_bytes:
            sizes = {"Size": size, "MaxSizeAllowed": self.limits.max_key_bytes}
            raise S3Error("KeyTooLongError", fields=sizes)

    @contextlib.contextmanager
    def received(self, max_bytes: int) -> Iterator[tuple[tuple[Segment, ...], str]]:
        """The body in a file, until the end of the block, and its MD5.

        Raises:
            S3Error: EntityTooLarge, QuotaExceeded, and as :class:`Payload`.
        """
        payload = self.payload()
        if payload.size > max_bytes:
            sizes = {"ProposedSize": payload.size, "MaxSizeAllowed": max_bytes}
            raise S3Error("EntityTooLarge", fields=sizes)
        self.check_quota(payload.size)
        data = self.state.data
        name = data.create()
        segments = (Segment(name, 0, payload.size),)
        try:
            with data.path(name).open("wb", buffering=0) as file:
                for piece in payload.pieces():
                    written = 0
                    while written < len(piece):
                        written += os.write(file.fileno(), piece[written:])
            yield segments if payload.size else (), payload.md5
        finally:
            data.drop(segments)

    def check_quota(self, size: int) -> None:
        """Raises S3Error: QuotaExceeded."""
        bucket = self.bucket
        quota = bucket.settings.quota_bytes
        if quota is not None and bucket.used + size > quota:
            raise S3Error("QuotaExceeded")


def etag_for(md5: str, attributes: Attributes) -> str:
    """The ETag of a content that was sent in one piece.

    Source: "Object", API Reference: the MD5 of what is unencrypted or encrypted by SSE-S3, and no
    MD5 of what KMS encrypts.
    """
    if attributes.encryption.get(ENCRYPTION) == "AES256":
        return md5
    return os.urandom(16).hex()


def now_s() -> int:
    """Seconds since the epoch, as S3 keeps them."""
    return int(time.time())
