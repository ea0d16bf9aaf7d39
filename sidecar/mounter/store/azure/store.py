"""Azure Blob Storage: logs in and copies through adlfs; the rest is done without it.

User metadata: Azure's names are identifiers, so ``-`` is kept as ``_``; keys begin with a
letter. Changing metadata in place makes a new ETag, and with it a new version.
"""

from __future__ import annotations

import base64
import os
import time
from collections.abc import Callable, Mapping, Sequence
from email.utils import parsedate_to_datetime
from typing import TYPE_CHECKING, Any
from urllib.parse import quote, urlencode

from sidecar.errors import AccessDenied, NotFound, SecretInvalid, SidecarError, Unsupported
from sidecar.mounter.store.azure.properties import (
    TAG_COUNT,
    TAGS,
    properties_in,
    repeated,
    repeated_by_copy,
    scope_of,
)
from sidecar.mounter.store.azure.requests import (
    AzureRequests,
    error_code_of,
    from_azure,
    no_identity,
)
from sidecar.mounter.store.http.pool import Endpoint
from sidecar.mounter.store.http.retry import Retryable
from sidecar.mounter.store.http_store import QUICK_TIMEOUT_S, TRANSFER_TIMEOUT_S, HttpStore
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
from sidecar.mounter.store.object_properties import Repeated
from sidecar.mounter.store.patch_plan import split
from sidecar.mounter.store.ranges import Ranges
from sidecar.mounter.store.secrets import AzureCredentials
from sidecar.mounter.store.signing import quote_path
from sidecar.mounter.store.store_errors import Answer, Place, Request, parse_retry_after
from sidecar.units import KIB, MIB

if TYPE_CHECKING:
    from sidecar.spec import StoreSource

COPY_POLL_S = 0.5
_SMALL_BLOCK_BYTES = 4 * MIB


class AzureStore(HttpStore[AzureCredentials]):
    """A container of a storage account."""

    limits = Limits(
        max_object_bytes=50_000 * 4000 * MIB,
        min_part_bytes=1,
        max_part_bytes=4000 * MIB,
        max_parts=50_000,
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
        login = Login(credentials, AzureCredentials)
        self._base = login.credentials.blob_endpoint or _default_endpoint(source, login)
        try:
            endpoint = Endpoint.parse(self._base)
        except ValueError as error:
            raise SecretInvalid(f"the blob endpoint of {source.url}: {error}") from None
        place = Place("Azure", source.bucket, str(endpoint))
        self._azure = requests = AzureRequests(
            source, endpoint, login, place, with_metadata=with_metadata
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
        from adlfs import AzureBlobFileSystem

        login = self._login.credentials
        options: dict[str, Any] = {"skip_instance_cache": True, "use_listings_cache": False}
        if login.ambient:
            host = self._base.removeprefix("https://")
            return AzureBlobFileSystem(
                account_name=login.account_name, account_host=host, anon=False, **options
            )
        # A connection string is the only way to give adlfs any endpoint.
        fields = [f"BlobEndpoint={self._base}"]
        if login.account_key:
            fields += [f"AccountName={login.account_name}", f"AccountKey={login.account_key}"]
        elif login.sas_token:
            fields.append(f"SharedAccessSignature={login.sas_token}")
        try:
            return AzureBlobFileSystem(connection_string=";".join(fields), anon=True, **options)
        except ValueError:
            pass  # its message may hold the string
        raise SecretInvalid(f"{self.place}: no connection string can be made of the secret")

    def _disconnect(self, sdk: Any) -> None:
        import fsspec.asyn

        fsspec.asyn.sync(sdk.loop, sdk.service_client.close)

    def _sdk_errors(self) -> tuple[type[BaseException], ...]:
        from azure.core.exceptions import AzureError

        return (AzureError, OSError)

    def _translate(self, error: BaseException, request: Request) -> SidecarError | Retryable:
        from azure.core.exceptions import ClientAuthenticationError, HttpResponseError

        if isinstance(error, HttpResponseError) and error.response is not None:
            headers: Mapping[str, str] = error.response.headers  # type: ignore[attr-defined]
            answer = Answer(
                error.status_code or 0,
                error_code_of(headers.get("x-ms-error-code") or "", str(error.message)),
                parse_retry_after(headers.get("retry-after")),
            )
            return self.place.from_answer(answer, request)
        if isinstance(error, ClientAuthenticationError):
            return no_identity(self.place)
        return self.place.from_transport(error)

    def send(
        self,
        request: Request,
        method: str,
        timeout_s: float = QUICK_TIMEOUT_S,
        *,
        key: str | None = None,
        **arguments: Any,
    ) -> Any:
        """One method of the blob's client, with our retries instead of the SDK's.

        Args:
            key: where it is not the request's.
        """
        name = self.full(request.key if key is None else key)

        async def call(sdk: Any) -> Any:
            blob = sdk.service_client.get_blob_client(self._bucket, name)
            return await getattr(blob, method)(retry_total=0, **arguments)

        return self._call(request, call, timeout_s)

    # --- reading ---------------------------------------------------------------------

    def _head(self, key: str) -> ObjectInfo:
        return self._info(self.send(Request("head", key), "get_blob_properties"))

    def _info(self, item: Any) -> ObjectInfo:
        return ObjectInfo(
            key=self._relative(item.name),
            size_bytes=item.size,
            mtime_s=item.last_modified.timestamp(),
            version=item.etag.strip('"'),
            metadata=from_azure(item.metadata or {}),
            properties=properties_in(item),
        )

    def _tags(self, like: ObjectInfo | None, properties: Properties) -> str:
        """As ``x-ms-tags`` has them; asked for only where there are some."""
        if like is None or TAG_COUNT not in properties or not self.property_keeper.may(TAGS):
            return ""
        try:
            tags = self.send(Request("head", like.key), "get_blob_tags")
        except NotFound:
            return ""
        except (AccessDenied, Unsupported) as error:
            self.property_keeper.give_up(TAGS, error)
            return ""
        return urlencode(tags, quote_via=quote)

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
        """As :meth:`Store.put`."""
        own = {
            "x-ms-blob-type": "BlockBlob",
            **{f"x-ms-meta-{name}": value for name, value in _to_azure(metadata).items()},
            **_condition_headers(condition),
        }
        properties = self.properties_of(like)
        reply = self.property_keeper.write(
            repeated(properties, self._tags(like, properties)),
            lambda headers: self.transfer(
                Request("put", key, condition),
                lambda: self._azure.put(key, {}, {**headers, **own}, len(content)),
                (content,),
            ),
        )
        return ObjectInfo(
            key,
            len(content),
            parsedate_to_datetime(reply.headers["last-modified"]).timestamp(),
            reply.headers["etag"].strip('"'),
            dict(metadata or {}),
            properties,
        )

    _key_unit = "characters"

    def _key_length(self, full: str) -> int:
        return len(full)

    def put_block(self, key: str, name: str, content: Content, properties: Properties) -> None:
        """Stage a block of a blob that will have ``properties``.

        ``name``: of one length for all blocks of a blob, as Azure demands.
        """
        query = {"comp": "block", "blockid": base64.b64encode(name.encode()).decode()}
        self.property_keeper.write(
            scope_of(properties),
            lambda headers: self.transfer(
                Request("part", key),
                lambda: self._azure.put(key, query, headers, len(content)),
                (content,),
            ),
        )

    def commit_blocks(
        self,
        key: str,
        names: Sequence[str],
        size_bytes: int,
        metadata: Mapping[str, str],
        condition: Condition | None,
        *,
        properties: Properties,
        tags: str,
    ) -> ObjectInfo:
        """Make the blob of blocks: staged ones, and ones that it has."""
        from azure.storage.blob import BlobBlock

        answer = self._write(
            repeated(properties, tags),
            Request("complete", key, condition),
            "commit_block_list",
            block_list=[BlobBlock(name) for name in names],
            metadata=_to_azure(metadata),
            **_conditional(condition),
        )
        return _written(key, size_bytes, answer, metadata, properties)

    def _write(self, said: Repeated, request: Request, method: str, **arguments: Any) -> Any:
        """:meth:`send` of what makes a blob, with as many of the headers as are taken."""
        return self.property_keeper.write(
            said,
            lambda headers: self.send(
                # A dictionary of its own for each: the SDK adds to it.
                request,
                method,
                TRANSFER_TIMEOUT_S,
                headers=dict(headers),
                **arguments,
            ),
        )

    def start_upload(
        self,
        key: str,
        metadata: Mapping[str, str] | None = None,
        *,
        like: ObjectInfo | None = None,
    ) -> _AzureUpload:
        """As :meth:`Store.start_upload`. It begins with the first part."""
        properties = self.properties_of(like)
        tags = self._tags(like, properties)
        return _AzureUpload(self, key, metadata or {}, _new_series(), {}, properties, tags)

    def resume_upload(
        self, key: str, state: Mapping[str, Any], parts: Mapping[int, tuple[int, str]]
    ) -> _AzureUpload:
        """As :meth:`Store.resume_upload`."""
        sizes = {number: size for number, (size, _) in parts.items()}
        properties, tags = state.get("properties", {}), state.get("tags", "")
        return _AzureUpload(self, key, state["metadata"], state["series"], sizes, properties, tags)

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
        """As :meth:`Store.patch`: blocks that lie whole in what is kept stay.

        Small blocks at the end are sent again with what is new, when they are no larger: else
        a log that is saved a thousand times would have a thousand of them, and a blob has
        50,000 at most.
        """
        if base.key != key:
            return None
        blocks = self._kept_blocks(base, revision)
        if not blocks:
            return None
        properties = self.properties_of(like)
        series = _new_series()
        names: list[str] = []
        fresh: list[Callable[[], None]] = []
        block_bytes = max(revision.part_bytes, revision.size_bytes // (self.limits.max_parts // 2))
        position = 0
        for start, end, name in [*blocks, (revision.size_bytes, revision.size_bytes, "")]:
            for first, last in split(position, start, block_bytes, self.limits):
                names.append(_block_name(series, len(fresh) + 1))

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
        """Blocks of ``base`` that can stay: begin, end and name of each; in order."""
        try:
            committed, _ = self.send(Request("list", base.key), "get_block_list")
        except NotFound:
            raise self.place.stale(base.key) from None
        changed = Ranges(revision.changed)
        blocks: list[tuple[int, int, str]] = []
        position = 0
        for block in committed:
            end = position + block.size
            if len(block.id) != len(_block_name(_new_series(), 1)):
                return []  # another client's; names of two lengths are refused
            if end <= revision.size_bytes and not changed.touches(position, end):
                blocks.append((position, end, block.id))
            position = end
        if position != base.size_bytes:
            return []  # it was not made of blocks, or is another version
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
        version: str | None = None,
        metadata: Mapping[str, str] | None = None,
    ) -> ObjectInfo:
        """As :meth:`Store.copy`. In place it makes a new version."""
        found = self.head(source)
        if version is not None and found.version != version:
            raise self.place.stale(source)
        request = Request("copy", source)
        unchanged = Condition(version=found.version)
        if source == target and metadata is not None:
            answer = self.send(
                request,
                "set_blob_metadata",
                metadata=_to_azure(metadata),
                **_conditional(unchanged),
            )
            return _written(source, found.size_bytes, answer, metadata, found.properties)
        properties = self.properties_of(found)
        answer = self._write(
            repeated_by_copy(properties, self._tags(found, properties)),
            request,
            "start_copy_from_url",
            key=target,
            source_url=self._source_url(source),
            metadata=None if metadata is None else _to_azure(metadata),
            **_conditional(unchanged, "source_"),
        )
        if answer["copy_status"] != "success":
            return self._wait_for_copy(target)
        kept = found.metadata if metadata is None else metadata
        return _written(target, found.size_bytes, answer, kept, properties)

    def delete(self, key: str) -> None:
        """As :meth:`Store.delete`."""
        try:
            self.transfer(Request("delete", key), lambda: self._azure.delete(key), (), {202})
        except NotFound:
            return

    def _source_url(self, key: str) -> str:
        login = self._login.credentials
        url = f"{self._base}/{quote_path(f'{self._bucket}/{self.full(key)}')}"
        # A key or an identity also authorises the source; a SAS token must stand there.
        return f"{url}?{login.sas_token}" if login.sas_token and not login.account_key else url

    def _wait_for_copy(self, target: str) -> ObjectInfo:
        while True:
            time.sleep(COPY_POLL_S)
            properties = self.send(Request("copy", target), "get_blob_properties")
            if properties.copy.status == "success":
                return self._info(properties)
            if properties.copy.status != "pending":
                raise self.odd_answer("copy", f"the copy to `{target}` ended without success")


class _AzureUpload:
    """Blocks, then the list of them."""

    def __init__(
        self,
        store: AzureStore,
        key: str,
        metadata: Mapping[str, str],
        series: str,
        sizes: dict[int, int],
        properties: Properties,
        tags: str,
    ) -> None:
        self._store = store
        self._key = key
        self._metadata = metadata
        self._series = series
        self._sizes = sizes
        self._properties = properties
        self._tags = tags

    @property
    def state(self) -> Mapping[str, Any]:
        """As :attr:`Upload.state`."""
        return {
            "series": self._series,
            "metadata": dict(self._metadata),
            "properties": dict(self._properties),
            "tags": self._tags,
        }

    def put_part(self, number: int, content: Content) -> str:
        """As :meth:`Upload.put_part`."""
        name = _block_name(self._series, number)
        self._store.put_block(self._key, name, content, self._properties)
        self._sizes[number] = len(content)
        return ""

    def complete(
        self,
        condition: Condition | None = None,
        *,
        parts: int | None = None,
        metadata: Mapping[str, str] | None = None,
    ) -> ObjectInfo:
        """As :meth:`Upload.complete`."""
        sent = sorted(self._sizes.items())[:parts]
        return self._store.commit_blocks(
            self._key,
            [_block_name(self._series, number) for number, _ in sent],
            sum(size for _, size in sent),
            self._metadata if metadata is None else metadata,
            condition,
            properties=self._properties,
            tags=self._tags,
        )

    def abort(self) -> None:
        """As :meth:`Upload.abort`: the store drops the blocks by itself."""
        self._sizes.clear()


def _default_endpoint(source: StoreSource, login: Login[AzureCredentials]) -> str:
    account = login.credentials.account_name or source.account
    return f"https://{account}.{source.endpoint_suffix or 'blob.core.windows.net'}"


def _new_series() -> str:
    """What the names of one upload's blocks begin with, and no other's."""
    return os.urandom(8).hex()


def _block_name(series: str, number: int) -> str:
    return f"{series}{number:08d}"


def _condition_headers(condition: Condition | None) -> dict[str, str]:
    if condition is None:
        return {}
    if condition.absent:
        return {"if-none-match": "*"}
    return {} if condition.version is None else {"if-match": f'"{condition.version}"'}


def _to_azure(metadata: Mapping[str, str] | None) -> dict[str, str]:
    return {name.replace("-", "_"): value for name, value in (metadata or {}).items()}


def _written(
    key: str,
    size_bytes: int,
    answer: Mapping[str, Any],
    metadata: Mapping[str, str] | None,
    properties: Properties | None,
) -> ObjectInfo:
    return ObjectInfo(
        key,
        size_bytes,
        answer["last_modified"].timestamp(),
        answer["etag"].strip('"'),
        dict(metadata or {}),
        properties,
    )


def _conditional(condition: Condition | None, prefix: str = "") -> dict[str, Any]:
    from azure.core import MatchConditions

    if condition is None:
        return {}
    if condition.absent:
        return {f"{prefix}match_condition": MatchConditions.IfMissing}
    if condition.version is None:
        return {}
    return {
        f"{prefix}etag": f'"{condition.version}"',
        f"{prefix}match_condition": MatchConditions.IfNotModified,
    }
