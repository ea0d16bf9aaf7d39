"""An object's attributes, and their headers.

Sources: "Working with object metadata", "CopyObject", "PutObject", "Categorizing your objects
using tags", "Canned ACL", "Protecting data with server-side encryption".
"""

from __future__ import annotations

import base64
import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import parse_qsl

from tests.support.strict_s3.errors import S3Error
from tests.support.strict_s3.limits import Limits

METADATA = "x-amz-meta-"
REDIRECT = "x-amz-website-redirect-location"
STORAGE_CLASS = "x-amz-storage-class"
TAGGING = "x-amz-tagging"
ENCRYPTION = "x-amz-server-side-encryption"
ENCRYPTION_HEADERS = (
    ENCRYPTION,
    f"{ENCRYPTION}-aws-kms-key-id",
    f"{ENCRYPTION}-context",
    f"{ENCRYPTION}-bucket-key-enabled",
)
ARCHIVED = frozenset({"GLACIER", "DEEP_ARCHIVE"})
_SYSTEM = (
    "content-type",
    "content-encoding",
    "cache-control",
    "content-disposition",
    "content-language",
    "expires",
)
_STORAGE_CLASSES = frozenset({
    "STANDARD",
    "REDUCED_REDUNDANCY",
    "STANDARD_IA",
    "ONEZONE_IA",
    "INTELLIGENT_TIERING",
    "GLACIER",
    "GLACIER_IR",
    "DEEP_ARCHIVE",
})  # fmt: skip
_CANNED_ACLS = frozenset({
    "private",
    "public-read",
    "public-read-write",
    "authenticated-read",
    "aws-exec-read",
    "bucket-owner-read",
    "bucket-owner-full-control",
})  # fmt: skip
GRANT_HEADERS = {
    "x-amz-grant-full-control": "FULL_CONTROL",
    "x-amz-grant-read": "READ",
    "x-amz-grant-read-acp": "READ_ACP",
    "x-amz-grant-write-acp": "WRITE_ACP",
}
DEFAULT_TYPE = "binary/octet-stream"
DEFAULT_ENCRYPTION: Mapping[str, str] = {ENCRYPTION: "AES256"}


@dataclass(frozen=True)
class Attributes:
    """Everything that is fixed with an object except its content.

    Attributes:
        system: headers that are given back as they were: Content-Type and the like.
        metadata: the user's, without ``x-amz-meta-``.
        encryption: the headers of it.
        grants: (grantee, permission); a grantee is ``id=…`` or ``uri=…``. The owner's own is not
            among them.
    """

    system: dict[str, str] = field(default_factory=dict)
    metadata: dict[str, str] = field(default_factory=dict)
    redirect: str = ""
    storage_class: str = "STANDARD"
    encryption: dict[str, str] = field(default_factory=lambda: dict(DEFAULT_ENCRYPTION))
    tags: dict[str, str] = field(default_factory=dict)
    grants: tuple[tuple[str, str], ...] = ()

    @classmethod
    def from_json(cls, fields: Mapping[str, Any]) -> Attributes:
        """From what ``dataclasses.asdict`` made."""
        return cls(**{**fields, "grants": tuple((who, what) for who, what in fields["grants"])})

    def with_metadata_of(self, other: Attributes) -> Attributes:
        """What ``x-amz-metadata-directive: COPY`` keeps of another object's."""
        return dataclasses.replace(self, system=other.system, metadata=other.metadata)

    def with_tags(self, tags: dict[str, str]) -> Attributes:
        """With other tags."""
        return dataclasses.replace(self, tags=tags)

    def with_grants(self, grants: tuple[tuple[str, str], ...]) -> Attributes:
        """With another ACL."""
        return dataclasses.replace(self, grants=grants)

    def headers(self) -> dict[str, str]:
        """The headers of GetObject's and HeadObject's answers."""
        headers = {**self.system, **self.encryption_headers()}
        headers.setdefault("content-type", DEFAULT_TYPE)
        headers.update({f"{METADATA}{name}": _sent(text) for name, text in self.metadata.items()})
        if self.redirect:
            headers[REDIRECT] = self.redirect
        if self.storage_class != "STANDARD":
            headers[STORAGE_CLASS] = self.storage_class
        if self.tags:
            headers["x-amz-tagging-count"] = str(len(self.tags))
        return headers

    def encryption_headers(self) -> dict[str, str]:
        """The encryption headers that every answer about the object repeats."""
        return dict(self.encryption)


def read_attributes(
    headers: Mapping[str, str], limits: Limits, default_encryption: Mapping[str, str]
) -> Attributes:
    """The attributes that a request for a new object asks for.

    Raises:
        S3Error: MetadataTooLarge, InvalidStorageClass, InvalidTag, InvalidArgument.
    """
    if any(name.startswith(f"{ENCRYPTION}-customer") for name in headers):
        raise S3Error("InvalidRequest", "Keys of customers need a secure connection.")
    storage_class = headers.get(STORAGE_CLASS, "STANDARD")
    if storage_class not in _STORAGE_CLASSES:
        raise S3Error("InvalidStorageClass")
    system = {name: headers[name] for name in _SYSTEM if headers.get(name)}
    if "content-encoding" in system:
        # The client's framing of the body is not the object's encoding.
        kept = [word.strip() for word in system["content-encoding"].split(",")]
        system["content-encoding"] = ",".join(word for word in kept if word != "aws-chunked")
        if not system["content-encoding"]:
            del system["content-encoding"]
    return Attributes(
        system=system,
        metadata=read_metadata(headers, limits),
        redirect=headers.get(REDIRECT, ""),
        storage_class=storage_class,
        encryption=read_encryption(headers) or dict(default_encryption),
        tags=read_tags(headers.get(TAGGING, ""), limits),
        grants=read_grants(headers),
    )


def read_metadata(headers: Mapping[str, str], limits: Limits) -> dict[str, str]:
    """The user's metadata. Raises S3Error: MetadataTooLarge."""
    metadata = {
        name.removeprefix(METADATA): value.encode("latin-1").decode("utf-8", "replace")
        for name, value in headers.items()
        if name.startswith(METADATA)
    }
    size = sum(len(name) + len(text.encode()) for name, text in metadata.items())
    if size > limits.max_metadata_bytes:
        sizes = {"Size": size, "MaxSizeAllowed": limits.max_metadata_bytes}
        raise S3Error("MetadataTooLarge", fields=sizes)
    return metadata


def read_encryption(headers: Mapping[str, str]) -> dict[str, str]:
    """The encryption that is asked for; empty for none. Raises S3Error: InvalidArgument."""
    found = {name: headers[name] for name in ENCRYPTION_HEADERS if name in headers}
    if found and found.get(ENCRYPTION) not in {"AES256", "aws:kms", "aws:kms:dsse"}:
        raise S3Error("InvalidArgument", "The encryption method specified is not supported")
    if found.get(ENCRYPTION) == "AES256" and f"{ENCRYPTION}-aws-kms-key-id" in found:
        raise S3Error("InvalidArgument", "A key of KMS needs the method aws:kms")
    return found


def read_tags(text: str, limits: Limits) -> dict[str, str]:
    """From ``x-amz-tagging``: a query. Raises S3Error: InvalidTag, BadRequest, InvalidArgument."""
    try:
        pairs = parse_qsl(text, keep_blank_values=True, strict_parsing=bool(text))
    except ValueError:
        raise S3Error("InvalidArgument", "The header 'x-amz-tagging' is no query.") from None
    return check_tags(pairs, limits)


def check_tags(pairs: list[tuple[str, str]], limits: Limits) -> dict[str, str]:
    """Tags by name. Raises S3Error: InvalidTag, BadRequest."""
    if len(pairs) > limits.max_tags:
        raise S3Error("BadRequest", f"Object tags cannot be greater than {limits.max_tags}")
    if len(dict(pairs)) < len(pairs):
        raise S3Error("InvalidTag", "Cannot provide multiple Tags with the same key")
    for name, value in pairs:
        if not 1 <= len(name) <= 128:
            raise S3Error("InvalidTag", "The TagKey you have provided is invalid")
        if len(value) > 256:
            raise S3Error("InvalidTag", "The TagValue you have provided is invalid")
    return dict(pairs)


def read_grants(headers: Mapping[str, str]) -> tuple[tuple[str, str], ...]:
    """An ACL from ``x-amz-acl`` or ``x-amz-grant-…``. Raises S3Error: InvalidArgument."""
    canned = headers.get("x-amz-acl", "private")
    if canned not in _CANNED_ACLS:
        raise S3Error("InvalidArgument", fields={"ArgumentName": "x-amz-acl"})
    groups = "uri=http://acs.amazonaws.com/groups/global"
    grants = {
        "public-read": [(f"{groups}/AllUsers", "READ")],
        "public-read-write": [(f"{groups}/AllUsers", "READ"), (f"{groups}/AllUsers", "WRITE")],
        "authenticated-read": [(f"{groups}/AuthenticatedUsers", "READ")],
    }.get(canned, [])
    for name, permission in GRANT_HEADERS.items():
        for grantee in filter(None, headers.get(name, "").split(",")):
            kind, _, value = grantee.strip().partition("=")
            if kind not in {"id", "uri"} or not value:
                raise S3Error("InvalidArgument", fields={"ArgumentName": name})
            grants.append((f"{kind}={value.strip(chr(34))}", permission))
    return tuple(grants)


def names_acl(headers: Mapping[str, str]) -> bool:
    """Whether a request sets an ACL, for which the login needs PutObjectAcl."""
    return "x-amz-acl" in headers or any(name in headers for name in GRANT_HEADERS)


def _sent(text: str) -> str:
    """A value of user metadata in a header: what is not ASCII comes as RFC 2047 says."""
    if text.isascii():
        return text
    return f"=?UTF-8?B?{base64.b64encode(text.encode()).decode()}?="
