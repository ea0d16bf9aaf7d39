"""An object store in memory, for tests and benchmarks of the file system alone."""

from __future__ import annotations

import itertools
import os
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

from sidecar.errors import (
    AlreadyExists,
    NameTooLong,
    NotFound,
    SidecarError,
    Stale,
    StoreProtocolError,
)
from sidecar.mounter.store.http_store import MAX_KEY_LENGTH
from sidecar.mounter.store.interface import (
    Arrived,
    Condition,
    Content,
    FileSlice,
    Limits,
    ObjectInfo,
    Page,
    Properties,
    ProvisionalVersion,
    Revision,
)
from sidecar.mounter.store.patch_plan import plan

_LOOSE = Limits(1 << 40, 1, 1 << 30, 10_000)


class MemoryStore:
    """Implements :class:`sidecar.mounter.store.interface.Store`.

    Args:
        limits: enforced, as by real stores.

    Attributes:
        requests: number of calls, by operation.
        uploads: unfinished uploads.
        patched_bytes: bytes sent by patches.
    """

    url = "memory://"

    def __init__(self, limits: Limits = _LOOSE) -> None:
        self.limits = limits
        self.conditions: set[str] = set()
        self._objects: dict[str, tuple[bytes, ObjectInfo]] = {}
        self._versions = itertools.count(1)
        self._lock = threading.RLock()
        self.requests: dict[str, int] = {}
        self.uploads: dict[int, _Upload] = {}
        self.patched_bytes = 0

    def _count(self, operation: str) -> None:
        with self._lock:
            self.requests[operation] = self.requests.get(operation, 0) + 1

    def origin(self) -> str:
        return "memory"

    def probe(self) -> None:
        """Always reachable."""

    def list_page(
        self, prefix: str, token: str | None = None, *, delimiter: str = "/", limit: int = 1000
    ) -> Page:
        self._count("list")
        objects: list[ObjectInfo] = []
        prefixes: list[str] = []
        with self._lock:
            infos = {key: info for key, (_, info) in self._objects.items()}
        last = ""
        for key in sorted(infos):
            if not key.startswith(prefix):
                continue
            name = key
            is_prefix = False
            if delimiter:
                head, found, _ = key[len(prefix) :].partition(delimiter)
                if found:
                    name, is_prefix = prefix + head + delimiter, True
            if name == last or (token is not None and name <= token):
                continue
            if len(objects) + len(prefixes) == limit:
                return Page(objects, prefixes, last)
            last = name
            if is_prefix:
                prefixes.append(name)
            else:
                objects.append(infos[key])
        return Page(objects, prefixes, None)

    def head(self, key: str) -> ObjectInfo:
        self._count("head")
        try:
            return self._objects[key][1]
        except KeyError:
            raise NotFound(f"`{key}`") from None

    def get_range(
        self,
        key: str,
        version: str | None,
        offset: int,
        buffer: memoryview,
        arrived: Arrived | None = None,
    ) -> int:
        self._count("get")
        try:
            data, info = self._objects[key]
        except KeyError:
            raise NotFound(f"`{key}`") from None
        if version is not None and not _is_version(info, version):
            raise Stale(f"`{key}`")
        part = memoryview(data)[offset : offset + len(buffer)]
        buffer[: len(part)] = part
        return len(part)

    def put(
        self,
        key: str,
        content: Content,
        metadata: Mapping[str, str] | None = None,
        condition: Condition | None = None,
        *,
        like: ObjectInfo | None = None,
    ) -> ObjectInfo:
        self._count("put")
        data = _bytes(content)
        with self._lock:
            self._check(key, condition)
            info = ObjectInfo(
                key,
                len(data),
                time.time(),
                str(next(self._versions)),
                dict(metadata or {}),
                self._properties_of(like),
            )
            self._objects[key] = (bytes(data), info)
            return info

    def describe(self, key: str, properties: Properties) -> None:
        """Set an object's properties in place, as another client would."""
        data, info = self._objects[key]
        changed = info._replace(properties=dict(properties), mtime_s=info.mtime_s + 1)
        self._objects[key] = data, changed

    def _properties_of(self, like: ObjectInfo | None) -> Properties:
        if like is None:
            return {}
        return (
            like.properties if like.properties is not None else self.head(like.key).properties or {}
        )

    def try_conditions(self, key: str) -> None:
        """They are checked."""

    def resolve_version(self, made: ObjectInfo) -> ObjectInfo:
        self._count("resolve_version")
        return made

    def start_upload(
        self,
        key: str,
        metadata: Mapping[str, str] | None = None,
        *,
        like: ObjectInfo | None = None,
    ) -> _Upload:
        self._count("start_upload")
        return _Upload(self, key, metadata, like)

    def resume_upload(
        self, key: str, state: Mapping[str, Any], parts: Mapping[int, tuple[int, str]]
    ) -> _Upload:
        self._count("resume_upload")
        return self.uploads[state["number"]]

    def abandon(self, key: str, state: Mapping[str, Any]) -> None:
        self._count("abandon")
        if "number" in state:  # Here, an upload whose answer was lost does not exist.
            self.uploads.pop(state["number"], None)

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
        """As a store that can copy parts; counts the bytes that are sent."""
        self._count("patch")
        data, info = self._objects.get(base.key, (b"", None))
        if info is None or not _is_version(info, base.version):
            raise Stale(f"`{base.key}`")
        pieces = plan(
            base.size_bytes,
            revision.size_bytes,
            revision.changed,
            self.limits,
            sent_part_bytes=revision.part_bytes,
            copied_part_bytes=self.limits.max_part_bytes,
        )
        if pieces is None:
            return None
        upload = _Upload(self, key, metadata, like)
        for number, (start, end, copied) in enumerate(pieces, 1):
            if copied:
                upload.parts[number] = data[start:end]
            else:
                upload.parts[number] = _bytes(revision.content(start, end - start))
                self.patched_bytes += end - start
        return upload.complete()

    def copy(
        self,
        source: str,
        target: str,
        *,
        known: ObjectInfo | None = None,
        metadata: Mapping[str, str] | None = None,
    ) -> ObjectInfo:
        self._count("copy")
        data, info = self._objects.get(source, (b"", None))
        if info is None:
            raise NotFound(f"`{source}`")
        if known is not None and not _is_version(info, known.version):
            raise Stale(f"`{source}`")
        return self.put(target, data, info.metadata if metadata is None else metadata, like=info)

    def delete(self, key: str) -> None:
        self._count("delete")
        with self._lock:
            self._objects.pop(key, None)

    def delete_many(self, keys: list[str]) -> None:
        for key in keys:
            self.delete(key)

    def check_key(self, key: str) -> None:
        if len(key.encode()) > MAX_KEY_LENGTH:
            raise NameTooLong(f"`{key}`")

    def close(self) -> None:
        """Nothing to close."""

    def _check(self, key: str, condition: Condition | None) -> None:
        if condition is None:
            return
        info = self._objects[key][1] if key in self._objects else None
        if condition.absent and info is not None:
            raise AlreadyExists(f"`{key}`")
        if condition.version is not None and not (info and _is_version(info, condition.version)):
            raise Stale(f"`{key}`")


class BareStore(MemoryStore):
    """Listings without metadata, as on S3."""

    def list_page(
        self, prefix: str, token: str | None = None, *, delimiter: str = "/", limit: int = 1000
    ) -> Page:
        page = super().list_page(prefix, token, delimiter=delimiter, limit=limit)
        bare = [info._replace(metadata=None, properties=None) for info in page.objects]
        return replace(page, objects=bare)


class RenamingStore(MemoryStore):
    """A completed upload's version changes afterwards, as on rclone's server."""

    def resolve_version(self, made: ObjectInfo) -> ObjectInfo:
        super().resolve_version(made)
        return made if made.has_final_version else self.head(made.key)

    def start_upload(
        self,
        key: str,
        metadata: Mapping[str, str] | None = None,
        *,
        like: ObjectInfo | None = None,
    ) -> _Upload:
        return _RenamedUpload(self, key, metadata, like)


class FailingStore(MemoryStore):
    """Refuses writes of content while ``failure`` is set."""

    def __init__(self) -> None:
        super().__init__()
        self.failure: SidecarError | None = None

    def put(
        self,
        key: str,
        content: Content,
        metadata: Mapping[str, str] | None = None,
        condition: Condition | None = None,
        *,
        like: ObjectInfo | None = None,
    ) -> ObjectInfo:
        if self.failure is not None and content:
            raise self.failure
        return super().put(key, content, metadata, condition, like=like)

    def start_upload(
        self,
        key: str,
        metadata: Mapping[str, str] | None = None,
        *,
        like: ObjectInfo | None = None,
    ) -> _Upload:
        if self.failure is not None:
            raise self.failure
        return super().start_upload(key, metadata, like=like)


class HangingStore(MemoryStore):
    """Slow; never answers a request for a key that contains ``hang``.

    Args:
        delay_s: before every answer.
        on_hang: called with the name of an operation that hangs.
    """

    def __init__(self, delay_s: float, on_hang: Callable[[str], None]) -> None:
        super().__init__()
        self._delay_s = delay_s
        self._on_hang = on_hang

    def _pause(self, operation: str, key: str) -> None:
        time.sleep(self._delay_s)
        if "hang" in key:
            self._on_hang(operation)
            threading.Event().wait()

    def list_page(
        self, prefix: str, token: str | None = None, *, delimiter: str = "/", limit: int = 1000
    ) -> Page:
        self._pause("list", prefix)
        return super().list_page(prefix, token, delimiter=delimiter, limit=limit)

    def head(self, key: str) -> ObjectInfo:
        self._pause("head", key)
        return super().head(key)

    def get_range(
        self,
        key: str,
        version: str | None,
        offset: int,
        buffer: memoryview,
        arrived: Arrived | None = None,
    ) -> int:
        self._pause("get", key)
        return super().get_range(key, version, offset, buffer, arrived)

    def put(
        self,
        key: str,
        content: Content,
        metadata: Mapping[str, str] | None = None,
        condition: Condition | None = None,
        *,
        like: ObjectInfo | None = None,
    ) -> ObjectInfo:
        self._pause("put", key)
        return super().put(key, content, metadata, condition, like=like)

    def copy(
        self,
        source: str,
        target: str,
        *,
        known: ObjectInfo | None = None,
        metadata: Mapping[str, str] | None = None,
    ) -> ObjectInfo:
        self._pause("copy", target)
        return super().copy(source, target, known=known, metadata=metadata)

    def delete(self, key: str) -> None:
        self._pause("delete", key)
        super().delete(key)


class _Upload:
    ordered_parts = False

    def __init__(
        self,
        store: MemoryStore,
        key: str,
        metadata: Mapping[str, str] | None,
        like: ObjectInfo | None,
    ) -> None:
        self._store, self._key, self._metadata, self._like = store, key, metadata, like
        self.parts: dict[int, bytes] = {}
        self._number = next(store._versions)
        store.uploads[self._number] = self

    @property
    def state(self) -> Mapping[str, Any]:
        return {"number": self._number, "metadata": dict(self._metadata or {})}

    def put_part(self, number: int, content: Content) -> str:
        self._store._count("part")
        self.parts[number] = _bytes(content)
        return ""

    def complete(
        self,
        condition: Condition | None = None,
        *,
        parts: int | None = None,
        metadata: Mapping[str, str] | None = None,
    ) -> ObjectInfo:
        sent = [self.parts[number] for number in sorted(self.parts)[:parts]]
        limits = self._store.limits
        if any(len(part) < limits.min_part_bytes for part in sent[:-1]):
            raise StoreProtocolError(f"`{self._key}`: EntityTooSmall")
        if any(len(part) > limits.max_part_bytes for part in sent):
            raise StoreProtocolError(f"`{self._key}`: EntityTooLarge")
        data = b"".join(sent)
        kept = metadata or self._metadata
        made = self._store.put(self._key, data, kept, condition, like=self._like)
        self._store.uploads.pop(self._number)
        return made

    def abort(self) -> None:
        self._store.uploads.pop(self._number, None)


class _RenamedUpload(_Upload):
    def complete(
        self,
        condition: Condition | None = None,
        *,
        parts: int | None = None,
        metadata: Mapping[str, str] | None = None,
    ) -> ObjectInfo:
        made = super().complete(condition, parts=parts, metadata=metadata)
        provisional = ProvisionalVersion(made.version, made.size_bytes, "0")
        return made._replace(version=str(provisional))


def _is_version(info: ObjectInfo, version: str) -> bool:
    provisional = ProvisionalVersion.parse(version)
    return info.version == (provisional.etag if provisional else version)


def _bytes(content: Content) -> bytes:
    if isinstance(content, FileSlice):
        return os.pread(content.fd, content.size_bytes, content.offset).ljust(
            content.size_bytes, b"\0"
        )
    return bytes(content)
