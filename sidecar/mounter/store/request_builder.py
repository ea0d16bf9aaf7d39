"""How one store is asked, and what its responses mean. Sends nothing, knows no cloud."""

from __future__ import annotations

from dataclasses import replace
from typing import NamedTuple, Protocol

from sidecar.mounter.store.http.connection import Headers, Response
from sidecar.mounter.store.http.pool import Endpoint
from sidecar.mounter.store.http.requests import SignedRequest
from sidecar.mounter.store.http.retry import parse_retry_after
from sidecar.mounter.store.interface import Page
from sidecar.mounter.store.store_errors import Call, ErrorResponse, StoreErrors


class ListQuery(NamedTuple):
    """A page that is wanted, as :meth:`sidecar.mounter.store.interface.Store.list_page`."""

    prefix: str
    token: str | None
    delimiter: str
    limit: int


class RequestBuilder(Protocol):
    """Requests of one store, and its responses as values. Every method is cheap.

    Methods that sign raise what a login raises: SidecarError, Retryable.
    """

    def get(self, key: str, version: str, byte_range: str) -> SignedRequest:
        """A GET of ``byte_range`` (``bytes=a-b``), on condition of ``version``."""

    def list(self, query: ListQuery) -> SignedRequest:
        """A GET of a page."""

    def page(self, body: bytes) -> Page:
        """A page from its body.

        Raises ValueError, LookupError or TypeError for what is not one, which may quote it.
        """

    def version(self, fields: Headers) -> str:
        """The version that a response names, or an empty string."""

    def parse_error(self, status: int, fields: Headers, body: bytes) -> ErrorResponse:
        """An error response; ``Retry-After`` is filled in by the caller."""

    def redirect(self, fields: Headers) -> Endpoint | None:
        """Where an error response sends the client. What is signed next is for that endpoint."""


class StoreTranslator:
    """Implements :class:`sidecar.mounter.store.http.client.Translator` for one store."""

    def __init__(self, requests: RequestBuilder, errors: StoreErrors) -> None:
        self._requests = requests
        self._errors = errors
        self.redirect = requests.redirect

    def refused(self, call: Call, response: Response, body: bytes) -> Exception:
        """As the protocol."""
        error = self._requests.parse_error(response.status, response.fields, body)
        retry_after_s = parse_retry_after(response.fields.get("retry-after"))
        return self._errors.from_response(replace(error, retry_after_s=retry_after_s), call)

    def unanswered(self, error: Exception) -> Exception:
        """As the protocol."""
        return self._errors.from_transport(error)
