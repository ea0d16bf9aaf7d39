"""The common part of an upload in parts on S3's REST API and Google's XML API."""

from __future__ import annotations

import contextlib
from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any

from sidecar.errors import NotFound
from sidecar.mounter.store.http.signed_request import Body, BufferedResponse
from sidecar.mounter.store.http_store import HttpStore
from sidecar.mounter.store.interface import Content, ObjectInfo
from sidecar.mounter.store.store_errors import Call


class MultipartUpload(ABC):
    """Common half of an :class:`~sidecar.mounter.store.interface.Upload`.

    Parts go in any order and may be sent again. Safe to use from any thread.

    Args:
        upload_id: its number.
        metadata: of the object that it will be.
        parts: the parts that the store has: number to (ETag, bytes).
        replaced: the version that had the name when it was begun; empty: none.
    """

    ordered_parts = False

    def __init__(
        self,
        store: HttpStore[Any],
        key: str,
        upload_id: str,
        metadata: Mapping[str, str],
        parts: dict[int, tuple[str, int]],
        replaced: str,
    ) -> None:
        self._store: HttpStore[Any] = store
        self._key = key
        self._query = {"uploadId": upload_id}
        self._metadata = metadata
        self._parts = parts
        self._replaced = replaced

    @property
    def state(self) -> Mapping[str, Any]:
        """As :attr:`Upload.state`."""
        metadata = dict(self._metadata)
        return {"upload": self._query["uploadId"], "metadata": metadata, "replaced": self._replaced}

    def put_part(self, number: int, content: Content) -> str:
        """As :meth:`Upload.put_part`."""
        query = {"partNumber": str(number), **self._query}
        try:
            reply = self._request(Call("part", self._key), "PUT", query, (content,))
        except NotFound:
            raise self._store.errors.upload_lost(self._key) from None
        return self._note_part(number, reply.headers.get("etag", ""), len(content))

    def abort(self) -> None:
        """As :meth:`Upload.abort`."""
        with contextlib.suppress(NotFound):
            self._request(Call("abort", self._key), "DELETE", self._query)

    def _completed_before(self, size_bytes: int) -> ObjectInfo:
        """The object, if an earlier attempt completed the upload and its response was lost.

        Args:
            size_bytes: of the object that the upload makes.

        Raises StoreProtocolError if the upload is gone, and no object was made of it.
        """
        try:
            found = self._store.head(self._key)
        except NotFound:
            raise self._store.errors.upload_lost(self._key) from None
        # The sidecar's own metadata has the time of the last write in nanoseconds. An ETag would
        # prove nothing: what KMS encrypts has one that cannot be computed.
        is_ours = self._metadata and dict(found.metadata or {}) == dict(self._metadata)
        is_old = found.version == self._replaced
        if not is_ours or is_old or found.size_bytes != size_bytes:
            raise self._store.errors.upload_lost(self._key)
        return found

    @abstractmethod
    def _request(
        self, call: Call, method: str, query: Mapping[str, str], body: Body = ()
    ) -> BufferedResponse:
        """One request about the object, with retries. 200 and 204 are successes."""

    def _note_part(self, number: int, etag: str, size_bytes: int) -> str:
        if not etag:
            raise self._store.malformed("part", f"a part of `{self._key}` has no ETag")
        self._parts[number] = (etag, size_bytes)
        return etag
