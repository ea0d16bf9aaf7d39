"""Requests of Azure's Blob service, signed, and its responses as values. No SDK."""

from __future__ import annotations

import base64
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING
from urllib.parse import quote, unquote, urlencode
from xml.etree.ElementTree import Element

from sidecar.mounter.store.azure.credentials import AzureCredentials
from sidecar.mounter.store.azure.properties import listed_properties, properties_in
from sidecar.mounter.store.http.fields import Headers
from sidecar.mounter.store.http.pool import Endpoint
from sidecar.mounter.store.http.signed_request import SignedRequest
from sidecar.mounter.store.http.values import (
    http_time_s,
    parse_key,
    parse_keys,
    parse_number,
    parse_numbers,
    parse_version,
    parse_versions,
)
from sidecar.mounter.store.http.xml_body import parse_xml
from sidecar.mounter.store.interface import Condition, ObjectInfo, Page
from sidecar.mounter.store.login import Login
from sidecar.mounter.store.request_builder import ListQuery, parse_entries
from sidecar.mounter.store.signing import (
    azure_headers,
    quote_path,
    quote_query,
    shared_key_headers,
)
from sidecar.mounter.store.store_errors import ErrorResponse

if TYPE_CHECKING:
    from sidecar.contract.spec import StoreSource

METADATA = "x-ms-meta-"


class AzureRequests:
    """Requests with shared key, SAS token or bearer token.

    Args:
        pod_token: gives the bearer token of the pod's identity.
        with_metadata: listings bring metadata and properties.
    """

    def __init__(
        self,
        source: StoreSource,
        endpoint: Endpoint,
        login: Login[AzureCredentials],
        pod_token: Callable[[], str],
        *,
        with_metadata: bool,
    ) -> None:
        self._with_metadata = with_metadata
        self._container = f"{endpoint.path}/{source.bucket}"
        self._prefix = source.prefix
        self._login = login
        self._pod_token = pod_token

    def get(self, key: str, version: str | None, byte_range: str) -> SignedRequest:
        """A GET signed in its headers, or with the SAS token in its query."""
        path = f"{self._container}/{self._prefix}{key}"
        condition = "" if version is None else f'"{version}"'
        return self._signed(path, byte_range=byte_range, if_match=condition)

    def request(
        self,
        method: str,
        key: str,
        query: Mapping[str, str] | None = None,
        headers: Mapping[str, str] | None = None,
        length: int = 0,
    ) -> SignedRequest:
        """Any request about one blob.

        Args:
            headers: lower case, in addition to login and time.
            length: of the body.
        """
        path = f"{self._container}/{self._prefix}{key}"
        return self._signed(path, query, method=method, length=length, more=headers)

    def parse_head(self, key: str, fields: Headers) -> ObjectInfo:
        """From the response to HEAD. Raises ValueError, LookupError for missing fields."""
        return ObjectInfo(
            key,
            parse_number(fields["content-length"]),
            http_time_s(fields["last-modified"]),
            parse_version(fields["etag"].strip('"')),
            from_azure(fields.below(METADATA)),  # unlike S3's, names keep their case
            properties_in(fields),
        )

    def list(self, query: ListQuery) -> SignedRequest:
        """List Blobs."""
        wanted = {"restype": "container", "comp": "list", "maxresults": str(query.limit)}
        if self._prefix + query.prefix:
            wanted["prefix"] = self._prefix + query.prefix
        # A query for one entry only asks whether there is any, and needs no delimiter: Azurite
        # took 14 s to find a directory with 5,000 names.
        if query.delimiter and query.limit > 1:
            wanted["delimiter"] = query.delimiter
        if self._with_metadata:
            wanted["include"] = "metadata"
        if query.token:
            wanted["marker"] = query.token
        return self._signed(self._container, wanted)

    def page(self, body: bytes, query: ListQuery, hide: Callable[[str], None]) -> Page:
        """From EnumerationResults."""
        root, ns = parse_xml(body, "EnumerationResults")
        blobs = root.find(f"{ns}Blobs")
        if blobs is None:
            raise ValueError("no list of blobs")
        begins = self._prefix + query.prefix
        page = Page(next_token=root.findtext(f"{ns}NextMarker") or None)
        for prefix in blobs.iterfind(f"{ns}BlobPrefix"):
            name = _name(prefix, ns)
            if not name.startswith(begins):
                hide(name)
            else:
                page.prefixes.append(name[len(self._prefix) :])
        page.objects.extend(
            parse_entries(
                blobs.findall(f"{ns}Blob"),
                lambda items: self._object_infos(items, ns, begins),
                lambda item: hide(item.findtext(f"{ns}Name", "")),
            )
        )
        return page

    def _object_infos(self, items: Sequence[Element], ns: str, begins: str) -> Sequence[ObjectInfo]:
        """From entries of a listing. Raises one of ``BAD_ANSWER``."""
        names = parse_keys([_name(item, ns) for item in items], begins)
        all_fields = [
            {field.tag: field.text or "" for field in item.find(f"{ns}Properties") or ()}
            for item in items
        ]
        length, modified, etag = f"{ns}Content-Length", f"{ns}Last-Modified", f"{ns}Etag"
        sizes = parse_numbers([fields[length] for fields in all_fields])
        etags = parse_versions([fields[etag].strip('"') for fields in all_fields])
        skip = len(self._prefix)
        return [
            ObjectInfo(
                name[skip:],
                size_bytes,
                http_time_s(fields[modified]),
                version,
                self._metadata(item, ns),
                listed_properties(fields, ns) if self._with_metadata else None,
            )
            for item, name, fields, size_bytes, version in zip(
                items, names, all_fields, sizes, etags, strict=True
            )
            if name != self._prefix
        ]

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
    ) -> SignedRequest:
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
                headers["authorization"] = f"Bearer {self._pod_token()}"
            if login.sas_token:
                parameters.append(login.sas_token)
        target = f"{quoted}?{'&'.join(parameters)}" if parameters else quoted
        return SignedRequest(method, target, headers)

    def version(self, fields: Headers) -> str:
        """From the ETag."""
        return fields.get("etag", "").strip('"')

    def parse_error(self, status: int, fields: Headers, body: bytes) -> ErrorResponse:
        """From the header."""
        code = error_code_of(fields.get("x-ms-error-code", ""), body.decode("latin-1"))
        return ErrorResponse(status, code)

    def redirect(self, fields: Headers) -> None:
        """Never."""


def _name(item: Element, namespace: str) -> str:
    """A name. It is escaped if XML cannot hold it, since version 2021-02-12 of the API."""
    element = item.find(f"{namespace}Name")
    if element is None or element.text is None:
        raise ValueError("a blob without a name")
    return unquote(element.text) if element.get("Encoded") == "true" else parse_key(element.text)


def block_list(names: Iterable[str]) -> bytes:
    """The body that commits blocks: the newest of each name. Source: "Put Block List"."""
    lines = "".join(f"<Latest>{encoded(name)}</Latest>" for name in names)
    return f'<?xml version="1.0" encoding="utf-8"?><BlockList>{lines}</BlockList>'.encode()


def parse_blocks(body: bytes) -> list[tuple[str, int]]:
    """From Get Block List: name and bytes of each committed block, in order.

    Raises one of ``BAD_ANSWER``.
    """
    root, ns = parse_xml(body, "BlockList")
    return [
        (
            base64.b64decode(block.findtext(f"{ns}Name", ""), validate=True).decode("latin-1"),
            parse_number(block.findtext(f"{ns}Size", "")),
        )
        for block in root.iterfind(f"{ns}CommittedBlocks/{ns}Block")
    ]


def parse_tags(body: bytes) -> str:
    """From Get Blob Tags, in the form of ``x-ms-tags``. Raises ValueError."""
    root, ns = parse_xml(body, "Tags")
    tags = [
        (tag.findtext(f"{ns}Key", ""), tag.findtext(f"{ns}Value", ""))
        for tag in root.iterfind(f"{ns}TagSet/{ns}Tag")
    ]
    return urlencode(tags, quote_via=quote)


def encoded(block: str) -> str:
    """A block's name, whose characters are bytes, in the form of requests."""
    return base64.b64encode(block.encode("latin-1")).decode()


def to_azure(metadata: Mapping[str, str]) -> dict[str, str]:
    """The headers that set metadata."""
    return {f"{METADATA}{name.replace('-', '_')}": value for name, value in metadata.items()}


def from_azure(metadata: Mapping[str, str]) -> dict[str, str]:
    """Azure's names are identifiers: ``-`` is kept as ``_``."""
    return {name.replace("_", "-"): value for name, value in metadata.items()}


def error_code_of(code: str, text: str) -> str:
    """The code of an error. Azurite's code for a wrong signature is that of a closed firewall."""
    if code == "AuthorizationFailure" and "Server failed to authenticate" in text:
        return "AuthenticationFailed"
    return code


def condition_headers(condition: Condition | None) -> dict[str, str]:
    """The headers that state the condition of a write."""
    if condition is None:
        return {}
    if condition.absent:
        return {"if-none-match": "*"}
    return {} if condition.version is None else {"if-match": f'"{condition.version}"'}
