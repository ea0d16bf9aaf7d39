"""Requests and responses as values."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from sidecar.json_document import parse_json
from sidecar.mounter.store.interface import Content

Body = Sequence[Content]
"""The body of a request, in pieces that are sent one after the other."""


class SignedRequest(NamedTuple):
    """A request that is ready to be sent.

    Attributes:
        method: of RFC 9110.
        target: path and query, quoted.
        headers: by lower-case name, without ``content-length``, and without ``host`` unless
            it is signed.
    """

    method: str
    target: str
    headers: Mapping[str, str]


class BufferedResponse(NamedTuple):
    """A response whose body was read to its end.

    Attributes:
        headers: by lower-case name.
    """

    status: int
    headers: Mapping[str, str]
    content: bytes

    def json(self) -> Any:
        """The content as JSON. Raises as :func:`parse_json`."""
        return parse_json(self.content)
