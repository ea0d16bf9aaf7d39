"""The REST API of Azure Blob Storage, as far as it is spoken without the SDK."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote
from xml.etree.ElementTree import Element

from sidecar.errors import LoginRejected
from sidecar.mounter.store.azure.properties import listed_properties
from sidecar.mounter.store.http.connection import Headers
from sidecar.mounter.store.http.pool import Endpoint
from sidecar.mounter.store.http.requests import Get, Listing, Put
from sidecar.mounter.store.http.xml_body import http_time_s, parse_xml
from sidecar.mounter.store.interface import ObjectInfo, Page
from sidecar.mounter.store.login import Login
from sidecar.mounter.store.secrets import AzureCredentials
from sidecar.mounter.store.signing import (
    azure_headers,
    quote_path,
    quote_query,
    shared_key_headers,
)
from sidecar.mounter.store.store_errors import Answer, Place

if TYPE_CHECKING:
    from sidecar.spec import StoreSource

STORAGE_SCOPE = "https://storage.azure.com/.default"


class AzureRequests:
    """Requests with shared key, SAS token or bearer token."""

    def __init__(
        self,
        source: StoreSource,
        endpoint: Endpoint,
        login: Login[AzureCredentials],
        place: Place,
        *,
        with_metadata: bool,
    ) -> None:
        self._with_metadata = with_metadata
        self._container = f"{endpoint.path}/{source.bucket}"
        self._prefix = source.prefix
        self._login = login
        self._place = place
        self._identity: Any = None

    def get(self, key: str, version: str, byte_range: str) -> Get:
        """A GET signed in its headers, or with the SAS token in its query."""
        path = f"{self._container}/{self._prefix}{key}"
        return self._signed(path, byte_range=byte_range, if_match=f'"{version}"')

    def put(
        self, key: str, query: Mapping[str, str], headers: Mapping[str, str], length: int
    ) -> Put:
        """Put Blob or Put Block. ``headers``: lower case, besides login and time."""
        path = f"{self._container}/{self._prefix}{key}"
        target, signed = self._signed(path, query, method="PUT", length=length, more=headers)
        return Put("PUT", target, signed)

    def delete(self, key: str) -> Put:
        """Delete Blob, with its snapshots."""
        path = f"{self._container}/{self._prefix}{key}"
        snapshots = {"x-ms-delete-snapshots": "include"}
        target, signed = self._signed(path, method="DELETE", more=snapshots)
        return Put("DELETE", target, signed)

    def list(self, listing: Listing) -> Get:
        """List Blobs."""
        wanted = {"restype": "container", "comp": "list", "maxresults": str(listing.limit)}
        if self._prefix + listing.prefix:
            wanted["prefix"] = self._prefix + listing.prefix
        if listing.delimiter:
            wanted["delimiter"] = listing.delimiter
        if self._with_metadata:
            wanted["include"] = "metadata"
        if listing.token:
            wanted["marker"] = listing.token
        return self._signed(self._container, wanted)

    def page(self, body: bytes) -> Page:
        """From EnumerationResults."""
        root, ns = parse_xml(body, "EnumerationResults")
        blobs = root.find(f"{ns}Blobs")
        if blobs is None:
            raise ValueError("no list of blobs")
        skip = len(self._prefix)
        page = Page(next_token=root.findtext(f"{ns}NextMarker") or None)
        for prefix in blobs.iterfind(f"{ns}BlobPrefix"):
            page.prefixes.append(_name(prefix, ns)[skip:])
        for blob in blobs.iterfind(f"{ns}Blob"):
            name = _name(blob, ns)
            if name == self._prefix:
                continue
            properties = blob.find(f"{ns}Properties")
            if properties is None:
                raise ValueError("a blob without properties")
            fields = {field.tag: field.text or "" for field in properties}
            page.objects.append(
                ObjectInfo(
                    name[skip:],
                    int(fields[f"{ns}Content-Length"]),
                    http_time_s(fields[f"{ns}Last-Modified"]),
                    fields[f"{ns}Etag"].strip('"'),
                    self._metadata(blob, ns),
                    listed_properties(fields, ns) if self._with_metadata else None,
                )
            )
        return page

    def _metadata(self, blob: Element, namespace: str) -> dict[str, str] | None:
        if not self._with_metadata:
            return None
        skip = len(namespace)
        fields = blob.iterfind(f"{namespace}Metadata/*")
        return from_azure({field.tag[skip:]: field.text or "" for field in fields})

    def _signed(
        self,
        path: str,
        query: Mapping[str, str] | None = None,
        *,
        byte_range: str = "",
        if_match: str = "",
        method: str = "GET",
        length: int = 0,
        more: Mapping[str, str] | None = None,
    ) -> Get:
        quoted, parameters = quote_path(path), [quote_query(query)] if query else []
        login = self._login.credentials
        if login.account_key:
            headers = shared_key_headers(
                path=quoted,
                account=login.account_name or "",
                account_key=login.account_key,
                query=query,
                byte_range=byte_range,
                if_match=if_match,
                method=method,
                length=length,
                more=more,
            )
        else:
            headers = {**azure_headers(byte_range=byte_range, if_match=if_match), **(more or {})}
            if login.ambient:
                headers["authorization"] = f"Bearer {self._token()}"
            if login.sas_token:
                parameters.append(login.sas_token)
        return Get(f"{quoted}?{'&'.join(parameters)}" if parameters else quoted, headers)

    def version(self, fields: Headers) -> str:
        """From the ETag."""
        return fields.get("etag", "").strip('"')

    def refusal(self, status: int, fields: Headers, body: bytes) -> Answer:
        """From the header."""
        code = error_code_of(fields.get("x-ms-error-code", ""), body.decode("latin-1"))
        return Answer(status, code)

    def moved(self, fields: Headers) -> None:
        """Never."""

    def _token(self) -> str:
        """Of the ambient identity; the SDK keeps it until it is about to expire."""
        from azure.core.exceptions import ClientAuthenticationError
        from azure.identity import DefaultAzureCredential

        if self._identity is None:
            self._identity = DefaultAzureCredential()
        with contextlib.suppress(ClientAuthenticationError):  # its message quotes what it tried
            token: str = self._identity.get_token(STORAGE_SCOPE).token
            return token
        raise no_identity(self._place)


def _name(item: Element, namespace: str) -> str:
    """Escaped where XML cannot hold it, since version 2021-02-12 of the API."""
    element = item.find(f"{namespace}Name")
    if element is None or element.text is None:
        raise ValueError("a blob without a name")
    return unquote(element.text) if element.get("Encoded") == "true" else element.text


def from_azure(metadata: Mapping[str, str]) -> dict[str, str]:
    """Azure's names are identifiers: ``-`` is kept as ``_``."""
    return {name.replace("_", "-"): value for name, value in metadata.items()}


def error_code_of(code: str, text: str) -> str:
    """Azurite calls a wrong signature what Azure calls a closed firewall; the text differs."""
    if code == "AuthorizationFailure" and "Server failed to authenticate" in text:
        return "AuthenticationFailed"
    return code


def no_identity(place: Place) -> LoginRejected:
    """There is nothing to log in with."""
    return LoginRejected(
        f"{place}: the pod has no ambient identity that Azure accepts",
        "name a `secret`, or give the pod's service account workload identity",
    )
