"""Requests of Google's APIs, signed, and its responses as values. No SDK."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping, Sequence
from itertools import chain, repeat
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

from sidecar.json_document import parse_json
from sidecar.mounter.store.gcs.properties import SHOWN, properties_in
from sidecar.mounter.store.gcs.tokens import Tokens
from sidecar.mounter.store.http.fields import Headers
from sidecar.mounter.store.http.pool import Endpoint
from sidecar.mounter.store.http.signed_request import SignedRequest
from sidecar.mounter.store.http.values import (
    GENERATION_DIGITS,
    iso_times_s,
    parse_key,
    parse_keys,
    parse_numbers,
)
from sidecar.mounter.store.interface import ObjectInfo, Page
from sidecar.mounter.store.request_builder import BAD_ANSWER, ListQuery, parse_entries
from sidecar.mounter.store.signing import quote_path, quote_query
from sidecar.mounter.store.store_errors import ErrorResponse

if TYPE_CHECKING:
    from sidecar.contract.spec import StoreSource

_FIELDS = "kind,items(name,size,timeCreated,generation{}),prefixes,nextPageToken"
_KEPT_FIELDS = ",".join(("", "metadata", *SHOWN))
_JSON = {"content-type": "application/json; charset=UTF-8"}
_REASON = re.compile(r"[A-Za-z]+")


class GcsRequests:
    """Requests of the JSON API, and of the XML API if only that can do it."""

    def __init__(
        self, source: StoreSource, endpoint: Endpoint, tokens: Tokens, *, with_metadata: bool
    ) -> None:
        self._with_metadata = with_metadata
        objects = f"storage/v1/b/{quote(source.bucket, safe='')}/o"
        self._downloads = f"{endpoint.path}/download/{objects}"
        self._objects = f"{endpoint.path}/{objects}"
        self._uploads = f"{endpoint.path}/upload/{objects}"
        self._xml = f"{endpoint.path}/{quote(source.bucket, safe='')}"
        self._sessions = f"{endpoint.path}/upload/", f"{endpoint.path}/resumable/upload/"
        self._bucket = source.bucket
        self._prefix = source.prefix
        self._tokens = tokens

    def get(self, key: str, version: str | None, byte_range: str) -> SignedRequest:
        """A GET with a bearer token."""
        target = f"{self._downloads}/{self._name(key)}?alt=media"
        if version is not None:
            # `ifGenerationMatch`, not `generation`: it tells changed (412) from gone (404).
            target += f"&ifGenerationMatch={version}"
        headers = {
            "range": byte_range,
            # Without this, an object stored with Content-Encoding gzip is unpacked on the way,
            # and the range is ignored.
            "accept-encoding": "gzip",
            **self._tokens.header(),
        }
        return SignedRequest("GET", target, headers)

    def object(
        self,
        method: str,
        key: str,
        action: str = "",
        query: Mapping[str, str] | None = None,
        *,
        has_json: bool = False,
    ) -> SignedRequest:
        """A request about one object.

        Args:
            action: the operation, as a path after the object's.
            has_json: whether it has a body.
        """
        parameters = f"?{quote_query(query)}" if query else ""
        target = f"{self._objects}/{self._name(key)}{action}{parameters}"
        return SignedRequest(
            method, target, {**self._tokens.header(), **(_JSON if has_json else {})}
        )

    def rewrite_to(self, key: str) -> str:
        """The action that copies an object to another one."""
        return f"/rewriteTo/b/{quote(self._bucket, safe='')}/o/{self._name(key)}"

    def start_upload(self, query: Mapping[str, str]) -> SignedRequest:
        """Begin a resumable session; the body is an object resource."""
        target = f"{self._uploads}?{quote_query({'uploadType': 'resumable', **query})}"
        return SignedRequest("POST", target, {**self._tokens.header(), **_JSON})

    def is_session(self, location: str) -> bool:
        """Whether this can be path and query of a resumable upload, and not of an object."""
        return location.startswith(self._sessions)

    def abort(self, target: str) -> SignedRequest:
        """End a resumable session."""
        return SignedRequest("DELETE", target, self._tokens.header())

    def put(self, query: Mapping[str, str], boundary: str) -> SignedRequest:
        """A multipart/related upload of a whole object."""
        headers = {"content-type": f"multipart/related; boundary={boundary}"}
        target = f"{self._uploads}?{quote_query(query)}"
        return SignedRequest("POST", target, {**headers, **self._tokens.header()})

    def put_chunk(self, target: str, content_range: str) -> SignedRequest:
        """A piece of a resumable upload."""
        headers = {"content-range": content_range, **self._tokens.header()}
        return SignedRequest("PUT", target, headers)

    def xml(
        self, method: str, key: str, query: Mapping[str, str], headers: Mapping[str, str]
    ) -> SignedRequest:
        """A request of the XML API about one object."""
        parameters = f"?{quote_query(query)}" if query else ""
        target = f"{self._xml}/{quote_path(self._prefix + key)}{parameters}"
        return SignedRequest(method, target, {**headers, **self._tokens.header()})

    def list(self, query: ListQuery) -> SignedRequest:
        """objects.list with the fields that are used."""
        wanted = {
            "prefix": self._prefix + query.prefix,
            "maxResults": str(query.limit),
            "fields": _FIELDS.format(_KEPT_FIELDS if self._with_metadata else ""),
        }
        if query.delimiter:
            wanted["delimiter"] = query.delimiter
        if query.token:
            wanted["pageToken"] = query.token
        return SignedRequest("GET", f"{self._objects}?{quote_query(wanted)}", self._tokens.header())

    def page(self, body: bytes, query: ListQuery, hide: Callable[[str], None]) -> Page:
        """From an Objects resource."""
        resource = parse_json(body)
        if resource["kind"] != "storage#objects":
            raise ValueError("another resource")
        root, begins = self._prefix, self._prefix + query.prefix
        page = Page(next_token=text_of(resource.get("nextPageToken") or "") or None)
        for prefix in resource.get("prefixes", []):
            if not text_of(prefix).startswith(begins):
                hide(prefix)
            else:
                page.prefixes.append(prefix[len(root) :])
        page.objects.extend(
            parse_entries(
                resource.get("items", []),
                lambda items: self._infos(items, begins),
                lambda item: hide(str(item.get("name", "")) if isinstance(item, dict) else ""),
            )
        )
        return page

    def _infos(self, items: Sequence[Mapping[str, Any]], begins: str) -> Sequence[ObjectInfo]:
        """From object resources. Raises one of ``BAD_ANSWER``."""
        parse_keys([item["name"] for item in items], begins)
        found = object_infos(items, self._prefix, known=self._with_metadata)
        return [info for info in found if info.key] if self._prefix else found

    def version(self, fields: Headers) -> str:
        """From the generation."""
        return fields.get("x-goog-generation", "")

    def parse_error(self, status: int, fields: Headers, body: bytes) -> ErrorResponse:  # noqa: ARG002 - base
        """From the JSON or text body."""
        return ErrorResponse(status, reason_of(body))

    def redirect(self, fields: Headers) -> None:
        """Never."""

    def _name(self, key: str) -> str:
        return quote(self._prefix + key, safe="")


def reason_of(content: bytes) -> str:
    """The first reason in an error of the JSON API, or the one that its words mean."""
    try:
        error = parse_json(content)["error"]
        message, reason = str(error["message"]), str(error["errors"][0]["reason"])
    except BAD_ANSWER:
        message, reason = content[:200].decode("latin-1"), ""
    if message.startswith("The specified bucket does not exist"):
        return "NoSuchBucket"
    return reason if _REASON.fullmatch(reason) else ""


def object_info(item: Mapping[str, Any], root: str) -> ObjectInfo:
    """From an object resource with metadata and properties.

    Args:
        root: the prefix that the mount's keys do not have.

    Raises:
        one of ``BAD_ANSWER``: it is no object resource.
    """
    parse_keys([item["name"]], root)
    return object_infos([item], root, known=True)[0]


def object_infos(
    items: Sequence[Mapping[str, Any]], root: str, *, known: bool
) -> Sequence[ObjectInfo]:
    """From object resources, whose names were checked. Raises one of ``BAD_ANSWER``.

    Args:
        known: whether metadata and properties were asked for.
    """
    skip = len(root)
    sizes = parse_numbers([str(item.get("size", 0)) for item in items])
    # The time when this content was made; `updated` also moves with the metadata.
    times_s = iso_times_s([item["timeCreated"] for item in items])
    versions = [str(item["generation"]) for item in items]
    parse_numbers(versions, GENERATION_DIGITS)
    all_metadata = [dict(item.get("metadata") or {}) for item in items] if known else []
    parse_key("".join(chain.from_iterable(all_metadata)))
    parse_key("".join(chain.from_iterable(metadata.values() for metadata in all_metadata)))
    return [
        ObjectInfo(
            item["name"][skip:],
            size_bytes,
            mtime_s,
            version,
            metadata,
            properties_in(item) if known else None,
        )
        for item, size_bytes, mtime_s, version, metadata in zip(
            items, sizes, times_s, versions, all_metadata or repeat(None, len(items)), strict=True
        )
    ]


def text_of(value: object) -> str:
    """A text of a document. Raises ValueError if it is something else."""
    if not isinstance(value, str):
        raise ValueError("not a text")  # noqa: TRY004 - the document is wrong, not the program
    return parse_key(value)


def as_json(value: Mapping[str, Any]) -> bytes:
    """The body of a request that is a document."""
    return json.dumps(value).encode()
