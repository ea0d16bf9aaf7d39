"""HTTP/1.x as bytes: a request's head to fields, an answer to bytes. Pure.

Takes only what a probe, Prometheus and an API server send (RFC 9112). Everything that two readers
could understand differently is refused: a body of unknown length, two lengths, folded fields.
"""

from __future__ import annotations

import re
from email.utils import formatdate
from http import HTTPStatus
from typing import Final, NamedTuple

_TOKEN: Final = rb"[!#$%&'*+\-.^_`|~0-9A-Za-z]+"
_REQUEST_LINE = re.compile(rb"(%s) (/[!-~]*) HTTP/1\.([01])" % _TOKEN)
_FIELD = re.compile(rb"(%s):([^\x00\r\n]*)" % _TOKEN)
_LENGTH = re.compile(rb"[0-9]{1,15}")

CONTINUE: Final = b"HTTP/1.1 100 Continue\r\n\r\n"


class Head(NamedTuple):
    """The parts of a request's head that matter here.

    Attributes:
        path: of the target, without the query.
        body_bytes: length of the body that follows.
        keeps_open: whether another request may follow on the connection.
        waits: the body is sent after a 100 (Continue).
    """

    method: str
    path: str
    body_bytes: int
    keeps_open: bool
    waits: bool


class HttpRequest(NamedTuple):
    """A whole request."""

    method: str
    path: str
    body: bytes


class HttpResponse(NamedTuple):
    """An answer.

    Attributes:
        headers: additional ones, as (name, value).
    """

    status: HTTPStatus
    body: bytes
    content_type: str = "text/plain; charset=utf-8"
    headers: tuple[tuple[str, str], ...] = ()


class Refused(Exception):
    """A request that is answered with 4xx or 5xx; the connection is closed after that.

    Attributes:
        response: the answer.
    """

    def __init__(self, status: HTTPStatus, why: str, *headers: tuple[str, str]) -> None:
        super().__init__(why)
        self.response = HttpResponse(status, f"{why}\n".encode(), headers=headers)


def parse_head(data: bytes) -> Head:
    """Parse a request's head.

    Args:
        data: from the request line up to the empty line, without it.

    Raises:
        Refused: it is no head, or leaves the body's length uncertain.
    """
    line, *lines = data.split(b"\r\n")
    request = _REQUEST_LINE.fullmatch(line)
    if request is None:
        raise Refused(HTTPStatus.BAD_REQUEST, "the request line is not HTTP/1.1")
    fields: dict[bytes, list[bytes]] = {}
    for text in lines:
        field = _FIELD.fullmatch(text)
        if field is None:
            raise Refused(HTTPStatus.BAD_REQUEST, "a header is not `name: value`")
        fields.setdefault(field[1].lower(), []).append(field[2].strip(b" \t"))
    options = {item.strip() for value in fields.get(b"connection", ()) for item in _items(value)}
    return Head(
        method=request[1].decode(),
        path=request[2].partition(b"?")[0].decode(),
        body_bytes=_body_bytes(fields),
        keeps_open=request[3] == b"1" and b"close" not in options,
        waits=[value.lower() for value in fields.get(b"expect", ())] == [b"100-continue"],
    )


def _items(value: bytes) -> list[bytes]:
    return value.lower().split(b",")


def _body_bytes(fields: dict[bytes, list[bytes]]) -> int:
    if b"transfer-encoding" in fields:
        raise Refused(HTTPStatus.LENGTH_REQUIRED, "send the body with a Content-Length")
    lengths = fields.get(b"content-length", [b"0"])
    if len(lengths) > 1 or not _LENGTH.fullmatch(lengths[0]):
        raise Refused(HTTPStatus.BAD_REQUEST, "the Content-Length is not one number")
    return int(lengths[0])


def render(response: HttpResponse, *, keeps_open: bool, head_only: bool) -> bytes:
    """The answer as it is sent.

    Args:
        keeps_open: whether another request may follow on the connection.
        head_only: leave the body out, as the answer to HEAD.
    """
    headers = [
        ("Date", formatdate(usegmt=True)),
        ("Content-Type", response.content_type),
        ("Content-Length", str(len(response.body))),
        *response.headers,
    ]
    if not keeps_open:
        headers.append(("Connection", "close"))
    lines = [f"HTTP/1.1 {response.status.value} {response.status.phrase}"]
    lines += [f"{name}: {value}" for name, value in headers]
    head = ("\r\n".join(lines) + "\r\n\r\n").encode("latin-1")
    return head if head_only else head + response.body
