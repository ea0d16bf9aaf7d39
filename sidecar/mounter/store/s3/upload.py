"""Multipart uploads to S3: beginning, finishing and removing them. Imports no SDK.

Source: "CreateMultipartUpload", "CompleteMultipartUpload", "UploadPartCopy",
https://docs.aws.amazon.com/AmazonS3/latest/API/.
"""

from __future__ import annotations

import contextlib
import logging
import threading
import time
from collections.abc import Iterator, Mapping
from typing import Any

from sidecar.errors import NotFound, SidecarError, Unsupported
from sidecar.mounter.store.http.signed_request import Body, BufferedResponse
from sidecar.mounter.store.interface import Condition, ObjectInfo, Properties
from sidecar.mounter.store.multipart_upload import MultipartUpload
from sidecar.mounter.store.multipart_xml import part_list
from sidecar.mounter.store.object_properties import Repeated
from sidecar.mounter.store.s3.client import S3Client
from sidecar.mounter.store.s3.requests import (
    ACCEPTED,
    S3Requests,
    SlowResponse,
    metadata_headers,
)
from sidecar.mounter.store.s3.versions import etag_of
from sidecar.mounter.store.signing import clock
from sidecar.mounter.store.store_errors import Call

log = logging.getLogger(__name__)

_CLOCKS_DIFFER_S = 60.0
"""How far the store's clock may be behind ours in a search for nameless uploads."""


class S3Uploads:
    """Begins and resumes the uploads of one store, and removes those without an owner.

    Safe to use from any thread. An upload is nameless if the store began it and its number
    never arrived here.
    """

    def __init__(self, store: S3Client, requests: S3Requests) -> None:
        self._store = store
        self._requests = requests
        self._own: set[str] = set()
        self._changed = threading.Condition()
        self._changing: set[str] = set()

    def start(
        self,
        key: str,
        metadata: Mapping[str, str],
        properties: Properties,
        repeated: Repeated,
        replaced: str,
    ) -> S3Upload:
        """Begin an upload.

        Args:
            properties: those that the object will have.
            repeated: the same, as headers.
            replaced: the version that has the name now; empty: none.
        """
        since_s = time.time()
        own = metadata_headers(metadata)
        with self._alone_with(key):
            response = self._store.property_keeper.write(
                repeated,
                lambda headers: self._store.request_slow(
                    Call("put", key), "POST", key, {"uploads": ""}, {**headers, **own}
                ),
            )
            upload_id = response.fields.get("UploadId", "")
            if not upload_id:
                raise self._store.malformed("put", f"an upload of `{key}` has no number")
            self._own.add(upload_id)
        if response.attempts > 1:  # the earlier ones may have worked, too
            try:
                self.abort_nameless(key, since_s)
            except SidecarError as error:
                log.warning("an upload may be left in the store: %s", error.message)
        return S3Upload(self._store, self._own, key, upload_id, metadata, {}, replaced, properties)

    def resume(
        self, key: str, state: Mapping[str, Any], parts: dict[int, tuple[str, int]]
    ) -> S3Upload:
        """Go on with an upload of a process that ended. ``parts``: number to (ETag, bytes)."""
        upload_id, metadata, replaced = (state[name] for name in ("upload", "metadata", "replaced"))
        self._own.add(upload_id)
        return S3Upload(self._store, self._own, key, upload_id, metadata, parts, replaced)

    def abort_nameless(self, key: str, since_s: float) -> None:
        """Abort the uploads of a key that began since then, have no part and are not ours.

        They might belong to another client that is about to send its first part; that client then
        has to begin anew. An upload with a part is left alone.

        Args:
            since_s: seconds since the epoch, by the node's clock.
        """
        with self._alone_with(key):  # none of ours may be waiting for its number
            response = self._store.transfer(
                Call("list"), lambda: self._requests.uploads(key), (), ACCEPTED
            )
            try:
                uploads = self._requests.parse_uploads(response.content)
            except (ValueError, LookupError):
                what = f"uploads of `{key}` cannot be listed"
                raise self._store.malformed("list", what) from None
            earliest_s = since_s + clock.ahead_s - _CLOCKS_DIFFER_S
            for found, upload_id, begun_s in uploads:
                is_other = found == key and upload_id not in self._own
                if is_other and begun_s >= earliest_s:
                    self._abort_empty(key, upload_id)

    def _abort_empty(self, key: str, upload_id: str) -> None:
        query = {"uploadId": upload_id, "max-parts": "1"}
        try:
            fields = self._store.request_slow(Call("list", key), "GET", key, query).fields
        except NotFound:
            return
        if "Part" not in fields:
            S3Upload(self._store, self._own, key, upload_id, {}, {}, "").abort()

    @contextlib.contextmanager
    def _alone_with(self, key: str) -> Iterator[None]:
        """A block in which no other thread begins or removes uploads of a key."""
        with self._changed:
            self._changed.wait_for(lambda: key not in self._changing)
            self._changing.add(key)
        try:
            yield
        finally:
            with self._changed:
                self._changing.discard(key)
                self._changed.notify_all()


class S3Upload(MultipartUpload):
    """An :class:`~sidecar.mounter.store.interface.Upload`.

    Args:
        own: the numbers of this process's uploads; this one leaves the set at its end.
        upload_id: its number.
        parts: the parts that the store has: number to (ETag, bytes).
        replaced: the version that had the name when it was begun; empty: none.
        properties: of the object that it will make; None if they are no longer known.
    """

    _store: S3Client

    def __init__(
        self,
        store: S3Client,
        own: set[str],
        key: str,
        upload_id: str,
        metadata: Mapping[str, str],
        parts: dict[int, tuple[str, int]],
        replaced: str,
        properties: Properties | None = None,
    ) -> None:
        super().__init__(store, key, upload_id, metadata, parts, replaced)
        self._own = own
        self._properties = properties

    def copy_part(self, number: int, source: Mapping[str, str], first: int, last: int) -> None:
        """Make a part from the bytes ``first`` to ``last`` of another object.

        Args:
            source: headers that name the object, and its condition.

        Raises Unsupported if the server takes the request for an empty part, as rclone does.
        """
        response = self._store.request_slow(
            Call("copy", self._key),
            "PUT",
            self._key,
            {"partNumber": str(number), **self._query},
            {**source, "x-amz-copy-source-range": f"bytes={first}-{last}"},
        )
        if "ETag" not in response.fields:
            raise Unsupported(f"{self._store.errors} copies no ranges")
        self._note_part(number, response.fields["ETag"], last - first + 1)

    def complete(
        self,
        condition: Condition | None = None,
        *,
        parts: int | None = None,
        metadata: Mapping[str, str] | None = None,  # noqa: ARG002 - fixed when it was begun
    ) -> ObjectInfo:
        """As :meth:`Upload.complete`. The version may be provisional."""
        self._store.check_condition(self._key, condition)
        sent = sorted(self._parts.items())[:parts]
        size_bytes = sum(size for _, (_, size) in sent)
        call = Call("complete", self._key, condition)
        document = part_list((number, etag) for number, (etag, _) in sent)

        def write(conditions: Mapping[str, str]) -> SlowResponse:
            return self._store.request_slow(
                call,
                "POST",
                self._key,
                self._query,
                conditions,
                body=(document,),
                doubt=self._check_there,
            )

        try:
            response = self._store.conditionally(self._key, condition, write)
        except NotFound:
            self._own.discard(self._query["uploadId"])
            return self._completed_before(size_bytes)
        self._own.discard(self._query["uploadId"])
        etag = etag_of(response.fields.get("ETag"))
        return self._store.made_of_parts(
            self._key, etag, size_bytes, response.date_s, self._metadata, self._properties
        )

    def abort(self) -> None:
        """As :meth:`Upload.abort`."""
        super().abort()
        self._own.discard(self._query["uploadId"])

    def _request(
        self, call: Call, method: str, query: Mapping[str, str], body: Body = ()
    ) -> BufferedResponse:
        return self._store.request(call, method, self._key, query, body=body)

    def _check_there(self) -> None:
        """Raise NotFound if the upload is gone: Ceph's gateway then fails to complete it."""
        query = {**self._query, "max-parts": "1"}
        self._store.request(Call("list", self._key), "GET", self._key, query)
