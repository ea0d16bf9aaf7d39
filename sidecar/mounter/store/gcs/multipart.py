"""Uploads to Google Cloud Storage whose parts go in parallel. Imports no SDK.

Parts are no objects: nobody lists them, and retention, soft deletion and charges for early deletion
do not apply to them, as they would to temporary objects that are composed
(docs/decisions/0055-parts-in-parallel-on-gcs.md).

Source: "XML API multipart uploads", https://cloud.google.com/storage/docs/multipart-uploads.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

from sidecar.errors import NotFound
from sidecar.mounter.store.gcs.client import GcsClient
from sidecar.mounter.store.http.signed_request import Body, BufferedResponse
from sidecar.mounter.store.interface import Condition, ObjectInfo
from sidecar.mounter.store.multipart_upload import MultipartUpload
from sidecar.mounter.store.multipart_xml import parse_fields, part_list
from sidecar.mounter.store.store_errors import Call
from sidecar.units import MIB

MIN_PART_BYTES = 5 * MIB
MAX_PART_BYTES = 5 * 1024 * MIB
MAX_PARTS = 10_000

_UPLOAD_ID = re.compile(r"[!-~]{1,1024}")


class GcsUpload(MultipartUpload):
    """An :class:`~sidecar.mounter.store.interface.Upload`, safe to use from any thread.

    The request that completes an upload takes no condition. So the condition is checked just
    before, and another writer may come between.
    """

    _store: GcsClient

    def complete(
        self,
        condition: Condition | None = None,
        *,
        parts: int | None = None,
        metadata: Mapping[str, str] | None = None,
    ) -> ObjectInfo:
        """As :meth:`Upload.complete`."""
        self._store.check_condition(self._key, condition)
        sent = sorted(self._parts.items())[:parts]
        document = part_list((number, etag) for number, (etag, _) in sent)
        call = Call("complete", self._key, condition)
        try:
            reply = self._store.request_xml(call, "POST", self._key, self._query, body=(document,))
        except NotFound:
            made = self._completed_before(sum(size for _, (_, size) in sent))
        else:
            made = self._made(reply.content, reply.headers.get("x-goog-generation", ""))
        if metadata is not None and dict(metadata) != dict(self._metadata):
            return self._store.set_metadata(made, metadata)
        return made

    def _request(
        self, call: Call, method: str, query: Mapping[str, str], body: Body = ()
    ) -> BufferedResponse:
        return self._store.request_xml(call, method, self._key, query, body=body)

    def _made(self, document: bytes, generation: str) -> ObjectInfo:
        """The object that was made.

        Args:
            document: the store's answer.
            generation: may be empty, since the store need not name it. Then it is asked for, and
                the ETag says whether the object is still this one.

        Raises Stale if another writer has replaced it meanwhile.
        """
        try:
            etag = (parse_fields(document) or {})["ETag"].strip('"')
        except (ValueError, LookupError):
            etag = ""
        if not etag:
            raise self._store.malformed("complete", f"no object was made of `{self._key}`")
        try:
            if not generation:
                found = self._request(Call("head", self._key), "HEAD", {})
                generation = found.headers.get("x-goog-generation", "")
                if not generation or found.headers.get("etag", "").strip('"') != etag:
                    raise self._store.errors.stale(self._key)
            return self._store.head_generation(self._key, generation)
        except NotFound:
            raise self._store.errors.stale(self._key) from None


def is_upload_id(text: object) -> bool:
    """Whether this can be the number of an upload."""
    return isinstance(text, str) and _UPLOAD_ID.fullmatch(text) is not None
