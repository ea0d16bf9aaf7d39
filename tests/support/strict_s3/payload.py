"""Bodies of requests: framing, and the digests that a client sends of them.

Sources: "Authenticating Requests: Using the Authorization Header", "Checking object integrity in
Amazon S3", "PutObject", "UploadPart".
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import zlib
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Protocol

from tests.support.strict_s3.errors import S3Error
from tests.support.strict_s3.http_front import Body, ClientGoneError, Request
from tests.support.strict_s3.limits import MIB
from tests.support.strict_s3.signature import Signed

EMPTY_MD5 = hashlib.md5(usedforsecurity=False).hexdigest()
_UNSIGNED = "UNSIGNED-PAYLOAD"
_SIGNED_CHUNKS = "STREAMING-AWS4-HMAC-SHA256-PAYLOAD"
_UNSIGNED_TRAILER = "STREAMING-UNSIGNED-PAYLOAD-TRAILER"
_PIECE_BYTES = MIB
_MAX_CHUNK_BYTES = 64 * MIB
_CHECKSUM = "x-amz-checksum-"
_NO_DIGEST = frozenset({"algorithm", "type", "mode"})


class Digest(Protocol):
    """As of :mod:`hashlib`."""

    def update(self, data: memoryview | bytes, /) -> None: ...
    def digest(self) -> bytes: ...


class _Crc32:
    def __init__(self) -> None:
        self._value = 0

    def update(self, data: memoryview | bytes, /) -> None:
        self._value = zlib.crc32(data, self._value)

    def digest(self) -> bytes:
        return self._value.to_bytes(4, "big")


class _Crc32c:
    """Castagnoli's polynomial, a byte at a time: slow."""

    _TABLE: tuple[int, ...] = ()

    def __init__(self) -> None:
        self._value = 0xFFFFFFFF
        if not self._TABLE:
            type(self)._TABLE = tuple(map(_crc32c_of, range(256)))

    def update(self, data: memoryview | bytes, /) -> None:
        value, table = self._value, self._TABLE
        for byte in bytes(data):
            value = table[(value ^ byte) & 0xFF] ^ (value >> 8)
        self._value = value

    def digest(self) -> bytes:
        return (self._value ^ 0xFFFFFFFF).to_bytes(4, "big")


def _crc32c_of(value: int) -> int:
    for _ in range(8):
        value = (value >> 1) ^ (0x82F63B78 if value & 1 else 0)
    return value


def _md5() -> Digest:
    return hashlib.md5(usedforsecurity=False)


def _sha1() -> Digest:
    return hashlib.sha1(usedforsecurity=False)


_CHECKSUMS: Mapping[str, Callable[[], Digest]] = {
    "crc32": _Crc32,
    "crc32c": _Crc32c,
    "sha1": _sha1,
    "sha256": hashlib.sha256,
}


class Payload:
    """The content in a request's body, with its framing taken off and its digests checked.

    Args:
        signed: the request's signature, which chunks go on from.

    Attributes:
        size: bytes of the content, as the request declares it.
        has_digest: whether there is a Content-MD5 or a checksum.

    Raises:
        S3Error: MissingContentLength, InvalidRequest, InvalidDigest, NotImplemented.
    """

    def __init__(self, request: Request, signed: Signed | None) -> None:
        headers = request.headers
        if "transfer-encoding" in headers:
            raise S3Error("NotImplemented", fields={"Header": "Transfer-Encoding"})
        if request.body.size is None:
            raise S3Error("MissingContentLength")
        self._body = request.body
        self._signed = signed
        self._how = headers.get("x-amz-content-sha256", _UNSIGNED)
        self._trailer = headers.get("x-amz-trailer", "").lower()
        self._framed = self._how.startswith("STREAMING-")
        if self._framed and self._how not in {_SIGNED_CHUNKS, _UNSIGNED_TRAILER}:
            raise S3Error("NotImplemented", fields={"Header": "x-amz-content-sha256"})
        self.size = self._body.size or 0
        if self._framed:
            if "x-amz-decoded-content-length" not in headers:
                raise S3Error("MissingContentLength")
            self.size = int(headers["x-amz-decoded-content-length"])
        self._md5 = _md5()
        self._expected = dict(_declared(headers))
        self.has_digest = bool(self._expected)
        self._digests: dict[str, Digest] = {"content-md5": self._md5}
        wanted = [*self._expected, *filter(None, [self._trailer])]
        for name in wanted:
            if name != "content-md5":
                self._digests[name] = _checksum_named(name)
        if not self._framed and self._how != _UNSIGNED:
            self._digests["x-amz-content-sha256"] = hashlib.sha256()

    def pieces(self) -> Iterator[memoryview]:
        """The content; each piece is valid until the next one. Checks at the end.

        Raises:
            S3Error: BadDigest, XAmzContentSHA256Mismatch, SignatureDoesNotMatch, IncompleteBody.
        """
        count = 0
        for piece in self._chunks() if self._framed else _pieces_of(self._body):
            count += len(piece)
            for digest in self._digests.values():
                digest.update(piece)
            yield piece
        if count != self.size:
            raise S3Error("IncompleteBody")
        self._check()

    def read(self, max_bytes: int) -> bytes:
        """All of it, for documents. Raises S3Error as :meth:`pieces`, and MalformedXML."""
        if self.size > max_bytes:
            raise S3Error("MalformedXML")
        return b"".join(map(bytes, self.pieces()))

    @property
    def md5(self) -> str:
        """Hex digits, once all was read."""
        return self._md5.digest().hex()

    def _check(self) -> None:
        if "x-amz-content-sha256" in self._digests:
            found = self._digests["x-amz-content-sha256"].digest().hex()
            if found != self._how:
                raise S3Error("XAmzContentSHA256Mismatch")
        for name, expected in self._expected.items():
            if self._digests[name].digest() != expected:
                raise S3Error("BadDigest", fields={"Header": name})

    def _chunks(self) -> Iterator[memoryview]:
        """``size;chunk-signature=…``, the bytes, and so on; a chunk of no bytes ends it."""
        before = self._signed.signature if self._signed else ""
        while True:
            head = self._line().partition(";")
            size = int(head[0], 16)
            if size > _MAX_CHUNK_BYTES:
                raise S3Error("InvalidRequest", "The chunk is too large.")
            piece = self._body.read(size)
            if self._how == _SIGNED_CHUNKS:
                claimed = head[2].strip().removeprefix("chunk-signature=")
                digest = hashlib.sha256(piece).hexdigest()
                before = self._signed.of_chunk(before, digest) if self._signed else ""
                if claimed != before:
                    raise S3Error("SignatureDoesNotMatch")
            if not size:
                break
            yield memoryview(piece)
            self._line()
        while line := self._line():
            name, _, value = line.partition(":")
            if name.strip().lower() == self._trailer:
                self._expected[self._trailer] = _decoded(value.strip(), self._trailer)
        if self._trailer and self._trailer not in self._expected:
            raise S3Error("InvalidRequest", "The trailer that was announced is missing.")

    def _line(self) -> str:
        line = bytearray()
        while not line.endswith(b"\r\n"):
            byte = self._body.read(1)
            if not byte:
                raise S3Error("IncompleteBody")
            line += byte
        return line[:-2].decode("latin-1")


def _pieces_of(body: Body) -> Iterator[memoryview]:
    buffer = memoryview(bytearray(min(_PIECE_BYTES, max(body.left, 1))))
    while count := body.read_into(buffer):
        yield buffer[:count]
    if body.left:
        raise ClientGoneError


def _declared(headers: Mapping[str, str]) -> Iterator[tuple[str, bytes]]:
    if "content-md5" in headers:
        yield "content-md5", _decoded(headers["content-md5"], "content-md5")
    for name, value in headers.items():
        if name.startswith(_CHECKSUM) and name.removeprefix(_CHECKSUM) not in _NO_DIGEST:
            yield name, _decoded(value, name)


def _checksum_named(name: str) -> Any:
    make = _CHECKSUMS.get(name.removeprefix(_CHECKSUM))
    if make is None:
        raise S3Error("NotImplemented", fields={"Header": name})
    return make()


def _decoded(value: str, name: str) -> bytes:
    sizes = {"content-md5": 16, "crc32": 4, "crc32c": 4, "sha1": 20, "sha256": 32}
    size = sizes.get(name.removeprefix(_CHECKSUM), 0)
    try:
        digest = base64.b64decode(value, validate=True)
    except binascii.Error:
        raise S3Error("InvalidDigest", fields={"Header": name}) from None
    if size and len(digest) != size:
        raise S3Error("InvalidDigest", fields={"Header": name})
    return digest
