"""Multipart uploads to S3, and answers that say too early that all is well.

Source: "CreateMultipartUpload", "CompleteMultipartUpload", "UploadPartCopy",
https://docs.aws.amazon.com/AmazonS3/latest/API/.
"""

from __future__ import annotations

import contextlib
import hashlib
import threading
from collections.abc import Iterable, Iterator, Mapping
from typing import TYPE_CHECKING, Any
from xml.sax.saxutils import escape

from sidecar.errors import NotFound, Unsupported
from sidecar.mounter.store.interface import Condition, Content, ObjectInfo, Properties
from sidecar.mounter.store.s3.requests import etag_of
from sidecar.mounter.store.store_errors import Request

if TYPE_CHECKING:
    from sidecar.mounter.store.s3.store import Result, S3Store


class OwnUploads:
    """The uploads that this process has under way, by number."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._numbers: set[str] = set()
        self._keys: set[str] = set()

    def __contains__(self, upload_id: str) -> bool:
        return upload_id in self._numbers

    def add(self, upload_id: str) -> None:
        """One that was begun or is gone on with."""
        self._numbers.add(upload_id)

    def discard(self, upload_id: str) -> None:
        """One that ended."""
        self._numbers.discard(upload_id)

    @contextlib.contextmanager
    def changing(self, key: str) -> Iterator[None]:
        """Alone with the uploads of a key: to begin one, or to remove others."""
        with self._changed:
            self._changed.wait_for(lambda: key not in self._keys)
            self._keys.add(key)
        try:
            yield
        finally:
            with self._changed:
                self._keys.discard(key)
                self._changed.notify_all()


class S3Upload:
    """An :class:`~sidecar.mounter.store.interface.Upload`.

    Args:
        upload_id: the store's word for it.
        parts: what it has already: number to (ETag, bytes).
        properties: of the object that it will be; None where that is not known any more.
    """

    def __init__(
        self,
        store: S3Store,
        key: str,
        upload_id: str,
        metadata: Mapping[str, str],
        parts: dict[int, tuple[str, int]],
        properties: Properties | None = None,
    ) -> None:
        self._store = store
        self._key = key
        self._query = {"uploadId": upload_id}
        self._metadata = metadata
        self._parts = parts
        self._properties = properties

    @property
    def state(self) -> Mapping[str, Any]:
        """As :attr:`Upload.state`."""
        return {"upload": self._query["uploadId"], "metadata": dict(self._metadata)}

    def put_part(self, number: int, content: Content) -> str:
        """As :meth:`Upload.put_part`."""
        query = {"partNumber": str(number), **self._query}
        try:
            reply = self._store.request(
                Request("part", self._key), "PUT", self._key, query, body=(content,)
            )
        except NotFound:
            raise self._store.place.upload_lost(self._key) from None
        return self._came(number, reply.headers.get("etag", ""), len(content))

    def copy_part(self, number: int, source: Mapping[str, str], first: int, last: int) -> None:
        """Make a part from the bytes ``first`` to ``last`` of another object.

        Args:
            source: headers that name it, and its condition.

        Raises Unsupported for a server that takes it for an empty part, as rclone does.
        """
        answer = self._store.result(
            Request("copy", self._key),
            "PUT",
            self._key,
            {"partNumber": str(number), **self._query},
            {**source, "x-amz-copy-source-range": f"bytes={first}-{last}"},
        )
        if "ETag" not in answer.fields:
            raise Unsupported(f"{self._store.place} copies no ranges")
        self._came(number, answer.fields["ETag"], last - first + 1)

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
        request = Request("complete", self._key, condition)
        part_list = _part_list((number, etag) for number, (etag, _) in sent)

        def write(conditions: Mapping[str, str]) -> Result:
            return self._store.result(
                request,
                "POST",
                self._key,
                self._query,
                conditions,
                body=(part_list,),
                doubt=self._check_there,
            )

        try:
            answer = self._store.conditionally(self._key, condition, write)
        except NotFound:
            self._store.own_uploads.discard(self._query["uploadId"])
            return self._completed_before([etag for _, (etag, _) in sent])
        self._store.own_uploads.discard(self._query["uploadId"])
        size_bytes = sum(size for _, (_, size) in sent)
        etag = etag_of(answer.fields.get("ETag"))
        return self._store.made_of_parts(
            self._key, etag, size_bytes, answer.date_s, self._metadata, self._properties
        )

    def abort(self) -> None:
        """As :meth:`Upload.abort`."""
        with contextlib.suppress(NotFound):
            self._store.request(Request("abort", self._key), "DELETE", self._key, self._query)
        self._store.own_uploads.discard(self._query["uploadId"])

    def _came(self, number: int, etag: str, size_bytes: int) -> str:
        if not etag:
            raise self._store.odd_answer("part", f"a part of `{self._key}` has no ETag")
        self._parts[number] = (etag, size_bytes)
        return etag

    def _check_there(self) -> None:
        """Raises NotFound for an upload that is gone: Ceph's gateway then fails to complete it."""
        query = {**self._query, "max-parts": "1"}
        self._store.request(Request("list", self._key), "GET", self._key, query)

    def _completed_before(self, etags: list[str]) -> ObjectInfo:
        """The upload is gone: perhaps because an attempt worked whose answer was lost."""
        digest = hashlib.md5(usedforsecurity=False)
        for etag in etags:
            digest.update(bytes.fromhex(etag.strip('"')))
        try:
            found = self._store.head(self._key)
        except NotFound:
            raise self._store.place.upload_lost(self._key) from None
        if found.version != f"{digest.hexdigest()}-{len(etags)}":
            raise self._store.place.upload_lost(self._key)
        return found


def _part_list(parts: Iterable[tuple[int, str]]) -> bytes:
    lines = [
        f"<Part><PartNumber>{number}</PartNumber><ETag>{escape(etag)}</ETag></Part>"
        for number, etag in parts
    ]
    namespace = "http://s3.amazonaws.com/doc/2006-03-01/"
    document = f'<CompleteMultipartUpload xmlns="{namespace}">{"".join(lines)}'
    return f"{document}</CompleteMultipartUpload>".encode()
