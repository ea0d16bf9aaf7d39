"""Requests of S3's REST API, signed, and its responses as values. No SDK."""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, NamedTuple, cast
from urllib.parse import unquote_plus
from xml.etree.ElementTree import Element

from sidecar.errors import SecretInvalid
from sidecar.mounter.store.http.fields import Headers
from sidecar.mounter.store.http.pool import Endpoint
from sidecar.mounter.store.http.signed_request import BufferedResponse, SignedRequest
from sidecar.mounter.store.http.values import (
    http_time_s,
    iso_time_s,
    iso_times_s,
    parse_key,
    parse_keys,
    parse_number,
    parse_numbers,
    parse_versions,
)
from sidecar.mounter.store.http.xml_body import parse_xml
from sidecar.mounter.store.interface import ObjectInfo, Page
from sidecar.mounter.store.login import Login
from sidecar.mounter.store.request_builder import ListQuery, parse_entries
from sidecar.mounter.store.s3.credentials import S3Credentials
from sidecar.mounter.store.s3.properties import properties_in
from sidecar.mounter.store.s3.sdk import AwsIdentity
from sidecar.mounter.store.s3.versions import etag_of, if_match, version_of
from sidecar.mounter.store.signing import quote_path, quote_query, sigv4_headers
from sidecar.mounter.store.store_errors import ErrorResponse, StoreErrors

if TYPE_CHECKING:
    from sidecar.contract.spec import StoreSource

DEFAULT_REGION = "us-east-1"

METADATA = "x-amz-meta-"
ACCEPTED = frozenset({200, 201, 204})
"""The statuses of a request that worked."""

_ERROR = re.compile(rb"<(Code|StorageClass|Region|Endpoint)>([A-Za-z0-9_.:-]+)</")


class SlowResponse(NamedTuple):
    """The response to a request that the store may work on for long.

    Attributes:
        fields: text of the elements below the root, by their names.
        date_s: the store's clock, seconds since the epoch.
        attempts: their number.
    """

    fields: Mapping[str, str]
    date_s: float
    attempts: int


class S3Requests:
    """Requests of S3, path-style behind an endpoint, by host name at AWS.

    Attributes:
        endpoint: of the requests.
        region: the bucket's, once a redirect has told it.
    """

    def __init__(self, source: StoreSource, login: Login[S3Credentials]) -> None:
        self._bucket = source.bucket
        self._prefix = source.prefix
        self._login = login
        self.region = login.credentials.region or DEFAULT_REGION
        self._pod_identity = AwsIdentity()
        self.endpoint = self._find_endpoint()

    def _find_endpoint(self) -> Endpoint:
        login = self._login.credentials
        if login.endpoint_url:
            try:
                endpoint = Endpoint.parse(login.endpoint_url, verify_tls=login.verify_tls)
            except ValueError as error:
                raise SecretInvalid(f"AWS_ENDPOINT_URL: {error}") from None
            self._root = f"{endpoint.path}/{self._bucket}"
            return endpoint
        domain = "amazonaws.com.cn" if self.region.startswith("cn-") else "amazonaws.com"
        service = "s3.dualstack" if login.dual_stack else "s3"
        host = f"{service}.{self.region}.{domain}"
        self._root = f"/{self._bucket}"
        if "." not in self._bucket:  # the certificate covers one label
            host = f"{self._bucket}.{host}"
            self._root = ""
        return Endpoint(
            login.use_tls, host, 443 if login.use_tls else 80, verify_tls=login.verify_tls
        )

    def get(self, key: str, version: str | None, byte_range: str) -> SignedRequest:
        """A GET signed in its headers."""
        path = quote_path(f"{self._root}/{self._prefix}{key}")
        condition = {} if version is None else if_match("if-match", version)
        return SignedRequest(
            "GET", path, {**self._signature(path), "range": byte_range, **condition}
        )

    def request(
        self, method: str, key: str, query: Mapping[str, str], headers: Mapping[str, str]
    ) -> SignedRequest:
        """Any request about one object.

        Args:
            headers: lower case.
        """
        path, parameters = quote_path(f"{self._root}/{self._prefix}{key}"), quote_query(query)
        signed = {
            name: value
            for name, value in headers.items()
            if name.startswith("x-amz-") or name == "content-type"
        }
        signature = self._signature(path, parameters, method, signed)
        target = f"{path}?{parameters}" if parameters else path
        return SignedRequest(method, target, {**headers, **signature})

    def uploads(self, key: str) -> SignedRequest:
        """ListMultipartUploads for keys that begin with ``key``: its own uploads come first.

        Keys are not asked for in ``encoding-type=url``: Ceph's gateway encodes them without saying
        so, and other servers do neither. ``parse_xml`` reads what XML cannot hold.
        """
        return self._about_bucket({"prefix": f"{self._prefix}{key}", "uploads": ""})

    def ownership(self) -> SignedRequest:
        """GetBucketOwnershipControls."""
        return self._about_bucket({"ownershipControls": ""})

    def _about_bucket(self, wanted: Mapping[str, str]) -> SignedRequest:
        path, query = quote_path(self._root) or "/", quote_query(wanted)
        return SignedRequest("GET", f"{path}?{query}", self._signature(path, query))

    def parse_uploads(self, body: bytes) -> list[tuple[str, str, float]]:
        """From ListMultipartUploadsResult: key, number, and when it was begun."""
        root, ns = parse_xml(body, "ListMultipartUploadsResult")
        skip = len(self._prefix)
        return [
            (
                _text(item, f"{ns}Key")[skip:],
                _text(item, f"{ns}UploadId"),
                iso_time_s(_text(item, f"{ns}Initiated")),
            )
            for item in root.iterfind(f"{ns}Upload")
        ]

    def source(self, key: str) -> str:
        """An object in the form of ``x-amz-copy-source``."""
        return quote_path(f"/{self._bucket}/{self._prefix}{key}")

    def list(self, query: ListQuery) -> SignedRequest:
        """ListObjectsV2, with keys that XML cannot hold escaped."""
        wanted = {
            "list-type": "2",
            "encoding-type": "url",
            "prefix": self._prefix + query.prefix,
            "max-keys": str(query.limit),
        }
        if query.delimiter:
            wanted["delimiter"] = query.delimiter
        if query.token:
            wanted["continuation-token"] = query.token
        path, parameters = quote_path(self._root) or "/", quote_query(wanted)
        return SignedRequest("GET", f"{path}?{parameters}", self._signature(path, parameters))

    def page(self, body: bytes, query: ListQuery, hide: Callable[[str], None]) -> Page:
        """From ListBucketResult."""
        root, ns = parse_xml(body, "ListBucketResult")
        # Servers that do not support `encoding-type` do not repeat it.
        unquote = unquote_plus if root.findtext(f"{ns}EncodingType") == "url" else parse_key
        skip, begins = len(self._prefix), self._prefix + query.prefix
        page = Page(next_token=root.findtext(f"{ns}NextContinuationToken") or None)
        if page.next_token is None and root.findtext(f"{ns}IsTruncated") == "true":
            raise ValueError("there is more, and no way to ask for it")
        for item in root.iterfind(f"{ns}CommonPrefixes"):
            prefix = unquote(_text(item, f"{ns}Prefix"))
            if not prefix.startswith(begins):
                hide(prefix)
            else:
                page.prefixes.append(prefix[skip:])
        # Each server has its own order of fields.
        key_tag, time_tag, size_tag, etag_tag = (
            f"{ns}{name}" for name in ("Key", "LastModified", "Size", "ETag")
        )

        def parse(items: Sequence[Element]) -> Sequence[ObjectInfo]:
            keys = parse_keys(list(map(unquote, _texts(items, key_tag))), begins)
            times_s = iso_times_s(_texts(items, time_tag))
            sizes = parse_numbers(_texts(items, size_tag))
            etags = parse_versions([item.findtext(etag_tag, "") for item in items])
            return [
                ObjectInfo(key[skip:], size, time_s, version_of(etag, time_s, size))
                for key, time_s, size, etag in zip(keys, times_s, sizes, etags, strict=True)
                if key != self._prefix
            ]

        page.objects.extend(
            parse_entries(
                root.findall(f"{ns}Contents"), parse, lambda item: hide(item.findtext(key_tag, ""))
            )
        )
        return page

    def parse_head(self, key: str, fields: Headers) -> ObjectInfo:
        """From the response to HEAD. Raises ValueError, LookupError for missing fields."""
        size_bytes = parse_number(fields["content-length"])
        mtime_s = http_time_s(fields["last-modified"])
        metadata = {
            name.removeprefix(METADATA): value
            for name, value in fields.items()
            if name.startswith(METADATA)
        }
        version = version_of(fields.get("etag"), mtime_s, size_bytes)
        return ObjectInfo(key, size_bytes, mtime_s, version, metadata, properties_in(fields))

    def version(self, fields: Headers) -> str:
        """From the ETag, or else from time and size."""
        etag, modified = fields.get("etag"), fields.get("last-modified")
        if etag_of(etag) or not modified:
            return etag_of(etag)
        total = fields.get("content-range", "").rpartition("/")[2]
        try:
            size_bytes = parse_number(total or fields.get("content-length", ""))
            return version_of("", http_time_s(modified), size_bytes)
        except (ValueError, LookupError):
            return ""

    def parse_error(self, status: int, fields: Headers, body: bytes) -> ErrorResponse:
        """From the XML body, and the header, which is all that a HEAD gets."""
        named = {name.decode(): text.decode() for name, text in _ERROR.findall(body)}
        return ErrorResponse(
            status,
            named.get("Code", ""),
            storage_class=named.get("StorageClass", ""),
            region=fields.get("x-amz-bucket-region", "") or named.get("Region", ""),
            asked_region=self.region,
            endpoint=named.get("Endpoint", ""),
        )

    def redirect(self, fields: Headers) -> Endpoint | None:
        """The endpoint in the bucket's region, which AWS names if another region is asked."""
        region = fields.get("x-amz-bucket-region", "")
        if self._login.credentials.endpoint_url or region in {"", self.region}:
            return None
        self.region = region
        self.endpoint = self._find_endpoint()
        return self.endpoint

    def _signature(
        self,
        path: str,
        query: str = "",
        method: str = "GET",
        more: Mapping[str, str] | None = None,
    ) -> dict[str, str]:
        """The headers that sign a request; empty for anonymous."""
        login = self._login.credentials
        if login.anonymous:
            return {}
        key_id, secret, token = login.access_key_id, login.secret_access_key, login.session_token
        if login.ambient:
            errors = StoreErrors("S3", self._bucket, str(self.endpoint))
            key_id, secret, token = self._pod_identity.keys(errors, self._login.epoch)
        return sigv4_headers(
            host=self.endpoint.authority,
            path=path,
            query=query,
            region=self.region,
            access_key_id=key_id or "",
            secret_access_key=secret or "",
            session_token=token,
            method=method,
            more=more,
        )


def _text(item: Element, name: str) -> str:
    text = item.findtext(name)
    if text is None:
        raise ValueError("a field is missing")
    return text


def _texts(items: Sequence[Element], name: str) -> Sequence[str]:
    """The same field of each. Raises LookupError if one lacks it."""
    texts = [item.findtext(name) for item in items]
    if None in texts:
        raise LookupError("a field is missing")
    return cast("list[str]", texts)


def metadata_headers(metadata: Mapping[str, str] | None) -> dict[str, str]:
    """The headers that give an object user metadata."""
    return {f"{METADATA}{name}": value for name, value in (metadata or {}).items()}


def date_s(response: BufferedResponse) -> float:
    """Seconds since the epoch, from ``Date``: the time that a new object gets."""
    try:
        return http_time_s(response.headers["date"])
    except (ValueError, LookupError):
        return time.time()
