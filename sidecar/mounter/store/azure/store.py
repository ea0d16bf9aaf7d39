"""Azure Blob Storage. :mod:`.sdk` has what adlfs does.

User metadata: Azure's names are identifiers, so ``-`` is kept as ``_``; keys begin with a
letter. Changing metadata in place makes a new ETag, and with it a new version.
"""

from __future__ import annotations

import contextlib
import functools
import time
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

from sidecar.errors import (
    AccessDenied,
    NotFound,
    SidecarError,
    StoreProtocolError,
    Unsupported,
)
from sidecar.mounter.store.azure.client import AzureClient
from sidecar.mounter.store.azure.properties import (
    TAG_COUNT,
    TAGS,
    repeated,
    repeated_by_copy,
)
from sidecar.mounter.store.azure.requests import (
    condition_headers,
    parse_blocks,
    parse_tags,
    to_azure,
)
from sidecar.mounter.store.azure.upload import AzureUpload, block_name, new_series
from sidecar.mounter.store.http.retry import Retryable
from sidecar.mounter.store.interface import (
    Condition,
    Content,
    Limits,
    ObjectInfo,
    Properties,
    Revision,
)
from sidecar.mounter.store.patch_plan import split
from sidecar.mounter.store.ranges import Ranges
from sidecar.mounter.store.request_builder import BAD_ANSWER
from sidecar.mounter.store.signing import quote_path
from sidecar.mounter.store.store_errors import Call
from sidecar.units import KIB, MIB

COPY_POLL_S = 0.5
COPY_IDLE_S = 120.0
"""How long a copy inside the store may make no progress."""
_SMALL_BLOCK_BYTES = 4 * MIB
DELETE_BATCH = 100
"""The SDK has as many connections."""
_COPY_STATUS, _COPY_PROGRESS = "x-ms-copy-status", "x-ms-copy-progress"

T = TypeVar("T")


class AzureStore(AzureClient):
    """A container of a storage account."""

    type_property = "x-ms-blob-content-type"
    limits = Limits(
        max_object_bytes=50_000 * 4000 * MIB,
        min_part_bytes=1,
        max_part_bytes=4000 * MIB,
        max_parts=50_000,
        max_metadata_bytes=8 * KIB,
    )

    def _tags(self, like: ObjectInfo | None, properties: Properties) -> str:
        """The tags in the form of ``x-ms-tags``; asked for only if the object has some."""
        if like is None or TAG_COUNT not in properties or not self.property_keeper.may(TAGS):
            return ""
        try:
            return self._ask(Call("head", like.key), {"comp": "tags"}, parse_tags)
        except NotFound:
            return ""
        except (AccessDenied, Unsupported, StoreProtocolError) as error:
            self.property_keeper.give_up(TAGS, error)
            return ""

    def _ask(self, call: Call, query: Mapping[str, str], parse: Callable[[bytes], T]) -> T:
        """The result of ``parse`` for a document about a blob."""
        reply = self.transfer(
            call,
            lambda: self._azure.request("GET", call.key, query),
            accepted={200},
            timeout=self._quick,
        )
        try:
            return parse(reply.content)
        except BAD_ANSWER:
            pass
        what = query["comp"]
        raise self.malformed(call.operation, f"its {what} of `{call.key}` cannot be read")

    def put(
        self,
        key: str,
        content: Content,
        metadata: Mapping[str, str] | None = None,
        condition: Condition | None = None,
        *,
        like: ObjectInfo | None = None,
    ) -> ObjectInfo:
        """As :meth:`Store.put`."""
        own = {
            "x-ms-blob-type": "BlockBlob",
            **to_azure(metadata or {}),
            **condition_headers(condition),
        }
        properties = self.properties_of_new(key, like)
        reply = self.property_keeper.write(
            repeated(properties, self._tags(like, properties)),
            lambda headers: self.transfer(
                Call("put", key, condition),
                lambda: self._azure.request("PUT", key, {}, {**headers, **own}, len(content)),
                (content,),
            ),
        )
        return self._written(key, len(content), reply.headers, metadata, properties)

    _key_unit = "characters"

    def _key_length(self, full: str) -> int:
        return len(full)

    def start_upload(
        self,
        key: str,
        metadata: Mapping[str, str] | None = None,
        *,
        like: ObjectInfo | None = None,
    ) -> AzureUpload:
        """As :meth:`Store.start_upload`. It begins with the first part."""
        properties = self.properties_of_new(key, like)
        tags = self._tags(like, properties)
        return AzureUpload(self, key, metadata or {}, new_series(), {}, properties, tags)

    def resume_upload(
        self, key: str, state: Mapping[str, Any], parts: Mapping[int, tuple[int, str]]
    ) -> AzureUpload:
        """As :meth:`Store.resume_upload`."""
        sizes = {number: size for number, (size, _) in parts.items()}
        return AzureUpload(
            self, key, state["metadata"], state["series"], sizes, state["properties"], state["tags"]
        )

    def abandon(self, key: str, state: Mapping[str, Any]) -> None:
        """As :meth:`Store.abandon`: blocks that were not committed expire in a week."""

    def patch(
        self,
        base: ObjectInfo,
        key: str,
        revision: Revision,
        metadata: Mapping[str, str],
        begun: Callable[[Mapping[str, Any]], None],  # noqa: ARG002 - staged blocks expire
        *,
        like: ObjectInfo | None = None,
    ) -> ObjectInfo | None:
        """As :meth:`Store.patch`: unchanged blocks stay.

        Small blocks at the end are sent again with the new bytes, if they are no larger than the
        new bytes. Without that, a log that is saved a thousand times would have a thousand blocks,
        and a blob has 50,000 at most.
        """
        if base.key != key:
            return None
        blocks = self._kept_blocks(base, revision)
        if not blocks:
            return None
        properties = self.properties_of_new(key, like)
        series = new_series()
        names: list[str] = []
        fresh: list[Callable[[], None]] = []
        block_bytes = max(revision.part_bytes, revision.size_bytes // (self.limits.max_parts // 2))
        position = 0
        for start, end, name in [*blocks, (revision.size_bytes, revision.size_bytes, "")]:
            for first, last in split(position, start, block_bytes, self.limits):
                names.append(block_name(series, len(fresh) + 1))

                def send(name: str = names[-1], first: int = first, last: int = last) -> None:
                    content = revision.content(first, last - first)
                    self.put_block(key, name, content, properties)

                fresh.append(send)
            position = end
            if name:
                names.append(name)
        if len(names) > self.limits.max_parts:
            return None
        revision.run(fresh)
        return self.commit_blocks(
            key,
            names,
            revision.size_bytes,
            metadata,
            Condition(version=base.version),
            properties=properties,
            tags=self._tags(like, properties),
        )

    def _kept_blocks(self, base: ObjectInfo, revision: Revision) -> list[tuple[int, int, str]]:
        """The blocks of ``base`` that can stay, in order: begin, end and name of each."""
        try:
            query = {"comp": "blocklist", "blocklisttype": "committed"}
            committed = self._ask(Call("list", base.key), query, parse_blocks)
        except NotFound:
            raise self.errors.stale(base.key) from None
        changed = Ranges(revision.changed)
        blocks: list[tuple[int, int, str]] = []
        position = 0
        for name, size_bytes in committed:
            end = position + size_bytes
            if len(name) != len(block_name(new_series(), 1)):
                return []  # another client's blocks; names of two lengths are refused
            if end <= revision.size_bytes and not changed.touches(position, end):
                blocks.append((position, end, name))
            position = end
        if position != base.size_bytes:
            return []  # the blob was not made of blocks, or is another version
        while blocks:
            start, end, _name = blocks[-1]
            new_bytes = revision.size_bytes - end
            if not new_bytes or end - start > min(new_bytes, _SMALL_BLOCK_BYTES):
                break
            blocks.pop()
        return blocks

    def copy(
        self,
        source: str,
        target: str,
        *,
        known: ObjectInfo | None = None,
        metadata: Mapping[str, str] | None = None,
    ) -> ObjectInfo:
        """As :meth:`Store.copy`. In place it makes a new version."""
        found = self.source_of_copy(source, known)
        if source == target and metadata is not None:
            unchanged = condition_headers(Condition(version=found.version))
            own = {**to_azure(metadata), **unchanged}
            made = self.transfer(
                Call("copy", source),
                lambda: self._azure.request("PUT", source, {"comp": "metadata"}, own),
                timeout=self._quick,
            ).headers
            return self._written(source, found.size_bytes, made, metadata, found.properties)
        properties = self.properties_of(found)
        own = {
            "x-ms-source-if-match": f'"{found.version}"',
            **to_azure(metadata or {}),  # without any, the copy has the source's
        }
        made = self.property_keeper.write(
            repeated_by_copy(properties, self._tags(found, properties)),
            lambda headers: self.transfer(
                Call("copy", source),
                # The source may be named with a token, which may be a new one in the next attempt.
                lambda: self._azure.request(
                    "PUT",
                    target,
                    {},
                    {**headers, **own, "x-ms-copy-source": self._source_url(source)},
                ),
                accepted={202},
            ),
        ).headers
        if made.get(_COPY_STATUS) != "success":
            return self._wait_for_copy(target)
        kept = found.metadata if metadata is None else metadata
        return self._written(target, found.size_bytes, made, kept, properties)

    def delete(self, key: str) -> None:
        """As :meth:`Store.delete`."""
        snapshots = {"x-ms-delete-snapshots": "include"}
        try:
            self.transfer(
                Call("delete", key),
                lambda: self._azure.request("DELETE", key, {}, snapshots),
                accepted={202},
            )
        except NotFound:
            return

    def delete_many(self, keys: list[str]) -> None:
        """As :meth:`Store.delete_many`, DELETE_BATCH at once, through adlfs.

        Keys that adlfs fails at are deleted one by one, so that they are retried and explained.
        """
        for start in range(0, len(keys), DELETE_BATCH):
            left = [self.full(key) for key in keys[start : start + DELETE_BATCH]]
            with contextlib.suppress(SidecarError, Retryable):
                left = self.retry.once("delete", functools.partial(self._sdk.delete, left))
            for name in left:
                self.delete(self._relative(name))

    def _source_url(self, key: str) -> str:
        login = self._login.credentials
        url = f"{self._base}/{quote_path(f'{self._bucket}/{self.full(key)}')}"
        # A key or an identity also authorises the source; a SAS token must be in its URL.
        return f"{url}?{login.sas_token}" if login.sas_token and not login.account_key else url

    def _wait_for_copy(self, target: str) -> ObjectInfo:
        progress = None
        idle_since_s = time.monotonic()
        while time.monotonic() - idle_since_s < COPY_IDLE_S:
            time.sleep(COPY_POLL_S)
            made, status, now = self._head_as(
                Call("copy", target),
                lambda fields: (
                    self._azure.parse_head(target, fields),
                    fields.get(_COPY_STATUS),
                    fields.get(_COPY_PROGRESS),
                ),
            )
            if status == "success":
                return made
            if status != "pending":
                raise self.malformed("copy", f"the copy to `{target}` ended without success")
            if now != progress:
                progress, idle_since_s = now, time.monotonic()
        raise self.malformed("copy", f"the copy to `{target}` does not go on")
