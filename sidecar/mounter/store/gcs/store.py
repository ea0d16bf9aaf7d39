"""Google Cloud Storage. :mod:`.sdk` has what gcsfs does.

User metadata is the object's ``metadata``. A change in place keeps the generation, so handles
that pinned it go on reading.
"""

from __future__ import annotations

import contextlib
import functools
import itertools
import json
import os
import re
from collections.abc import Callable, Mapping
from http import HTTPStatus
from typing import Any, TypeVar

from sidecar.errors import NotFound, SidecarError
from sidecar.mounter.store.gcs.client import GOOGLE_ENDPOINT, GcsClient
from sidecar.mounter.store.gcs.multipart import (
    MAX_PART_BYTES,
    MAX_PARTS,
    MIN_PART_BYTES,
    GcsUpload,
    is_upload_id,
)
from sidecar.mounter.store.gcs.properties import (
    component_of,
    content_type,
    fields_of,
    headers_of,
    key_query,
)
from sidecar.mounter.store.gcs.requests import as_json, text_of
from sidecar.mounter.store.gcs.sdk import is_plain
from sidecar.mounter.store.gcs.upload import ResumableUpload
from sidecar.mounter.store.http.retry import Retryable
from sidecar.mounter.store.http.signed_request import Body
from sidecar.mounter.store.http.values import parse_number
from sidecar.mounter.store.interface import (
    Condition,
    Content,
    Limits,
    ObjectInfo,
    Properties,
    Revision,
)
from sidecar.mounter.store.multipart_xml import parse_fields
from sidecar.mounter.store.store_errors import Call
from sidecar.units import KIB, MIB

T = TypeVar("T")

DELETE_BATCH = 1000

_DELETED = frozenset({200, 204})
_SESSION = re.compile(r"(?:https?://[!-.0-~]*)?(/[!-~]*)")
"""The URL of an upload. Its path and query are sent back to the store."""
_NOT_BEGUN = frozenset({400, 403, 404, 405, 501})
"""Statuses with which a store begins no upload of the XML API: it does not support them, or the
login may not. Then a session is begun, whose error tells any other reason."""
_FOR_NOW = frozenset({403, 404})
"""Those of them after which it may begin the next upload."""
_MOST_IDLE_REWRITES = 10
"""How many may come in a row without a byte copied."""
_NAME_CHARACTERS = 50
"""How many characters of a name, of four bytes at most, fit into another name of 255 bytes."""


class GcsStore(GcsClient):
    """A bucket of Google Cloud Storage."""

    type_property = "contentType"
    limits = Limits(
        max_object_bytes=5 * MIB * MIB,
        min_part_bytes=MIN_PART_BYTES,
        max_part_bytes=MAX_PART_BYTES,
        max_parts=MAX_PARTS,
        max_metadata_bytes=8 * KIB,
    )
    _has_multipart = True  # until the store refuses

    def put(
        self,
        key: str,
        content: Content,
        metadata: Mapping[str, str] | None = None,
        condition: Condition | None = None,
        *,
        like: ObjectInfo | None = None,
    ) -> ObjectInfo:
        """As :meth:`Store.put`: one multipart/related request (RFC 2387)."""
        return self._put(key, (content,), metadata, self.properties_of_new(key, like), condition)

    def _put(
        self,
        key: str,
        content: Body,
        metadata: Mapping[str, str] | None,
        properties: Properties,
        condition: Condition | None = None,
    ) -> ObjectInfo:
        boundary = os.urandom(16).hex()
        head = (
            f"--{boundary}\r\nContent-Type: application/json; charset=UTF-8\r\n\r\n"
            f"{json.dumps(self._resource(key, metadata, properties))}\r\n"
            f"--{boundary}\r\nContent-Type: {content_type(properties)}\r\n\r\n"
        )
        query = {"uploadType": "multipart", **key_query(properties), **_conditional(condition)}
        reply = self.transfer(
            Call("put", key, condition),
            lambda: self._gcs.put(query, boundary),
            (head.encode(), *content, f"\r\n--{boundary}--\r\n".encode()),
        )
        return self.info("put", reply)

    def start_upload(
        self,
        key: str,
        metadata: Mapping[str, str] | None = None,
        *,
        like: ObjectInfo | None = None,
    ) -> GcsUpload | ResumableUpload:
        """As :meth:`Store.start_upload`: with parts in parallel, or else in order."""
        properties = self.properties_of_new(key, like)
        headers = headers_of(properties, metadata or {})
        upload_id = self._begin_multipart(key, headers) if headers is not None else ""
        if upload_id:
            return GcsUpload(self, key, upload_id, metadata or {}, {}, like.version if like else "")
        reply = self.transfer(
            Call("put", key),
            lambda: self._gcs.start_upload(key_query(properties)),
            (as_json(self._resource(key, metadata, properties)),),
            timeout=self._quick,
        )
        # Only what follows the host in the session's URL: the session is where it was begun.
        session = _SESSION.fullmatch(reply.headers.get("location", ""))
        if session is None:
            raise self.malformed("put", "an upload was begun without a session")
        return ResumableUpload(self, key, session[1], metadata or {}, None)

    def _begin_multipart(self, key: str, headers: Mapping[str, str]) -> str:
        """The number of a new upload; empty if the store begins none."""
        if not self._has_multipart:
            return ""
        reply = self.request_xml(
            Call("put", key), "POST", key, {"uploads": ""}, headers, accepted={200, *_NOT_BEGUN}
        )
        if reply.status == HTTPStatus.OK:
            with contextlib.suppress(ValueError):
                upload_id = (parse_fields(reply.content) or {}).get("UploadId")
                if isinstance(upload_id, str) and is_upload_id(upload_id):
                    return upload_id
        self._has_multipart = reply.status in _FOR_NOW
        return ""

    def resume_upload(
        self, key: str, state: Mapping[str, Any], parts: Mapping[int, tuple[int, str]]
    ) -> GcsUpload | ResumableUpload:
        """As :meth:`Store.resume_upload`."""
        if "upload" in state:
            upload_id = state["upload"]
            if not is_upload_id(upload_id):
                raise self.malformed("put", f"what is kept of the upload of `{key}` is none")
            sent_parts = {number: (etag, size) for number, (size, etag) in parts.items()}
            return GcsUpload(self, key, upload_id, state["metadata"], sent_parts, state["replaced"])
        session = state["session"]
        if not self._gcs.is_session(session):  # it comes from local disk, and must not be trusted
            raise self.malformed("put", f"what is kept of the upload of `{key}` is no session")
        # Parts after a gap are sent again, and found to be there.
        in_order = itertools.takewhile(parts.__contains__, itertools.count(1))
        sent = [parts[number][0] for number in in_order]
        return ResumableUpload(self, key, session, state["metadata"], sent)

    def abandon(self, key: str, state: Mapping[str, Any]) -> None:
        """As :meth:`Store.abandon`.

        Sessions cannot be listed, and expire in a week; an upload without a part holds nothing.
        """
        if "leftover" in state:
            self.delete(state["leftover"])
        elif "session" in state or "upload" in state:
            self.resume_upload(key, state, {}).abort()

    def patch(
        self,
        base: ObjectInfo,
        key: str,
        revision: Revision,
        metadata: Mapping[str, str],
        begun: Callable[[Mapping[str, Any]], None],
        *,
        like: ObjectInfo | None = None,
    ) -> ObjectInfo | None:
        """As :meth:`Store.patch`: bytes after the end of ``base`` are sent and composed.

        For a moment they are an object of their own beside it.
        """
        added_bytes = revision.size_bytes - base.size_bytes
        if added_bytes < 0 or any(start < base.size_bytes for start, _ in revision.changed):
            return None
        if not added_bytes:
            return self.copy(base.key, key, known=base, metadata=metadata)
        if self._base != GOOGLE_ENDPOINT:  # emulators ignore the condition
            self.check_condition(base.key, Condition(version=base.version))
        directory, _, name = key.rpartition("/")
        tail_key = f"{directory}/" if directory else ""
        tail_key += f".{name[:_NAME_CHARACTERS]}.mount-sidecar-{os.urandom(6).hex()}"
        begun({"leftover": tail_key})
        properties = self.properties_of_new(key, like)
        try:
            added = revision.content(base.size_bytes, added_bytes)
            tail = self._put(tail_key, (added,), None, component_of(properties))
            composition = {
                "sourceObjects": [self._component(base), self._component(tail)],
                "destination": self._resource(key, metadata, properties),
            }
            reply = self.transfer(
                Call("copy", base.key, Condition(version=base.version)),
                lambda: self._gcs.object(
                    "POST", key, "/compose", key_query(properties), has_json=True
                ),
                (as_json(composition),),
            )
        finally:
            self.delete(tail_key)
        return self.info("copy", reply)

    def _component(self, info: ObjectInfo) -> dict[str, Any]:
        return {
            "name": self.full(info.key),
            "generation": info.version,
            "objectPreconditions": {"ifGenerationMatch": info.version},
        }

    def copy(
        self,
        source: str,
        target: str,
        *,
        known: ObjectInfo | None = None,
        metadata: Mapping[str, str] | None = None,
    ) -> ObjectInfo:
        """As :meth:`Store.copy`. In place the generation stays."""
        found = self.source_of_copy(source, known)
        if source == target and metadata is not None:
            return self.set_metadata(found, metadata)
        properties = self.properties_of(found)
        query = {
            "ifSourceGenerationMatch": found.version,
            **key_query(properties, "destinationKmsKeyName"),
        }
        kept = found.metadata if metadata is None else metadata
        # All properties: a storage class that is not named is the bucket's, and a resource in a
        # request replaces the source's.
        resource = as_json(self._resource(target, kept, properties))
        rewritten_bytes, idle = 0, 0
        while idle < _MOST_IDLE_REWRITES:
            # A large copy between locations or classes takes several requests.
            reply = self.transfer(
                Call("copy", source),
                lambda: self._gcs.object(
                    "POST", source, self._gcs.rewrite_to(target), query, has_json=True
                ),
                (resource,),
            )
            made, token, copied_bytes = self._read("copy", reply, self._rewrite_state)
            if made is not None:
                return made
            query["rewriteToken"] = token
            idle = 0 if copied_bytes > rewritten_bytes else idle + 1
            rewritten_bytes = copied_bytes
        raise self.malformed("copy", f"its copy of `{source}` does not go on")

    def _rewrite_state(self, reply: Any) -> tuple[ObjectInfo | None, str, int]:
        """The object that was made, or the token to go on with, and how many bytes are copied."""
        if reply["done"] is True:
            return self._object_info(reply["resource"]), "", 0
        copied_bytes = parse_number(str(reply.get("totalBytesRewritten", 0)))
        return None, text_of(reply["rewriteToken"]), copied_bytes

    def delete(self, key: str) -> None:
        """As :meth:`Store.delete`."""
        try:
            self.transfer(
                Call("delete", key), lambda: self._gcs.object("DELETE", key), (), _DELETED
            )
        except NotFound:
            self._check_bucket()

    def delete_many(self, keys: list[str]) -> None:
        """As :meth:`Store.delete_many`, through gcsfs.

        Keys that gcsfs fails at are deleted one by one, so that they are retried and explained.
        """
        whole = {self.full(key): key for key in keys}
        plain = [name for name in whole if is_plain(name)]
        for start in range(0, len(plain), DELETE_BATCH):
            batch = plain[start : start + DELETE_BATCH]
            with contextlib.suppress(SidecarError, Retryable):
                self.retry.once("delete", functools.partial(self._sdk.delete, batch))
                for name in batch:
                    del whole[name]
        for key in whole.values():
            self.delete(key)

    def _resource(
        self, key: str, metadata: Mapping[str, str] | None, properties: Properties
    ) -> dict[str, Any]:
        own = {"name": self.full(key), "metadata": dict(metadata or {})}
        return {**fields_of(properties), **own}


def _conditional(condition: Condition | None) -> dict[str, str]:
    if condition is None:
        return {}
    if condition.absent:
        return {"ifGenerationMatch": "0"}
    return {} if condition.version is None else {"ifGenerationMatch": condition.version}
