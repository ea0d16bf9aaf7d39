"""The headers that repeat the properties of an object of S3 in a new one. Imports no SDK.

Source: "CopyObject", "GetObjectTagging", "GetObjectAcl" and "GetBucketOwnershipControls",
https://docs.aws.amazon.com/AmazonS3/latest/API/.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from urllib.parse import quote, urlencode
from xml.etree.ElementTree import Element

from sidecar.errors import AccessDenied, NotFound, StoreError, StoreProtocolError, Unsupported
from sidecar.mounter.store.http.xml_body import parse_xml
from sidecar.mounter.store.interface import ObjectInfo, Properties
from sidecar.mounter.store.object_properties import Group, Repeated
from sidecar.mounter.store.s3.client import S3Client
from sidecar.mounter.store.s3.properties import CLASS, CONTENT, ENCRYPTION, REDIRECT, TAG_COUNT
from sidecar.mounter.store.s3.requests import S3Requests
from sidecar.mounter.store.store_errors import Call, StoreErrors

_UNREADABLE_CLASSES = frozenset({"GLACIER", "DEEP_ARCHIVE"})
"""Objects of these classes must be restored before they can be read."""
_GRANTS = {
    "READ": "x-amz-grant-read",
    "READ_ACP": "x-amz-grant-read-acp",
    "WRITE_ACP": "x-amz-grant-write-acp",
    "FULL_CONTROL": "x-amz-grant-full-control",
}

TAGS, ACL = "tags", "ACL"
_REFUSED = (AccessDenied, Unsupported, StoreProtocolError)


class S3Properties:
    """The headers that repeat properties, for one bucket. Safe to use from any thread.

    HEAD brings content headers, storage class, encryption and the number of tags. One request
    fetches the tags if there are any. Nothing says whether an object has grants, and a request
    for each save would be too expensive. So the bucket is asked once whether ACLs are in use; in
    buckets made since April 2023 they are not unless an owner chose them.
    """

    def __init__(self, store: S3Client, requests: S3Requests) -> None:
        self._store = store
        self._requests = requests
        self._lock = threading.Lock()
        self._has_acls: bool | None = None

    def repeated(self, like: ObjectInfo | None, properties: Properties) -> Repeated:
        """For a new object."""
        plain = {name: properties[name] for name in (*CONTENT, REDIRECT) if name in properties}
        if like is None:
            return Repeated(plain, {})
        groups: dict[str, Group] = {}
        if TAG_COUNT in properties and self._store.property_keeper.may(TAGS):
            tags = self._tags(like.key)
            groups |= {TAGS: Group({"x-amz-tagging": tags})} if tags else {}
        return Repeated(plain, groups | self._groups(like, properties))

    def repeated_by_copy(self, source: ObjectInfo, *, replace: bool) -> Repeated:
        """For CopyObject, which copies tags by itself.

        Args:
            replace: other metadata are given; then CopyObject drops the content headers, too.
        """
        properties = self._store.properties_of(source)
        names = (*CONTENT, REDIRECT) if replace else (REDIRECT,)
        plain = {name: properties[name] for name in names if name in properties}
        # A login that may not read tags does not see that there are some, and may not copy them.
        groups = {TAGS: Group({}, {"x-amz-tagging-directive": "REPLACE"})}
        return Repeated(plain, groups | self._groups(source, properties))

    def _groups(self, like: ObjectInfo, properties: Properties) -> dict[str, Group]:
        storage_class = properties.get(CLASS, "")
        groups = {
            ACL: self._grants(like.key) if self._asks_for_grants() else {},
            "encryption": {name: properties[name] for name in ENCRYPTION if name in properties},
            "storage class": {CLASS: storage_class}
            if storage_class and storage_class not in _UNREADABLE_CLASSES
            else {},
        }
        return {name: Group(headers) for name, headers in groups.items() if headers}

    def _tags(self, key: str) -> str:
        """The tags in the form of ``x-amz-tagging``: a query string."""
        try:
            root, ns = self._ask(key, "tagging", "Tagging")
            tags = [
                (tag.findtext(f"{ns}Key") or "", tag.findtext(f"{ns}Value") or "")
                for tag in root.iter(f"{ns}Tag")
            ]
        except NotFound:
            return ""
        except _REFUSED as error:
            self._store.property_keeper.give_up(TAGS, error)
            return ""
        return urlencode(tags, quote_via=quote)

    def _grants(self, key: str) -> dict[str, str]:
        """The headers that repeat an object's grants; empty if only its owner has any."""
        try:
            root, ns = self._ask(key, "acl", "AccessControlPolicy")
            granted = list(_grants_in(root, ns, self._store.errors))
        except NotFound:
            return {}
        except _REFUSED as error:
            self._store.property_keeper.give_up(ACL, error)
            return {}
        owner = f'id="{root.findtext(f"{ns}Owner/{ns}ID") or ""}"'
        given: dict[str, dict[str, None]] = {}  # in order, each once
        for permission, grantee in granted:
            if permission in _GRANTS:
                given.setdefault(_GRANTS[permission], {})[grantee] = None
        if given == {_GRANTS["FULL_CONTROL"]: {owner: None}}:
            return {}
        return {name: ", ".join(grantees) for name, grantees in given.items()}

    def _asks_for_grants(self) -> bool:
        if not self._store.property_keeper.may(ACL):
            return False
        with self._lock:
            if self._has_acls is None:
                self._has_acls = self._bucket_has_acls()
            return self._has_acls

    def _bucket_has_acls(self) -> bool:
        """Whether ACLs are in use; False if that cannot be found out."""
        try:
            reply = self._store.transfer(Call("head"), self._requests.ownership, (), {200, 404})
        except AccessDenied:
            return False  # few logins may ask this
        except StoreError as error:
            self._store.property_keeper.give_up(ACL, error)
            return False
        if reply.status == 404:
            # A bucket older than that choice answers this; other servers have other words.
            return b"<Code>OwnershipControlsNotFoundError<" in reply.content
        try:
            root, ns = parse_xml(reply.content, "OwnershipControls")
        except ValueError:
            return False  # a server without this request lists the bucket instead
        chosen = root.findtext(f"{ns}Rule/{ns}ObjectOwnership")
        return chosen in {"BucketOwnerPreferred", "ObjectWriter"}

    def _ask(self, key: str, what: str, root: str) -> tuple[Element, str]:
        reply = self._store.request(Call("head", key), "GET", key, {what: ""})
        try:
            return parse_xml(reply.content, root)
        except ValueError:
            raise self._store.errors.protocol(f"its {what} of `{key}` cannot be read") from None


def _grants_in(root: Element, ns: str, errors: StoreErrors) -> Iterator[tuple[str, str]]:
    """(permission, grantee as headers name it). Raises StoreProtocolError."""
    for grant in root.iter(f"{ns}Grant"):
        permission = grant.findtext(f"{ns}Permission") or ""
        for element, name in (("ID", "id"), ("URI", "uri"), ("EmailAddress", "emailAddress")):
            value = grant.findtext(f"{ns}Grantee/{ns}{element}")
            if value:
                if not (value.isascii() and value.isprintable()):
                    raise errors.protocol("a grantee that no header can name")
                yield permission, f'{name}="{value}"'
                break
