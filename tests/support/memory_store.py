"""An object store in memory, for tests and benchmarks of the file system alone."""

from __future__ import annotations

import functools
import itertools
import os
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any, Concatenate, ParamSpec, TypeVar

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
_P = ParamSpec("_P")
_R = TypeVar("_R")

Hook = Callable[..., Any]
"""Called in place of a request, with the request itself and its arguments: it may look, wait or
raise, before and after it makes the request or without making it, and returns the answer."""


def _request(
    operation: str,
) -> Callable[[Callable[Concatenate[Any, _P], _R]], Callable[Concatenate[Any, _P], _R]]:
    """A method of a store, or of an upload, that is counted and that a hook may replace."""

    def decorate(method: Callable[Concatenate[Any, _P], _R]) -> Callable[Concatenate[Any, _P], _R]:
        @functools.wraps(method)
        def request(self: Any, /, *arguments: _P.args, **named: _P.kwargs) -> _R:
            store: MemoryStore = getattr(self, "_store", self)
            store._count(operation)
            hook = store.hooks.get(operation)
            if hook is None:
                return method(self, *arguments, **named)
            answer: _R = hook(functools.partial(method, self), *arguments, **named)
            return answer

        return request

    return decorate


def before(look: Callable[..., object]) -> Hook:
    """A hook that calls ``look`` with the request's arguments, and then makes the request."""

    def hook(request: Hook, *arguments: Any, **named: Any) -> Any:
        look(*arguments, **named)
        return request(*arguments, **named)

    return hook


def after(look: Callable[..., object]) -> Hook:
    """A hook that makes the request, and then calls ``look`` with the request's arguments."""

    def hook(request: Hook, *arguments: Any, **named: Any) -> Any:
        answer = request(*arguments, **named)
        look(*arguments, **named)
        return answer

    return hook


def raising(error: BaseException) -> Hook:
    """A hook that makes no request; also for :func:`after`, where the request is made."""

    def hook(*_: Any, **__: Any) -> Any:
        raise error

    return hook


class MemoryStore:
    """Implements :class:`sidecar.mounter.store.interface.Store`.

    Args:
        limits: enforced, as by real stores.
        hooks: by operation: list, head, get, put, start_upload, part, complete, resume_upload,
            abandon, patch, copy, delete, resolve_version.

    Attributes:
        hooks: may be changed at any time.
        requests: number of calls, by operation.
        uploads: unfinished uploads.
        patched_bytes: bytes sent by patches.
    """

    url = "memory://"

    def __init__(self, limits: Limits = _LOOSE, **hooks: Hook) -> None:
        self.limits = limits
        self.hooks = hooks
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

    def once(self, operation: str, hook: Hook) -> None:
        """Set a hook of the next request only."""

        def next_one(request: Hook, *arguments: Any, **named: Any) -> Any:
            if self.hooks.pop(operation, None) is None:  # another thread's request was the next
                return request(*arguments, **named)
            return hook(request, *arguments, **named)

        self.hooks[operation] = next_one

    def refuse_content(self, error: SidecarError | None) -> None:
        """Refuse writes of content, or no longer."""

        def refuse(_key: str, content: Content = b"any", *_: Any, **__: Any) -> None:
            if error is not None and content:
                raise error

        self.hooks["put"] = self.hooks["start_upload"] = before(refuse)

    @property
    def keys(self) -> list[str]:
        """The keys of all objects, in order."""
        return sorted(self._objects)

    def content(self, key: str) -> bytes:
        """An object's bytes. Raises KeyError."""
        return self._objects[key][0]

    def contents(self) -> dict[str, bytes]:
        """All objects' bytes, by key."""
        return {key: self.content(key) for key in self.keys}

    def origin(self) -> str:
        return "memory"

    def probe(self) -> None:
        """Always reachable."""

    @_request("list")
    def list_page(
        self, prefix: str, token: str | None = None, *, delimiter: str = "/", limit: int = 1000
    ) -> Page:
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

    @_request("head")
    def head(self, key: str) -> ObjectInfo:
        try:
            return self._objects[key][1]
        except KeyError:
            raise NotFound(f"`{key}`") from None

    @_request("get")
    def get_range(
        self,
        key: str,
        version: str | None,
        offset: int,
        buffer: memoryview,
        arrived: Arrived | None = None,
    ) -> int:
        try:
            data, info = self._objects[key]
        except KeyError:
            raise NotFound(f"`{key}`") from None
        if version is not None and not _is_version(info, version):
            raise Stale(f"`{key}`")
        part = memoryview(data)[offset : offset + len(buffer)]
        buffer[: len(part)] = part
        return len(part)

    @_request("put")
    def put(
        self,
        key: str,
        content: Content,
        metadata: Mapping[str, str] | None = None,
        condition: Condition | None = None,
        *,
        like: ObjectInfo | None = None,
    ) -> ObjectInfo:
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
        """Do nothing: all conditions are checked."""

    @_request("resolve_version")
    def resolve_version(self, made: ObjectInfo) -> ObjectInfo:
        return made if made.has_final_version else self.head(made.key)

    @_request("start_upload")
    def start_upload(
        self,
        key: str,
        metadata: Mapping[str, str] | None = None,
        *,
        like: ObjectInfo | None = None,
    ) -> _Upload:
        return _Upload(self, key, metadata, like)

    @_request("resume_upload")
    def resume_upload(
        self, key: str, state: Mapping[str, Any], parts: Mapping[int, tuple[int, str]]
    ) -> _Upload:
        return self.uploads[int(state["upload"])]

    @_request("abandon")
    def abandon(self, key: str, state: Mapping[str, Any]) -> None:
        if "upload" in state:  # Here, an upload whose answer was lost does not exist.
            self.uploads.pop(int(state["upload"]), None)

    @_request("patch")
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

    @_request("copy")
    def copy(
        self,
        source: str,
        target: str,
        *,
        known: ObjectInfo | None = None,
        metadata: Mapping[str, str] | None = None,
    ) -> ObjectInfo:
        data, info = self._objects.get(source, (b"", None))
        if info is None:
            raise NotFound(f"`{source}`")
        if known is not None and not _is_version(info, known.version):
            raise Stale(f"`{source}`")
        return self.put(target, data, info.metadata if metadata is None else metadata, like=info)

    @_request("delete")
    def delete(self, key: str) -> None:
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


def bare_store(**hooks: Hook) -> MemoryStore:
    """Listings without metadata, as on S3."""

    def bare(list_page: Hook, *arguments: Any, **named: Any) -> Page:
        page: Page = list_page(*arguments, **named)
        objects = [info._replace(metadata=None, properties=None) for info in page.objects]
        return replace(page, objects=objects)

    return MemoryStore(_LOOSE, list=bare, **hooks)


def renaming_store() -> MemoryStore:
    """A completed upload's version changes afterwards, as on rclone's server."""

    def rename(complete: Hook, *arguments: Any, **named: Any) -> ObjectInfo:
        made: ObjectInfo = complete(*arguments, **named)
        provisional = ProvisionalVersion(made.version, made.size_bytes, "0")
        return made._replace(version=str(provisional))

    return MemoryStore(complete=rename)


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
        return {"upload": str(self._number), "metadata": dict(self._metadata or {})}

    @_request("part")
    def put_part(self, number: int, content: Content) -> str:
        self.parts[number] = _bytes(content)
        return ""

    @_request("complete")
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


def _is_version(info: ObjectInfo, version: str) -> bool:
    provisional = ProvisionalVersion.parse(version)
    return info.version == (provisional.etag if provisional else version)


def _bytes(content: Content) -> bytes:
    if isinstance(content, FileSlice):
        return os.pread(content.fd, content.size_bytes, content.offset).ljust(
            content.size_bytes, b"\0"
        )
    return bytes(content)
