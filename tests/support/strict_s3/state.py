"""Buckets, objects and uploads; each bucket is written down in one file of JSON lines.

A line is written before a request is answered, so what was answered survives a kill.
"""

from __future__ import annotations

import base64
import contextlib
import dataclasses
import json
import os
import threading
import time
import uuid
from bisect import bisect_left, insort
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests.support.strict_s3.attributes import DEFAULT_ENCRYPTION, Attributes
from tests.support.strict_s3.data_files import DataFiles, Segment
from tests.support.strict_s3.errors import S3Error

_REMEMBERED_CHANGES = 20_000


@dataclass(frozen=True)
class StoredObject:
    """One object.

    Attributes:
        etag: without quotes.
        modified_s: seconds since the epoch, whole: S3 keeps no finer time.
    """

    key: str
    segments: tuple[Segment, ...]
    size: int
    etag: str
    modified_s: int
    attributes: Attributes


@dataclass(frozen=True)
class Part:
    """A part of an upload."""

    segments: tuple[Segment, ...]
    size: int
    etag: str
    modified_s: int


@dataclass
class Upload:
    """A multipart upload that is in progress."""

    upload_id: str
    key: str
    begun_s: int
    attributes: Attributes
    parts: dict[int, Part] = field(default_factory=dict)


@dataclass(frozen=True)
class Settings:
    """What a test may say about a bucket.

    Attributes:
        region: that requests must be signed for; empty for the server's own.
        redirect: 301 or 307: the bucket is at ``redirect_endpoint``.
        public: whether requests without a login are served.
        denied: actions that a policy denies, each with the prefix of keys it is about.
        requester_pays: refuses requests that do not say so.
        quota_bytes: of all objects.
        list_lag_s: once this is set, listings show changes this much later, as servers do that list
            from an index (MinIO's gateway under load); Amazon's listings are not late.
        acls: whether ACLs may be set (Object Ownership is not "bucket owner enforced", which it is
            in new buckets).
        encryption: of objects that are made without naming one.
        like_ceph: it differs from S3 as Ceph's RADOS gateway does. ``If-Match`` of a write is
            compared with the ETag without its quotes, and fails if there is no object; conditions
            of a copy's source are ignored, and for UploadPartCopy its name is decoded twice;
            continuation tokens are keys; completing an upload that is gone is InternalError. (The
            gateway also completes uploads whatever the condition says.) Measured with 16.2.
    """

    region: str = ""
    redirect: int = 0
    redirect_endpoint: str = ""
    public: bool = False
    denied: dict[str, str] = field(default_factory=dict)
    requester_pays: bool = False
    quota_bytes: int | None = None
    list_lag_s: float = 0.0
    acls: bool = False
    encryption: dict[str, str] = field(default_factory=lambda: dict(DEFAULT_ENCRYPTION))
    like_ceph: bool = False


class Bucket:
    """One bucket. Its lock is held while it is looked at or changed, never for a body.

    Attributes:
        objects: by key.
        keys: sorted by code points, which is the order of their UTF-8.
        used: bytes of all objects.
    """

    def __init__(self, name: str, log: Path, data: DataFiles) -> None:
        self.name = name
        self.lock = threading.RLock()
        self.settings = Settings()
        self.objects: dict[str, StoredObject] = {}
        self.keys: list[str] = []
        self.uploads: dict[str, Upload] = {}
        self.used = 0
        self._log_path = log
        self._data = data
        self._log = -1
        # When (monotonic) which key changed, and what it was before.
        self._changes: deque[tuple[float, str, StoredObject | None]] = deque(
            maxlen=_REMEMBERED_CHANGES
        )
        if log.exists():
            for line in log.read_bytes().splitlines(keepends=True):
                if line.endswith(b"\n"):
                    self._replay(json.loads(line))
            self.keys = sorted(self.objects)
        self._rewrite()

    def object(self, key: str) -> StoredObject:
        """Raises S3Error: NoSuchKey."""
        found = self.objects.get(key)
        if found is None:
            raise S3Error("NoSuchKey", fields={"Key": key})
        return found

    def listed(self) -> tuple[list[str], dict[str, StoredObject]]:
        """Keys in order, and objects, as listings show them. The caller holds the lock."""
        lag_s = self.settings.list_lag_s
        if not lag_s:
            return self.keys, self.objects
        shown = dict(self.objects)
        since_s = time.monotonic() - lag_s
        for changed_s, key, before in reversed(self._changes):
            if changed_s < since_s:
                break
            if before is None:
                shown.pop(key, None)
            else:
                shown[key] = before
        return sorted(shown), shown

    def upload(self, key: str, upload_id: str) -> Upload:
        """Raises S3Error: NoSuchUpload."""
        found = self.uploads.get(upload_id)
        if found is None or found.key != key:
            raise S3Error("NoSuchUpload", fields={"UploadId": upload_id})
        return found

    @contextlib.contextmanager
    def pinned(self, key: str) -> Iterator[StoredObject]:
        """An object whose bytes stay until the end of the block. Raises S3Error: NoSuchKey."""
        found, release = self.pin(key)
        try:
            yield found
        finally:
            release()

    def pin(self, key: str) -> tuple[StoredObject, Callable[[], None]]:
        """As :meth:`pinned`, until the function is called."""
        with self.lock:
            found = self.object(key)
            self._data.keep(found.segments)
        return found, lambda: self._data.drop(found.segments)

    # Every change is a record, which is written down and then applied.

    def put(self, made: StoredObject) -> None:
        """Make or replace an object; it is one more user of its files."""
        self._change({"put": dataclasses.asdict(made)})

    def remove(self, key: str) -> None:
        """Remove an object, if it is there."""
        if key in self.objects:
            self._change({"remove": key})

    def begin(self, key: str, attributes: Attributes) -> Upload:
        """Begin an upload."""
        token = base64.urlsafe_b64encode(uuid.uuid4().bytes + os.urandom(16))
        upload_id = token.decode().rstrip("=")
        upload = Upload(upload_id, key, int(time.time()), attributes)
        self._change({"begin": dataclasses.asdict(upload)})
        return self.uploads[upload_id]

    def put_part(self, upload: Upload, number: int, part: Part) -> None:
        """Add or replace a part; it is one more user of its files."""
        fields = {"part": dataclasses.asdict(part), "number": number, "upload": upload.upload_id}
        self._change(fields)

    def end(self, upload: Upload) -> None:
        """Forget an upload, and its parts."""
        self._change({"end": upload.upload_id})

    def change_settings(self, fields: Mapping[str, Any]) -> None:
        """Change some settings. Raises TypeError for one that does not exist."""
        changed = dataclasses.replace(self.settings, **fields)
        if "list_lag_s" in fields:
            self._changes.clear()
        self._change({"settings": dataclasses.asdict(changed)})

    def delete(self) -> None:
        """Remove the bucket's file; the bucket is empty."""
        with self.lock:
            for upload in list(self.uploads.values()):
                self.end(upload)
            os.close(self._log)
            self._log_path.unlink()

    def _change(self, record: Mapping[str, Any]) -> None:
        with self.lock:
            os.write(self._log, _line(record))
            for key in self._replay(record):
                at = bisect_left(self.keys, key)
                listed = at < len(self.keys) and self.keys[at] == key
                if key in self.objects and not listed:
                    insort(self.keys, key)
                elif key not in self.objects and listed:
                    del self.keys[at]

    def _replay(self, record: Mapping[str, Any]) -> list[str]:
        """Apply a record; the keys that it concerns."""
        match record:
            case {"put": fields}:
                self._take_out(fields["key"])
                made = StoredObject(
                    fields["key"],
                    _segments(fields),
                    fields["size"],
                    fields["etag"],
                    fields["modified_s"],
                    Attributes.from_json(fields["attributes"]),
                )
                self._data.keep(made.segments)
                self.objects[made.key] = made
                self.used += made.size
                return [made.key]
            case {"remove": key}:
                self._take_out(key)
                return [key]
            case {"begin": fields}:
                attributes = Attributes.from_json(fields["attributes"])
                upload = Upload(fields["upload_id"], fields["key"], fields["begun_s"], attributes)
                self.uploads[upload.upload_id] = upload
                for number, part in fields["parts"].items():
                    self._add_part(upload, int(number), part)
            case {"part": fields, "number": number, "upload": upload_id}:
                self._add_part(self.uploads[upload_id], number, fields)
            case {"end": upload_id}:
                for part in self.uploads.pop(upload_id).parts.values():
                    self._data.drop(part.segments)
            case {"settings": fields}:
                self.settings = Settings(**fields)
        return []

    def _add_part(self, upload: Upload, number: int, fields: Mapping[str, Any]) -> None:
        before = upload.parts.get(number)
        part = Part(_segments(fields), fields["size"], fields["etag"], fields["modified_s"])
        self._data.keep(part.segments)
        upload.parts[number] = part
        if before is not None:
            self._data.drop(before.segments)

    def _take_out(self, key: str) -> None:
        before = self.objects.pop(key, None)
        self._changes.append((time.monotonic(), key, before))
        if before is not None:
            self.used -= before.size
            self._data.drop(before.segments)

    def _rewrite(self) -> None:
        """The state alone, without its history."""
        fresh = self._log_path.with_suffix(".new")
        records: list[Mapping[str, Any]] = [{"settings": dataclasses.asdict(self.settings)}]
        records += [{"put": dataclasses.asdict(made)} for made in self.objects.values()]
        records += [{"begin": dataclasses.asdict(upload)} for upload in self.uploads.values()]
        fresh.write_bytes(b"".join(map(_line, records)))
        fresh.replace(self._log_path)
        self._log = os.open(self._log_path, os.O_WRONLY | os.O_APPEND | os.O_CLOEXEC)


class State:
    """All buckets of a directory."""

    def __init__(self, directory: Path) -> None:
        self.data = DataFiles(directory / "data")
        self._logs = directory / "buckets"
        self._logs.mkdir(exist_ok=True)
        self._lock = threading.Lock()
        self.buckets = {
            log.stem: Bucket(log.stem, log, self.data) for log in self._logs.glob("*.jsonl")
        }
        self.data.remove_unused()

    def bucket(self, name: str) -> Bucket:
        """Raises S3Error: NoSuchBucket."""
        found = self.buckets.get(name)
        if found is None:
            raise S3Error("NoSuchBucket", fields={"BucketName": name})
        return found

    def create(self, name: str) -> None:
        """Raises S3Error: BucketAlreadyOwnedByYou."""
        with self._lock:
            if name in self.buckets:
                raise S3Error("BucketAlreadyOwnedByYou", fields={"BucketName": name})
            self.buckets[name] = Bucket(name, self._logs / f"{name}.jsonl", self.data)

    def delete(self, name: str) -> None:
        """Raises S3Error: NoSuchBucket, BucketNotEmpty."""
        with self._lock:
            bucket = self.bucket(name)
            with bucket.lock:
                if bucket.objects:
                    raise S3Error("BucketNotEmpty", fields={"BucketName": name})
                bucket.delete()
            del self.buckets[name]


def _segments(fields: Mapping[str, Any]) -> tuple[Segment, ...]:
    return tuple(Segment(*segment) for segment in fields["segments"])


def _line(record: Mapping[str, Any]) -> bytes:
    return json.dumps(record, separators=(",", ":")).encode() + b"\n"
