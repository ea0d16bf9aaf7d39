"""What differs between stores in the requests that do not go through an SDK."""

from __future__ import annotations

from typing import NamedTuple, Protocol

from sidecar.mounter.store.http.connection import Headers
from sidecar.mounter.store.http.pool import Endpoint
from sidecar.mounter.store.interface import Page
from sidecar.mounter.store.store_errors import Answer


class Get(NamedTuple):
    """One GET, signed.

    Attributes:
        target: path and query.
        headers: all of them but ``Host`` where it is not signed.
    """

    target: str
    headers: dict[str, str]


class Put(NamedTuple):
    """One request with a body, signed.

    Attributes:
        method: PUT, POST or DELETE.
        target: path and query.
        headers: all of them but ``Host`` where it is not signed, and the body's length.
    """

    method: str
    target: str
    headers: dict[str, str]


class Listing(NamedTuple):
    """One page that is wanted; as :meth:`sidecar.mounter.store.interface.Store.list_page`."""

    prefix: str
    token: str | None
    delimiter: str
    limit: int


class RequestBuilder(Protocol):
    """How one store is asked, and how its answers are read. Every method is cheap."""

    def get(self, key: str, version: str, byte_range: str) -> Get:
        """A signed GET of ``byte_range`` (``bytes=a-b``), on condition of ``version``."""

    def list(self, listing: Listing) -> Get:
        """A signed GET of a page."""

    def page(self, body: bytes) -> Page:
        """A page from its body.

        Raises ValueError, LookupError or TypeError for what is not one, which may quote it.
        """

    def version(self, fields: Headers) -> str:
        """The version that an answer names, or an empty string."""

    def refusal(self, status: int, fields: Headers, body: bytes) -> Answer:
        """What an error answer says, ``Retry-After`` left out."""

    def moved(self, fields: Headers) -> Endpoint | None:
        """Where to ask instead, when an error answer says so; what is signed next goes there."""
