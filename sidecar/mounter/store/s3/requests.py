"""S3's REST API, as far as it is spoken without the SDK: reading, and sending content."""

from __future__ import annotations

import re
from collections.abc import Mapping
from datetime import datetime
from email.utils import parsedate_to_datetime
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote_plus
from xml.etree.ElementTree import Element

from sidecar.errors import LoginRejected, SecretInvalid, SidecarError, StoreError
from sidecar.mounter.store.http.connection import Headers
from sidecar.mounter.store.http.pool import Endpoint
from sidecar.mounter.store.http.requests import Get, Listing, Put
from sidecar.mounter.store.http.retry import Retryable
from sidecar.mounter.store.http.xml_body import parse_xml
from sidecar.mounter.store.interface import PROVISIONAL, Condition, ObjectInfo, Page
from sidecar.mounter.store.login import Login
from sidecar.mounter.store.secrets import S3Credentials
from sidecar.mounter.store.signing import quote_path, quote_query, sigv4_headers
from sidecar.mounter.store.store_errors import Answer, Place, Request

if TYPE_CHECKING:
    from sidecar.spec import StoreSource

DEFAULT_REGION = "us-east-1"

_NO_ETAG = "~"
_ERROR = re.compile(rb"<(Code|StorageClass|Region|Endpoint)>([A-Za-z0-9_.:-]+)</")


class S3Requests:
    """Requests of S3, path-style behind an endpoint, by host name at AWS."""

    def __init__(self, source: StoreSource, login: Login[S3Credentials]) -> None:
        self._bucket = source.bucket
        self._prefix = source.prefix
        self._login = login
        self._region = login.credentials.region or DEFAULT_REGION
        self._chain: Any = None
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
        domain = "amazonaws.com.cn" if self._region.startswith("cn-") else "amazonaws.com"
        host = f"s3.{self._region}.{domain}"
        self._root = f"/{self._bucket}"
        if "." not in self._bucket:  # the certificate covers one label
            host = f"{self._bucket}.{host}"
            self._root = ""
        return Endpoint(
            login.use_tls, host, 443 if login.use_tls else 80, verify_tls=login.verify_tls
        )

    def get(self, key: str, version: str, byte_range: str) -> Get:
        """A GET signed in its headers."""
        path = quote_path(f"{self._root}/{self._prefix}{key}")
        signature = self._signature(path)
        return Get(path, {**signature, "range": byte_range, **if_match("if-match", version)})

    def request(
        self, method: str, key: str, query: Mapping[str, str], headers: Mapping[str, str]
    ) -> Put:
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
        return Put(method, target, {**headers, **signature})

    def head(self, key: str) -> Get:
        """HeadObject."""
        signed = self.request("HEAD", key, {}, {})
        return Get(signed.target, signed.headers)

    def uploads(self, key: str) -> Put:
        """ListMultipartUploads, of what begins with ``key``: its own come first.

        Keys are not asked for in ``encoding-type=url``: Ceph's gateway encodes them and does not
        say so, other servers do neither. ``parse_xml`` reads what XML cannot hold.
        """
        return self._about_bucket({"prefix": f"{self._prefix}{key}", "uploads": ""})

    def ownership(self) -> Put:
        """GetBucketOwnershipControls."""
        return self._about_bucket({"ownershipControls": ""})

    def _about_bucket(self, wanted: Mapping[str, str]) -> Put:
        path, query = quote_path(self._root) or "/", quote_query(wanted)
        return Put("GET", f"{path}?{query}", self._signature(path, query))

    def parse_uploads(self, body: bytes) -> list[tuple[str, str, float]]:
        """From ListMultipartUploadsResult: key, number, and when it was begun."""
        root, ns = parse_xml(body, "ListMultipartUploadsResult")
        skip = len(self._prefix)
        return [
            (
                _text(item, f"{ns}Key")[skip:],
                _text(item, f"{ns}UploadId"),
                datetime.fromisoformat(_text(item, f"{ns}Initiated")).timestamp(),
            )
            for item in root.iterfind(f"{ns}Upload")
        ]

    def source(self, key: str) -> str:
        """An object as ``x-amz-copy-source`` names it."""
        return quote_path(f"/{self._bucket}/{self._prefix}{key}")

    def list(self, listing: Listing) -> Get:
        """ListObjectsV2, with keys that XML cannot hold escaped."""
        wanted = {
            "list-type": "2",
            "encoding-type": "url",
            "prefix": self._prefix + listing.prefix,
            "max-keys": str(listing.limit),
        }
        if listing.delimiter:
            wanted["delimiter"] = listing.delimiter
        if listing.token:
            wanted["continuation-token"] = listing.token
        path, query = quote_path(self._root) or "/", quote_query(wanted)
        return Get(f"{path}?{query}", self._signature(path, query))

    def page(self, body: bytes) -> Page:
        """From ListBucketResult."""
        root, ns = parse_xml(body, "ListBucketResult")
        # Some servers do not know `encoding-type`; they do not repeat it.
        unquote = unquote_plus if root.findtext(f"{ns}EncodingType") == "url" else str
        skip = len(self._prefix)
        page = Page(next_token=root.findtext(f"{ns}NextContinuationToken") or None)
        if page.next_token is None and root.findtext(f"{ns}IsTruncated") == "true":
            raise ValueError("there is more, and no way to ask for it")
        for item in root.iterfind(f"{ns}CommonPrefixes"):
            page.prefixes.append(unquote(_text(item, f"{ns}Prefix"))[skip:])
        # The order of the fields is every server's own.
        key_tag, time_tag, size_tag, etag_tag = (
            f"{ns}{name}" for name in ("Key", "LastModified", "Size", "ETag")
        )
        for item in root.iterfind(f"{ns}Contents"):
            key = unquote(_text(item, key_tag))
            if key == self._prefix:
                continue
            mtime_s = datetime.fromisoformat(_text(item, time_tag)).timestamp()
            size_bytes = int(_text(item, size_tag))
            version = version_of(item.findtext(etag_tag), mtime_s, size_bytes)
            page.objects.append(ObjectInfo(key[skip:], size_bytes, mtime_s, version))
        return page

    def version(self, fields: Headers) -> str:
        """From the ETag, or what takes its place."""
        etag, modified = fields.get("etag"), fields.get("last-modified")
        if etag_of(etag) or not modified:
            return etag_of(etag)
        total = fields.get("content-range", "").rpartition("/")[2]
        size = total or fields.get("content-length", "")
        return version_of("", parsedate_to_datetime(modified).timestamp(), size)

    def refusal(self, status: int, fields: Headers, body: bytes) -> Answer:
        """From the XML body, and from the header that also a HEAD is answered with."""
        named = {name.decode(): text.decode() for name, text in _ERROR.findall(body)}
        return Answer(
            status,
            named.get("Code", ""),
            storage_class=named.get("StorageClass", ""),
            region=fields.get("x-amz-bucket-region", "") or named.get("Region", ""),
            asked_region=self._region,
            endpoint=named.get("Endpoint", ""),
        )

    def moved(self, fields: Headers) -> Endpoint | None:
        """AWS names the bucket's region when it was asked in another one."""
        region = fields.get("x-amz-bucket-region", "")
        if self._login.credentials.endpoint_url or region in {"", self._region}:
            return None
        self._region = region
        self.endpoint = self._find_endpoint()
        return self.endpoint

    def _signature(
        self,
        path: str,
        query: str = "",
        method: str = "GET",
        more: Mapping[str, str] | None = None,
    ) -> dict[str, str]:
        """The headers that sign a request; none for anonymous."""
        login = self._login.credentials
        if login.anonymous:
            return {}
        key_id, secret, token = login.access_key_id, login.secret_access_key, login.session_token
        if login.ambient:
            key_id, secret, token = self._ambient()
        return sigv4_headers(
            host=self.endpoint.authority,
            path=path,
            query=query,
            region=self._region,
            access_key_id=key_id or "",
            secret_access_key=secret or "",
            session_token=token,
            method=method,
            more=more,
        )

    def _ambient(self) -> tuple[str, str, str | None]:
        """From the SDK's chain, which renews what expires."""
        from botocore.exceptions import BotoCoreError, ClientError

        place = Place("S3", self._bucket, str(self.endpoint))
        failure: SidecarError | Retryable
        try:
            if self._chain is None:
                from botocore.session import Session

                self._chain = Session().get_credentials()
            if self._chain is not None:
                frozen = self._chain.get_frozen_credentials()
                return frozen.access_key, frozen.secret_key, frozen.token
            failure = no_identity(place)
        except ClientError as error:
            failure = _refused(error, place)
        except BotoCoreError as error:
            failure = Place("AWS login", self._bucket, "of the pod").from_transport(error)
        # Outside the handler: the SDK's exceptions may hold tokens.
        raise failure


def _refused(error: Any, place: Place) -> SidecarError | Retryable:
    """What the service that exchanges the pod's identity (STS) answered."""
    status = int(error.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0))
    code = str(error.response.get("Error", {}).get("Code", ""))
    if status == 429 or status >= 500:
        return place.from_answer(Answer(status, code), Request("login"))
    return place.login_rejected(code)


def _text(item: Element, name: str) -> str:
    text = item.findtext(name)
    if text is None:
        raise ValueError("a field is missing")
    return text


def no_identity(place: Place) -> StoreError:
    """There is nothing to log in with."""
    return LoginRejected(
        f"{place}: the pod has no ambient identity",
        "name a `secret`, or give the pod's service account a role",
    )


def etag_of(value: str | None) -> str:
    """An ETag without its quotes; empty where there is none."""
    return (value or "").removeprefix("W/").strip('"')


def version_of(etag: str | None, mtime_s: float, size_bytes: int | str) -> str:
    """The ETag; of a server that has none, time and size, which is weaker but not nothing.

    Such a server may still name an ETag when it is written to; reads of that version are Stale.
    """
    return etag_of(etag) or f"{_NO_ETAG}{int(mtime_s)}-{size_bytes}"


def if_match(name: str, version: str, *, quoted: bool = True) -> dict[str, str]:
    """The condition that the object is this version, named ``name``; none for what has no ETag."""
    if version.startswith((_NO_ETAG, PROVISIONAL)):
        return {}
    return {name: f'"{version}"' if quoted else version}


def condition_headers(condition: Condition | None, *, quoted: bool) -> dict[str, str]:
    """The headers that say a condition of a write; an ETag as HTTP has it, or without quotes."""
    if condition is None:
        return {}
    if condition.absent:
        return {"if-none-match": "*"}
    if condition.version is None:
        return {}
    return if_match("if-match", condition.version, quoted=quoted)
