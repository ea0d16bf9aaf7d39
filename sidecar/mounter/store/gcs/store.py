"""Google Cloud Storage: logs in and copies through gcsfs; the rest is done without it.

User metadata is the object's ``metadata``; changing it in place keeps the generation, so
that handles which pinned it go on reading.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any
from urllib.parse import quote, urlencode, urlsplit

from sidecar.errors import NotFound, SecretInvalid, SidecarError
from sidecar.mounter.store.gcs.properties import (
    component_of,
    content_type,
    fields_of,
    key_query,
)
from sidecar.mounter.store.gcs.requests import GcsRequests, object_info, reason_of
from sidecar.mounter.store.gcs.tokens import Tokens
from sidecar.mounter.store.gcs.upload import CHUNK_BYTES, ResumableUpload
from sidecar.mounter.store.http.client import Body, Reply
from sidecar.mounter.store.http.pool import Endpoint
from sidecar.mounter.store.http.retry import Retryable
from sidecar.mounter.store.http_store import (
    QUICK_TIMEOUT_S,
    TRANSFER_TIMEOUT_S,
    WRITTEN,
    HttpStore,
)
from sidecar.mounter.store.interface import (
    Condition,
    Content,
    Limits,
    ObjectInfo,
    Properties,
    Revision,
    StoreObserver,
)
from sidecar.mounter.store.login import CredentialSource, Login
from sidecar.mounter.store.secrets import GcsCredentials
from sidecar.mounter.store.store_errors import Answer, Place, Request, parse_retry_after
from sidecar.units import KIB, MIB

if TYPE_CHECKING:
    from sidecar.spec import StoreSource

GOOGLE_ENDPOINT = "https://storage.googleapis.com"

_DELETED = frozenset({200, 204})
_NAME_CHARACTERS = 50
"""Of four bytes each at most, they leave room in a name of 255 bytes."""


class GcsAnswer(Exception):
    """An answer that is not a success, as it came."""

    def __init__(self, status: int, headers: Mapping[str, str], content: bytes) -> None:
        super().__init__(status)
        self.status = status
        self.headers = headers
        self.content = content


class GcsStore(HttpStore[GcsCredentials]):
    """A bucket of Google Cloud Storage."""

    limits = Limits(
        max_object_bytes=5 * MIB * MIB,
        min_part_bytes=CHUNK_BYTES,
        max_part_bytes=5 * MIB * MIB,
        max_parts=MIB,
        ordered_parts=True,
        max_metadata_bytes=8 * KIB,
    )

    def __init__(
        self,
        source: StoreSource,
        credentials: CredentialSource,
        *,
        retry_budget_s: float,
        observer: StoreObserver,
        with_metadata: bool = False,
    ) -> None:
        login = Login(credentials, GcsCredentials)
        self._base = login.credentials.endpoint_url or GOOGLE_ENDPOINT
        try:
            endpoint = Endpoint.parse(self._base)
        except ValueError as error:
            raise SecretInvalid(f"STORAGE_EMULATOR_HOST: {error}") from None
        place = Place("GCS", source.bucket, str(endpoint))
        self._tokens = Tokens(login, place)
        self._objects = f"b/{quote(source.bucket, safe='')}/o"
        self._gcs = requests = GcsRequests(
            source, endpoint, self._tokens, with_metadata=with_metadata
        )
        super().__init__(
            source,
            place=place,
            login=login,
            endpoint=endpoint,
            requests=requests,
            retry_budget_s=retry_budget_s,
            observer=observer,
        )

    # --- login -----------------------------------------------------------------------

    def _connect(self) -> Any:
        # gcsfs's new default asks a gRPC endpoint about each bucket and waits a minute where
        # there is none. Read when the package is imported.
        os.environ["GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT"] = "false"
        from gcsfs.core import GCSFileSystem

        return GCSFileSystem(
            project="-",  # only needed to list or make buckets
            token=self._tokens.identity() or "anon",
            endpoint_url=self._base,
            skip_instance_cache=True,
            use_listings_cache=False,
        )

    def _disconnect(self, sdk: Any) -> None:
        sdk.close_session(sdk.loop, sdk._session)

    def _sdk_errors(self) -> tuple[type[BaseException], ...]:
        from aiohttp import ClientError

        return (GcsAnswer, ClientError, OSError)

    def _translate(self, error: BaseException, request: Request) -> SidecarError | Retryable:
        if isinstance(error, GcsAnswer):
            retry_after_s = parse_retry_after(error.headers.get("retry-after"))
            answer = Answer(error.status, reason_of(error.content), retry_after_s)
            return self.place.from_answer(answer, request)
        return self.place.from_transport(error)

    def send(
        self,
        request: Request,
        method: str,
        path: str,
        *,
        timeout_s: float = QUICK_TIMEOUT_S,
        **options: Any,
    ) -> Reply:
        """One call of the JSON API with retries; see :func:`_send` for the rest."""
        return self.retry.run(
            request.operation,
            lambda: self.send_once(request, method, path, timeout_s=timeout_s, **options),
        )

    def send_once(
        self,
        request: Request,
        method: str,
        path: str,
        *,
        timeout_s: float = QUICK_TIMEOUT_S,
        **options: Any,
    ) -> Reply:
        """One attempt at a call of the JSON API."""
        self._tokens.renew()  # else gcsfs would, blocking its event loop
        return self._attempt(request, lambda sdk: _send(sdk, method, path, **options), timeout_s)

    @property
    def _uploads(self) -> str:
        return f"{self._base}/upload/storage/v1/{self._objects}"

    def _object(self, key: str) -> str:
        return f"{self._objects}/{quote(self.full(key), safe='')}"

    # --- reading ---------------------------------------------------------------------

    def _head(self, key: str) -> ObjectInfo:
        return self.info(self.send(Request("head", key), "GET", self._object(key)).json())

    def info(self, item: Mapping[str, Any]) -> ObjectInfo:
        """From an object resource of the JSON API."""
        return object_info(item, self._source.prefix, known=True)

    # --- writing ---------------------------------------------------------------------

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
        return self._put(key, (content,), metadata, self.properties_of(like), condition)

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
            Request("put", key, condition),
            lambda: self._gcs.put(query, boundary),
            (head.encode(), *content, f"\r\n--{boundary}--\r\n".encode()),
        )
        return self.info(reply.json())

    def put_chunk(self, request: Request, location: str, content_range: str, body: Body) -> Reply:
        """One attempt at a piece of a resumable upload, which may go on (308) or not exist."""
        return self.transfer_once(
            request,
            lambda: self._gcs.put_chunk(location, content_range),
            body,
            accepted={*WRITTEN, 308},
        )

    def start_upload(
        self,
        key: str,
        metadata: Mapping[str, str] | None = None,
        *,
        like: ObjectInfo | None = None,
    ) -> ResumableUpload:
        """As :meth:`Store.start_upload`: a resumable session, whose parts go in order."""
        properties = self.properties_of(like)
        reply = self.send(
            Request("put", key),
            "POST",
            self._uploads,
            query={"uploadType": "resumable", **key_query(properties)},
            **_json_body(self._resource(key, metadata, properties)),
        )
        # Of the session's URL only what is behind the host: it is where it was begun.
        url = urlsplit(reply.headers.get("location", ""))
        if not url.path:
            raise self.odd_answer("put", "an upload was begun without a session")
        return ResumableUpload(self, key, f"{url.path}?{url.query}", metadata or {}, None)

    def resume_upload(
        self, key: str, state: Mapping[str, Any], parts: Mapping[int, tuple[int, str]]
    ) -> ResumableUpload:
        """As :meth:`Store.resume_upload`."""
        sent = [parts[number][0] for number in range(1, len(parts) + 1)]
        return ResumableUpload(self, key, state["session"], state["metadata"], sent)

    def abandon(self, key: str, state: Mapping[str, Any]) -> None:
        """As :meth:`Store.abandon`. Sessions cannot be listed, and expire in a week."""
        if "leftover" in state:
            self.delete(state["leftover"])
        elif "session" in state:
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
        """As :meth:`Store.patch`: what is behind the end of ``base`` is sent, and composed.

        For a moment the new end is an object of its own beside the old one.
        """
        added_bytes = revision.size_bytes - base.size_bytes
        if added_bytes < 0 or any(start < base.size_bytes for start, _ in revision.changed):
            return None
        if not added_bytes:
            return self.copy(base.key, key, version=base.version, metadata=metadata)
        if self._base != GOOGLE_ENDPOINT:  # emulators do not look at the condition
            self.check_condition(base.key, Condition(version=base.version))
        directory, _, name = key.rpartition("/")
        tail_key = f"{directory}/" if directory else ""
        tail_key += f".{name[:_NAME_CHARACTERS]}.mount-sidecar-{os.urandom(6).hex()}"
        begun({"leftover": tail_key})
        properties = self.properties_of(like)
        try:
            added = revision.content(base.size_bytes, added_bytes)
            tail = self._put(tail_key, (added,), None, component_of(properties))
            reply = self.send(
                Request("copy", base.key, Condition(version=base.version)),
                "POST",
                f"{self._object(key)}/compose",
                timeout_s=TRANSFER_TIMEOUT_S,
                query=key_query(properties),
                **_json_body(
                    {
                        "sourceObjects": [self._component(base), self._component(tail)],
                        "destination": self._resource(key, metadata, properties),
                    }
                ),
            )
        finally:
            self.delete(tail_key)
        return self.info(reply.json())

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
        version: str | None = None,
        metadata: Mapping[str, str] | None = None,
    ) -> ObjectInfo:
        """As :meth:`Store.copy`. In place the generation stays."""
        found = self.head(source)
        if version is not None and found.version != version:
            raise self.place.stale(source)
        if source == target and metadata is not None:
            return self.set_metadata(found, metadata)
        properties = self.properties_of(found)
        query = {
            "ifSourceGenerationMatch": found.version,
            **key_query(properties, "destinationKmsKeyName"),
        }
        kept = found.metadata if metadata is None else metadata
        while True:
            # A large copy between locations or classes takes several requests.
            answer = self.send(
                Request("copy", source),
                "POST",
                f"{self._object(source)}/rewriteTo/{self._object(target)}",
                timeout_s=TRANSFER_TIMEOUT_S,
                query=query,
                # All of it: the class is the bucket's, where it is not said, and of what is said
                # nothing is copied.
                **_json_body(self._resource(target, kept, properties)),
            ).json()
            if answer["done"]:
                return self.info(answer["resource"])
            query["rewriteToken"] = answer["rewriteToken"]

    def delete(self, key: str) -> None:
        """As :meth:`Store.delete`."""
        try:
            self.transfer(Request("delete", key), lambda: self._gcs.delete(key), (), _DELETED)
        except NotFound:
            self._check_bucket()

    def _resource(
        self, key: str, metadata: Mapping[str, str] | None, properties: Properties
    ) -> dict[str, Any]:
        own = {"name": self.full(key), "metadata": dict(metadata or {})}
        return {**fields_of(properties), **own}

    def set_metadata(self, found: ObjectInfo, metadata: Mapping[str, str]) -> ObjectInfo:
        """Replace the metadata of this version, which stays the version it is."""
        # PATCH merges: what is to go must be named.
        gone = dict.fromkeys(found.metadata or {})
        self.send(
            Request("copy", found.key),
            "PATCH",
            self._object(found.key),
            query={"ifGenerationMatch": found.version},
            **_json_body({"metadata": {**gone, **metadata}}),
        )
        return found._replace(metadata=dict(metadata))


async def _send(
    sdk: Any,
    method: str,
    path: str,
    *,
    query: Mapping[str, str | None] | None = None,
    content_type: str = "",
    body: bytes = b"",
) -> Reply:
    """One request over gcsfs's session and login, without its retries.

    gcsfs's own ``_call`` retries by itself and drops status and body of most errors.

    Args:
        path: quoted; a URL, or relative to ``storage/v1/``.
    """
    from yarl import URL

    await sdk._set_session()
    url = path if "://" in path else f"{sdk.base}{path}"
    parameters = urlencode(sdk._get_params(query or {}))
    headers = {"Content-Length": str(len(body))}
    if content_type:
        headers["Content-Type"] = content_type
    async with sdk.session.request(
        method,
        # Encoded already: once more, and `%2F` would become `%252F`.
        URL(f"{url}?{parameters}" if parameters else url, encoded=True),
        headers=sdk._get_headers(headers),
        data=body or None,
        allow_redirects=False,
    ) as response:
        content = await response.read()
        if response.status >= 400 and response.status != 499:  # 499: an upload was aborted
            raise GcsAnswer(response.status, response.headers, content)
        return Reply(response.status, response.headers, content)


def _json_body(value: Mapping[str, Any]) -> dict[str, Any]:
    """Options of :func:`_send`."""
    return {
        "content_type": "application/json; charset=UTF-8",
        "body": json.dumps(value).encode(),
    }


def _conditional(condition: Condition | None) -> dict[str, str]:
    if condition is None:
        return {}
    if condition.absent:
        return {"ifGenerationMatch": "0"}
    return {} if condition.version is None else {"ifGenerationMatch": condition.version}
