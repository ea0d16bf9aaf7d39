"""The JSON API of Google Cloud Storage, as far as it is spoken without the SDK."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from datetime import datetime
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

from sidecar.mounter.store.gcs.properties import SHOWN, properties_in
from sidecar.mounter.store.gcs.tokens import Tokens
from sidecar.mounter.store.http.connection import Headers
from sidecar.mounter.store.http.pool import Endpoint
from sidecar.mounter.store.http.requests import Get, Listing, Put
from sidecar.mounter.store.interface import ObjectInfo, Page
from sidecar.mounter.store.signing import quote_query
from sidecar.mounter.store.store_errors import Answer

if TYPE_CHECKING:
    from sidecar.spec import StoreSource

_FIELDS = "kind,items(name,size,timeCreated,generation{}),prefixes,nextPageToken"
_KEPT_FIELDS = ",".join(("", "metadata", *SHOWN))
_REASON = re.compile(r"[A-Za-z]+")


class GcsRequests:
    """Requests of the JSON API."""

    def __init__(
        self, source: StoreSource, endpoint: Endpoint, tokens: Tokens, *, with_metadata: bool
    ) -> None:
        self._with_metadata = with_metadata
        objects = f"storage/v1/b/{quote(source.bucket, safe='')}/o"
        self._root = f"{endpoint.path}/download/{objects}/"
        self._list_path = f"{endpoint.path}/{objects}"
        self._uploads = f"{endpoint.path}/upload/{objects}"
        self._prefix = source.prefix
        self._tokens = tokens

    def get(self, key: str, version: str, byte_range: str) -> Get:
        """A GET with a bearer token."""
        name = quote(self._prefix + key, safe="")
        return Get(
            # `ifGenerationMatch`, not `generation`: it tells changed (412) from gone (404).
            f"{self._root}{name}?alt=media&ifGenerationMatch={version}",
            {
                "range": byte_range,
                # Without it an object stored with Content-Encoding gzip is unpacked on the
                # way, and the range is ignored.
                "accept-encoding": "gzip",
                **self._tokens.header(),
            },
        )

    def put(self, query: Mapping[str, str], boundary: str) -> Put:
        """A multipart/related upload of a whole object."""
        headers = {"content-type": f"multipart/related; boundary={boundary}"}
        target = f"{self._uploads}?{quote_query(query)}"
        return Put("POST", target, {**headers, **self._tokens.header()})

    def put_chunk(self, target: str, content_range: str) -> Put:
        """A piece of a resumable upload."""
        headers = {"content-range": content_range, **self._tokens.header()}
        return Put("PUT", target, headers)

    def delete(self, key: str) -> Put:
        """objects.delete."""
        name = quote(self._prefix + key, safe="")
        return Put("DELETE", f"{self._list_path}/{name}", self._tokens.header())

    def list(self, listing: Listing) -> Get:
        """objects.list with the fields that are used."""
        wanted = {
            "prefix": self._prefix + listing.prefix,
            "maxResults": str(listing.limit),
            "fields": _FIELDS.format(_KEPT_FIELDS if self._with_metadata else ""),
        }
        if listing.delimiter:
            wanted["delimiter"] = listing.delimiter
        if listing.token:
            wanted["pageToken"] = listing.token
        return Get(f"{self._list_path}?{quote_query(wanted)}", self._tokens.header())

    def page(self, body: bytes) -> Page:
        """From an Objects resource."""
        answer = json.loads(body)
        if answer["kind"] != "storage#objects":
            raise ValueError("another resource")
        root = self._prefix
        objects = [
            object_info(item, root, known=self._with_metadata)
            for item in answer.get("items", [])
            if item["name"] != root
        ]
        prefixes = [found[len(root) :] for found in answer.get("prefixes", [])]
        return Page(objects, prefixes, answer.get("nextPageToken") or None)

    def version(self, fields: Headers) -> str:
        """From the generation."""
        return fields.get("x-goog-generation", "")

    def refusal(self, status: int, fields: Headers, body: bytes) -> Answer:  # noqa: ARG002 - base
        """From the JSON or text body."""
        return Answer(status, reason_of(body))

    def moved(self, fields: Headers) -> None:
        """Never."""


def reason_of(content: bytes) -> str:
    """The first reason in an error of the JSON API, or the one that its words mean."""
    try:
        error = json.loads(content)["error"]
        message, reason = str(error["message"]), str(error["errors"][0]["reason"])
    except (ValueError, KeyError, TypeError, IndexError):
        message, reason = content[:200].decode("latin-1"), ""
    if message.startswith("The specified bucket does not exist"):
        return "NoSuchBucket"
    return reason if _REASON.fullmatch(reason) else ""


def object_info(item: Mapping[str, Any], root: str, *, known: bool) -> ObjectInfo:
    """From an object resource.

    Args:
        root: the prefix that the mount's keys do not have.
        known: metadata and properties were asked for.
    """
    return ObjectInfo(
        key=item["name"][len(root) :],
        size_bytes=int(item.get("size", 0)),
        # When this content was made; `updated` also moves with the metadata.
        mtime_s=datetime.fromisoformat(item["timeCreated"]).timestamp(),
        version=str(item["generation"]),
        metadata=dict(item.get("metadata") or {}) if known else None,
        properties=properties_in(item) if known else None,
    )
