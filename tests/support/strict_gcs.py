"""fake-gcs-server behind a proxy that refuses what Google's documentation says is refused.

The emulator ignores the conditions of most requests, completes a resumable upload when it is asked
how far the upload is, and takes chunks and names of any kind. It keeps attributes that a rewrite or
a composition replaces, and the generation of an object that is composed onto itself. One difference
is left: the metageneration stays 1. Sources, at
https://cloud.google.com/storage/docs: "Request preconditions", "Resumable uploads", "Performing
resumable uploads", "Objects" (naming), "Object metadata", "Quotas & limits", "Objects: compose",
"Objects: rewrite", "HTTP status and error codes for JSON", and for the XML API, which the emulator
lacks, "XML API multipart uploads".
"""

from __future__ import annotations

import contextlib
import hashlib
import http.client
import json
import re
import threading
import uuid
from collections import defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from html import escape
from pathlib import Path
from typing import Any, Self
from urllib.parse import parse_qsl, quote, unquote, urlencode, urlsplit
from xml.etree import ElementTree as ET

from sidecar.units import MIB
from tests.support.proxy import Ends, Head, Proxy, http_answer
from tests.support.servers import GcsServer, free_port
from tests.support.threaded_server import HOST

CHUNK_BYTES = 256 * 1024
_OBJECT = re.compile(
    r"/?(?:download/)?storage/v1/b/(?P<bucket>[^/]+)/o/(?P<name>[^/]+)"
    r"(?:/(?P<verb>compose|rewriteTo/b/(?P<bucket2>[^/]+)/o/(?P<name2>[^/]+)))?"
)
_UPLOAD = re.compile(r"/?(?:resumable/)?upload/storage/v1/b/(?P<bucket>[^/]+)/o")
_XML = re.compile(r"/(?P<bucket>[^/]+)/(?P<name>.+)")
_CONTENT_RANGE = re.compile(r"bytes (?:(\d+)-(\d+)|\*)/(\d+|\*)")
_ATTRIBUTES = (
    "contentType",
    "contentEncoding",
    "contentDisposition",
    "contentLanguage",
    "cacheControl",
    "customTime",
    "metadata",
)
_XML_FIELDS = {
    "contentType": "content-type",
    "contentEncoding": "content-encoding",
    "contentDisposition": "content-disposition",
    "contentLanguage": "content-language",
    "cacheControl": "cache-control",
    "customTime": "x-goog-custom-time",
    "kmsKeyName": "x-goog-encryption-kms-key-name",
    "storageClass": "x-goog-storage-class",
}
_JSON = {"Content_Type": "application/json"}
_WRITES = frozenset({"POST", "PUT", "PATCH", "DELETE"})


@dataclass(frozen=True)
class GcsLimits:
    """Numbers of the documentation.

    Attributes:
        rewrite_calls: how many calls a rewrite takes: one within a location and storage class,
            otherwise any number.
        multipart: whether the XML API's uploads work; a login may lack the permission.
        names_generation: whether the end of such an upload names the generation in a header.
    """

    max_name_bytes: int = 1024
    max_metadata_bytes: int = 8 * 1024
    max_sources: int = 32
    chunk_bytes: int = CHUNK_BYTES
    rewrite_calls: int = 1
    min_part_bytes: int = 5 * MIB
    max_parts: int = 10_000
    multipart: bool = True
    names_generation: bool = False


class Refused(Exception):
    """An answer of the proxy itself, as the JSON API says it."""

    def __init__(self, status: int, reason: str, message: str) -> None:
        super().__init__(message)
        error = {
            "code": status,
            "message": message,
            "errors": [{"domain": "global", "reason": reason, "message": message}],
        }
        body = b"" if status == 304 else json.dumps({"error": error}).encode()
        phrase = http.client.responses.get(status, "")
        self.answer = http_answer(status, phrase, body, **_JSON)


class _XmlRefused(Refused):
    """An answer of the proxy itself, as the XML API says it."""

    def __init__(self, status: int, code: str, message: str) -> None:
        super().__init__(status, code, message)
        body = f"<Error><Code>{code}</Code><Message>{message}</Message></Error>".encode()
        phrase = http.client.responses.get(status, "")
        self.answer = http_answer(status, phrase, body, Content_Type="application/xml")


@dataclass
class Session:
    """A resumable upload.

    Attributes:
        query: with the conditions of its begin, which its end must meet, too.
        persisted: the number of bytes that the store has.
        answer: to its last chunk, repeated if that comes again.
    """

    bucket: str
    name: str
    query: Mapping[str, str]
    persisted: int = 0
    answer: bytes = b""
    lock: threading.Lock = field(default_factory=threading.Lock)


@dataclass
class Multipart:
    """A multipart upload of the XML API.

    Attributes:
        resource: of the object that it will be.
        parts: number to (ETag, content).
    """

    bucket: str
    name: str
    resource: Mapping[str, Any]
    parts: dict[int, tuple[str, bytes]] = field(default_factory=dict)


@dataclass(frozen=True)
class _Call:
    """A request, taken apart."""

    head: Head
    body: bytes
    path: str
    query: dict[str, str]

    @classmethod
    def of(cls, head: Head, body: bytes) -> _Call:
        url = urlsplit(head.target)
        return cls(head, body, url.path, dict(parse_qsl(url.query, keep_blank_values=True)))

    @property
    def resource(self) -> dict[str, Any]:
        """The request's JSON; in a multipart upload, its first part."""
        text = self.body
        kind = self.head.fields.get("content-type", "")
        if kind.startswith("multipart/related"):
            boundary = kind.partition("boundary=")[2].strip("\"'").encode()
            first = text.partition(b"--" + boundary)[2]
            text = first.partition(b"\r\n\r\n")[2].partition(b"\r\n--" + boundary)[0]
        if not text:
            return {}
        try:
            found = json.loads(text)
        except ValueError:
            raise Refused(400, "parseError", "Parse Error") from None
        return found if isinstance(found, dict) else {}

    def raw(self, query: Mapping[str, str] | None = None, **fields: str) -> bytes:
        """The forwarded request, with another query, or fields."""
        target = self.head.target if query is None else f"{self.path}?{urlencode(query)}"
        line = f"{self.head.method} {target} HTTP/1.1\r\n"
        changed = {**self.head.fields, **fields}
        lines = "".join(f"{name}: {value}\r\n" for name, value in changed.items())
        return f"{line}{lines}\r\n".encode("latin-1") + self.body


class StrictGcs(Proxy):
    """The proxy.

    Attributes:
        limits: the present ones; a test may replace them.
        multiparts: the uploads that are not completed, by number.
    """

    def __init__(self, upstream_port: int, *, port: int = 0) -> None:
        super().__init__(upstream_port, port=port)
        self.limits = GcsLimits()
        self.multiparts: dict[str, Multipart] = {}
        self._etags: dict[tuple[str, str, str], str] = {}
        self._sessions: dict[str, Session] = {}
        self._rewrites: dict[str, tuple[str, int]] = {}
        self._objects: defaultdict[tuple[str, str], threading.RLock] = defaultdict(threading.RLock)

    def exchange(self, request: Head, body: bytes, ends: Ends) -> bool:
        """Forward what is legal."""
        if "chunked" in request.fields.get("transfer-encoding", ""):
            return super().exchange(request, body, ends)  # no client of the tests does it
        call = _Call.of(request, body)
        try:
            if upload := _UPLOAD.fullmatch(call.path):
                return self._upload(call, unquote(upload["bucket"]), ends)
            if found := _OBJECT.fullmatch(call.path):
                parts = {name: unquote(text or "") for name, text in found.groupdict().items()}
                return self._object(call, parts, ends)
            if self.limits.multipart and (found := _XML.fullmatch(call.path)):
                answer = self._xml(call, unquote(found["bucket"]), unquote(found["name"]))
                if answer:
                    ends.client.sendall(answer)
                    return True
        except Refused as refused:
            ends.client.sendall(refused.answer)
            return True
        return super().exchange(request, body, ends)

    # --- objects --------------------------------------------------------------------------

    def _object(self, call: _Call, parts: Mapping[str, str], ends: Ends) -> bool:
        method, bucket, name = call.head.method, parts["bucket"], parts["name"]
        if method not in _WRITES:
            return self.forward(method, self._read(call, bucket, name), ends)
        target = (bucket, name)
        if parts["verb"].startswith("rewriteTo"):
            target = (parts["bucket2"], parts["name2"])
        with self._writing(*target):
            if not parts["verb"]:
                self._check_change(call, bucket, name)
                return self.forward(method, call.raw(), ends)
            if parts["verb"] == "compose":
                answer = self._compose(call, bucket, name)
            else:
                answer = self._rewrite(call, (bucket, name), target)
        ends.client.sendall(http_answer(200, "OK", json.dumps(answer).encode(), **_JSON))
        return True

    def _read(self, call: _Call, bucket: str, name: str) -> bytes:
        """Read the generation that met the condition."""
        if not _conditions(call.query):
            return call.raw()
        found = self._current(bucket, name)
        if found is None:
            return call.raw()
        _check(call.query, found, reading=True)
        return call.raw({**call.query, "generation": found["generation"]})

    def _check_change(self, call: _Call, bucket: str, name: str) -> None:
        """Check the conditions of PATCH, PUT and DELETE."""
        found = self._current(bucket, name)
        if found is None:
            return  # 404, as the emulator says
        if call.query.get("generation", found["generation"]) != found["generation"]:
            raise Refused(404, "notFound", f"No such object: {bucket}/{name}")
        _check(call.query, found)
        if call.head.method != "DELETE":
            asked = call.resource.get("metadata") or {}
            kept = found.get("metadata") or {} if call.head.method == "PATCH" else {}
            self._check_metadata({**kept, **asked})

    def _compose(self, call: _Call, bucket: str, name: str) -> dict[str, Any]:
        """A new generation, with no attribute but those of the request."""
        resource = call.resource
        sources = resource.get("sourceObjects") or []
        if not 1 <= len(sources) <= self.limits.max_sources:
            message = f"The number of source components must be 1 to {self.limits.max_sources}"
            raise Refused(400, "invalid", message)
        destination = resource.get("destination") or {}
        self._check_new(name, destination)
        _check(call.query, self._current(bucket, name))
        contents = []
        for source in sources:
            found = self._source(bucket, source["name"], source.get("generation"))
            wanted = source.get("objectPreconditions") or {}
            _check({word: str(value) for word, value in wanted.items()}, found)
            contents.append(self._content(bucket, source["name"], found["generation"]))
        return self._insert(bucket, {**destination, "name": name}, b"".join(contents))

    def _rewrite(
        self, call: _Call, source: tuple[str, str], target: tuple[str, str]
    ) -> dict[str, Any]:
        """A step, or the whole; attributes are the source's only if the request names none."""
        self._check_new(target[1], call.resource)
        step = call.query.get("maxBytesRewrittenPerCall")
        if step is not None and (int(step) < 1 or int(step) % MIB):
            raise Refused(400, "invalid", "maxBytesRewrittenPerCall must be a multiple of 1 MiB")
        found = self._source(*source, call.query.get("sourceGeneration"))
        _check(_of_source(call.query), found)
        _check(call.query, self._current(*target))
        size, generation = int(found["size"]), found["generation"]
        calls = -(-size // int(step)) if step else self.limits.rewrite_calls
        what = json.dumps([source, target, generation])
        before, done = self._rewrites.pop(call.query.get("rewriteToken", ""), (what, 0))
        if before != what or (not done and "rewriteToken" in call.query):
            raise Refused(400, "invalid", "The rewrite token is not of this rewrite")
        answer = {"kind": "storage#rewriteResponse", "objectSize": str(size), "done": True}
        if done + 1 < calls:
            token = uuid.uuid4().hex
            self._rewrites[token] = (what, done + 1)
            rewritten = str(size * (done + 1) // calls)
            return {
                **answer,
                "done": False,
                "rewriteToken": token,
                "totalBytesRewritten": rewritten,
            }
        attributes = call.resource or {name: found[name] for name in _ATTRIBUTES if name in found}
        content = self._content(*source, generation)
        made = self._insert(target[0], {**attributes, "name": target[1]}, content)
        return {**answer, "totalBytesRewritten": str(size), "resource": made}

    def _source(self, bucket: str, name: str, generation: object) -> dict[str, Any]:
        """The source of a copy. Raises Refused if that generation is absent."""
        found = self._current(bucket, name)
        if found is None or str(generation or found["generation"]) != found["generation"]:
            raise Refused(404, "notFound", f"No such object: {bucket}/{name}")
        return found

    # --- uploads --------------------------------------------------------------------------

    def _upload(self, call: _Call, bucket: str, ends: Ends) -> bool:
        if "upload_id" in call.query:
            return self._in_session(call, ends)
        resource = {} if call.query.get("uploadType") == "media" else call.resource
        name = str(resource.get("name") or call.query.get("name", ""))
        self._check_new(name, resource)
        with self._writing(bucket, name):
            _check(call.query, self._current(bucket, name))
            if call.query.get("uploadType") != "resumable":
                return self.forward("POST", call.raw(), ends)
            status, fields, body = self._ask(call.raw())
            if status == 200:
                location = dict(parse_qsl(urlsplit(fields["location"]).query))
                self._sessions[location["upload_id"]] = Session(bucket, name, call.query)
        kept = {"Location": fields["location"]} if "location" in fields else {}
        phrase = http.client.responses.get(status, "")
        ends.client.sendall(http_answer(status, phrase, body, **kept))
        return True

    def _in_session(self, call: _Call, ends: Ends) -> bool:
        upload_id = call.query["upload_id"]
        session = self._sessions.get(upload_id)
        if session is None:
            raise Refused(404, "notFound", "The upload session does not exist")
        with session.lock:
            if call.head.method == "DELETE":
                del self._sessions[upload_id]
                answer = http_answer(499, "Client Closed Request")
            elif session.answer:
                answer = session.answer
            else:
                answer = self._chunk(call, session)
        ends.client.sendall(answer)
        return True

    def _chunk(self, call: _Call, session: Session) -> bytes:
        """The answer to one chunk, or to the question how far it is."""
        size = len(call.body)
        header = call.head.fields.get("content-range", f"bytes 0-{size - 1}/{size}")
        asked = _CONTENT_RANGE.fullmatch(header)
        if asked is None:
            raise Refused(400, "badRequest", f"Invalid Content-Range: {header}")
        total = None if asked[3] == "*" else int(asked[3])
        first, end = session.persisted, session.persisted
        if asked[1]:
            first, end = int(asked[1]), int(asked[2]) + 1
        if end - first != size or (total is not None and end > total):
            raise Refused(400, "badRequest", f"{size} bytes are not {header}")
        if first > session.persisted:
            raise Refused(
                503,
                "backendError",
                f"Invalid request. According to the Content-Range header, the upload offset is "
                f"{first} byte(s), which exceeds already uploaded size of {session.persisted} "
                "byte(s).",
            )
        last = total == max(end, session.persisted)
        if not last and size % self.limits.chunk_bytes:
            raise Refused(400, "badRequest", f"A chunk is a multiple of {self.limits.chunk_bytes}")
        # Bytes that the store has already are ignored.
        fresh = call.body[session.persisted - first :]
        if not fresh and not last:
            return _goes_on(session)
        return self._pass_chunk(call, session, fresh, total if last else None)

    def _pass_chunk(self, call: _Call, session: Session, fresh: bytes, total: int | None) -> bytes:
        with contextlib.ExitStack() as stack:
            if total is not None:
                stack.enter_context(self._writing(session.bucket, session.name))
                _check(session.query, self._current(session.bucket, session.name))
            end = session.persisted + len(fresh)
            sent = f"{session.persisted}-{end - 1}" if fresh else "*"
            ranged = f"bytes {sent}/{'*' if total is None else total}"
            passed = _Call(call.head, fresh, call.path, call.query)
            fields = {"content-range": ranged, "content-length": str(len(fresh))}
            status, _, body = self._ask(passed.raw(None, **fields))
        if status not in {200, 201, 308}:
            raise Refused(status, "backendError", body.decode(errors="replace"))
        session.persisted = end
        if total is None:
            return _goes_on(session)
        session.answer = http_answer(200, "OK", body, **_JSON)
        return session.answer

    # --- uploads of the XML API -------------------------------------------------------------

    def _xml(self, call: _Call, bucket: str, name: str) -> bytes:
        """The answer; empty if the request is not about an upload."""
        method = call.head.method
        if method == "HEAD":
            return self._xml_head(bucket, name)
        if not call.query.keys() & {"uploads", "uploadId"}:
            return b""
        if any(word.startswith("x-goog-if-") for word in call.head.fields):
            raise _XmlRefused(400, "InvalidArgument", "Preconditions are not supported")
        if method == "POST" and "uploads" in call.query:
            return self._begin(call, bucket, name)
        upload_id = call.query["uploadId"]
        upload = self.multiparts.get(upload_id)
        if upload is None or (upload.bucket, upload.name) != (bucket, name):
            raise _XmlRefused(404, "NoSuchUpload", "The requested upload was not found.")
        if method == "PUT":
            number = int(call.query["partNumber"])
            if not 1 <= number <= self.limits.max_parts:
                raise _XmlRefused(400, "InvalidArgument", "Invalid part number")
            etag = f'"{hashlib.md5(call.body, usedforsecurity=False).hexdigest()}"'
            upload.parts[number] = (etag, call.body)
            return http_answer(200, "OK", ETag=etag)
        del self.multiparts[upload_id]
        if method == "DELETE":
            return http_answer(204, "No Content")
        try:
            return self._complete(call, upload)
        except Refused:
            self.multiparts[upload_id] = upload
            raise

    def _begin(self, call: _Call, bucket: str, name: str) -> bytes:
        if call.body:
            raise _XmlRefused(400, "InvalidArgument", "A body where none is")
        fields = call.head.fields
        resource = {
            word: fields[header] for word, header in _XML_FIELDS.items() if header in fields
        }
        metadata = {
            header.removeprefix("x-goog-meta-"): text
            for header, text in fields.items()
            if header.startswith("x-goog-meta-")
        }
        self._check_new(name, {"metadata": metadata})
        upload_id = uuid.uuid4().hex
        self.multiparts[upload_id] = Multipart(bucket, name, {**resource, "metadata": metadata})
        return _xml_answer("InitiateMultipartUploadResult", UploadId=upload_id)

    def _complete(self, call: _Call, upload: Multipart) -> bytes:
        root = ET.fromstring(call.body)
        asked = [
            (int(part.findtext("{*}PartNumber") or 0), part.findtext("{*}ETag") or "")
            for part in root.iterfind("{*}Part")
        ]
        numbers = [number for number, _ in asked]
        if not asked or numbers != sorted(set(numbers)):
            raise _XmlRefused(400, "InvalidPartOrder", "Parts are not in ascending order")
        sent = [upload.parts.get(number, ("", b"")) for number in numbers]
        if [etag for etag, _ in sent] != [etag for _, etag in asked]:
            raise _XmlRefused(400, "InvalidPart", "A part was not found, or has another ETag")
        contents = [content for _, content in sent]
        if any(len(content) < self.limits.min_part_bytes for content in contents[:-1]):
            raise _XmlRefused(400, "EntityTooSmall", "A part but the last is too small")
        with self._writing(upload.bucket, upload.name):
            made = self._insert(
                upload.bucket, {**upload.resource, "name": upload.name}, b"".join(contents)
            )
        etag = f'"{uuid.uuid4().hex}"'  # not based on an MD5
        self._etags[upload.bucket, upload.name, made["generation"]] = etag
        named = {"X_Goog_Generation": made["generation"]} if self.limits.names_generation else {}
        return _xml_answer("CompleteMultipartUploadResult", named, ETag=etag)

    def _xml_head(self, bucket: str, name: str) -> bytes:
        found = self._current(bucket, name)
        if found is None:
            return http_answer(404, "Not Found")
        generation = found["generation"]
        etag = self._etags.get((bucket, name, generation), f'"{found.get("md5Hash", "")}"')
        return http_answer(200, "OK", ETag=etag, X_Goog_Generation=generation)

    # --- what is there --------------------------------------------------------------------

    def _check_new(self, name: str, resource: Mapping[str, Any]) -> None:
        size = len(name.encode())
        illegal = name in {"", ".", ".."} or "\r" in name or "\n" in name
        if illegal or name.startswith(".well-known/acme-challenge/"):
            raise Refused(400, "invalid", f"Invalid object name: {name!r}")
        if size > self.limits.max_name_bytes:
            raise Refused(400, "invalid", f"The object name is {size} bytes long.")
        self._check_metadata(resource.get("metadata") or {})

    def _check_metadata(self, metadata: Mapping[str, Any]) -> None:
        size = sum(
            len(name.encode()) + len(str(text).encode())
            for name, text in metadata.items()
            if text is not None
        )
        if size > self.limits.max_metadata_bytes:
            raise Refused(400, "invalid", f"The custom metadata is {size} bytes large.")

    @contextlib.contextmanager
    def _writing(self, bucket: str, name: str) -> Iterator[None]:
        """One writer of an object at a time, so that a condition that held still holds."""
        with self._lock:
            turn = self._objects[bucket, name]
        with turn:
            yield

    def _content(self, bucket: str, name: str, generation: str) -> bytes:
        path = f"/download/storage/v1/b/{_quoted(bucket)}/o/{_quoted(name)}"
        target = f"{path}?alt=media&generation={generation}"
        status, _, body = self._ask(self._own("GET", target, "Accept-Encoding: gzip"))
        if status != 200:
            raise Refused(status, "notFound", f"No such object: {bucket}/{name}")
        return body

    def _insert(self, bucket: str, resource: Mapping[str, Any], content: bytes) -> dict[str, Any]:
        """A new object; its resource."""
        boundary = uuid.uuid4().hex
        kind = resource.get("contentType") or "application/octet-stream"
        body = (
            f"--{boundary}\r\nContent-Type: application/json\r\n\r\n{json.dumps(resource)}\r\n"
            f"--{boundary}\r\nContent-Type: {kind}\r\n\r\n"
        ).encode()
        body += content + f"\r\n--{boundary}--\r\n".encode()
        target = f"/upload/storage/v1/b/{_quoted(bucket)}/o?uploadType=multipart"
        related = f"Content-Type: multipart/related; boundary={boundary}"
        request = self._own("POST", target, related, f"Content-Length: {len(body)}")
        status, _, answer = self._ask(request + body)
        if status != 200:
            raise Refused(status, "invalid", answer.decode(errors="replace"))
        made: dict[str, Any] = json.loads(answer)
        return made

    def _own(self, method: str, target: str, *lines: str) -> bytes:
        """The head of a request of the proxy itself."""
        host = f"Host: {HOST}:{self.port}"
        return "\r\n".join([f"{method} {target} HTTP/1.1", host, *lines, "", ""]).encode("latin-1")

    def _current(self, bucket: str, name: str) -> dict[str, Any] | None:
        """The object's resource."""
        path = f"/storage/v1/b/{_quoted(bucket)}/o/{_quoted(name)}"
        status, _, body = self._ask(self._own("GET", path))
        return json.loads(body) if status == 200 else None

    def _ask(self, request: bytes) -> tuple[int, dict[str, str], bytes]:
        """A request of the proxy's own: status, fields and body of the answer."""
        connection = http.client.HTTPConnection(HOST, self._upstream_port)
        try:
            connection.connect()
            connection.sock.sendall(request)
            response = http.client.HTTPResponse(connection.sock)
            response.begin()
            fields = {name.lower(): value for name, value in response.getheaders()}
            return response.status, fields, response.read()
        finally:
            connection.close()


class StrictGcsServer(GcsServer):
    """fake-gcs-server behind :class:`StrictGcs`.

    Attributes:
        proxy: while it runs.
    """

    def __init__(self, directory: Path, *, keep_data: bool = False) -> None:
        super().__init__(directory, keep_data=keep_data)
        self._process_port = free_port()
        self.proxy: StrictGcs

    @property
    def process_port(self) -> int:
        """The emulator's own."""
        return self._process_port

    def start(self) -> Self:
        """Start the proxy and the emulator."""
        self.proxy = StrictGcs(self.process_port, port=self.port).start()
        return super().start()

    def stop(self) -> None:
        """Stop both."""
        super().stop()
        self.proxy.stop()


def _xml_answer(root: str, fields: Mapping[str, str] | None = None, **elements: str) -> bytes:
    text = "".join(f"<{name}>{escape(value)}</{name}>" for name, value in elements.items())
    body = f'<{root} xmlns="http://s3.amazonaws.com/doc/2006-03-01/">{text}</{root}>'.encode()
    return http_answer(200, "OK", body, **{"Content_Type": "application/xml", **(fields or {})})


def _goes_on(session: Session) -> bytes:
    if not session.persisted:
        return http_answer(308, "Resume Incomplete")
    return http_answer(308, "Resume Incomplete", Range=f"bytes=0-{session.persisted - 1}")


def _conditions(query: Mapping[str, str]) -> dict[str, str]:
    return {
        word: value
        for word, value in query.items()
        if re.fullmatch("if(Metag|G)eneration(Not)?Match", word)
    }


def _of_source(query: Mapping[str, str]) -> dict[str, str]:
    return {
        word.replace("ifSource", "if"): value
        for word, value in query.items()
        if word.startswith("ifSource")
    }


def _check(
    query: Mapping[str, str], found: Mapping[str, Any] | None, *, reading: bool = False
) -> None:
    """Raises Refused if a condition does not hold; an absent object has generation 0."""
    for word, value in _conditions(query).items():
        kind = "metageneration" if "Metageneration" in word else "generation"
        same = value == str(found[kind] if found else 0)
        if same == ("Not" in word):
            message = "At least one of the pre-conditions you specified did not hold."
            unchanged = reading and "Not" in word
            raise Refused(304 if unchanged else 412, "conditionNotMet", message)


def _quoted(text: str) -> str:
    return quote(text, safe="")
