"""Objects with every attribute that a store has, written and read by independent clients."""

from __future__ import annotations

import io
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

from tests.support.clouds import AzureCloud, Cloud, GcsCloud, S3Cloud

TYPE, ENCODING, CONTROL = "text/csv; charset=utf-8", "aes128gcm", "max-age=3600, public"
DISPOSITION, LANGUAGE = 'attachment; filename="a b.csv"', "de-CH"
EXPIRES = "Thu, 01 Jan 2032 00:00:00 GMT"
TAGS = {"team": "a+b = c", "ärger": "ü/x"}
FOREIGN = {
    # Non-ASCII values as each store takes them: RFC 2047, UTF-8, percent-encoded.
    "s3": {"foreign_key": "=?UTF-8?B?R3LDvMOfZQ==?=", "other-tool": "Gr%C3%BC%C3%9Fe  x"},
    "gcs": {"Foreign_Key": "Grüße", "other-tool": "1"},
    "azure": {"Foreign_Key": "Gr%C3%BC%C3%9Fe  x", "_other": "1"},
}
KEY_OF_KMS = "arn:aws:kms:us-east-1:111122223333:key/1234abcd"
EVERYBODY = "http://acs.amazonaws.com/groups/global/AllUsers"

Description = dict[str, Any]


def write(cloud: Cloud, key: str, data: bytes, *, tags: bool = True) -> None:
    """Write an object with all attributes."""
    if isinstance(cloud, GcsCloud):
        blob = cloud.server.client().bucket(cloud.bucket).blob(key)
        blob.metadata = FOREIGN["gcs"]
        blob.cache_control, blob.content_disposition = CONTROL, DISPOSITION
        blob.content_encoding, blob.content_language = ENCODING, LANGUAGE
        blob.storage_class = "NEARLINE"
        blob.custom_time = datetime(2020, 1, 2, tzinfo=UTC)
        blob.upload_from_string(data, content_type=TYPE)
    elif isinstance(cloud, AzureCloud):
        from azure.storage.blob import ContentSettings, StandardBlobTier

        with cloud.server.client() as client:
            client.get_blob_client(cloud.bucket, key).upload_blob(
                data,
                overwrite=True,
                metadata=FOREIGN["azure"],
                content_settings=ContentSettings(
                    content_type=TYPE,
                    content_encoding=ENCODING,
                    content_language=LANGUAGE,
                    content_disposition=DISPOSITION,
                    cache_control=CONTROL,
                ),
                standard_blob_tier=StandardBlobTier.COOL,
                tags={"team": "a b/c"} if tags else None,
            )
    else:
        assert isinstance(cloud, S3Cloud)
        write_s3(cloud, key, data, {"x-amz-tagging": _query(TAGS)} if tags else {})


def write_s3(cloud: Cloud, key: str, data: bytes, more: Mapping[str, str]) -> None:
    """Write it to S3, with additional headers."""
    assert isinstance(cloud, S3Cloud)
    headers = {
        "Content-Encoding": ENCODING,
        "Cache-Control": CONTROL,
        "Content-Disposition": DISPOSITION,
        "Content-Language": LANGUAGE,
        "Expires": EXPIRES,
        "x-amz-storage-class": "STANDARD_IA",
        "x-amz-website-redirect-location": "/elsewhere",
        "x-amz-server-side-encryption": "aws:kms",
        "x-amz-server-side-encryption-aws-kms-key-id": KEY_OF_KMS,
        **{f"x-amz-meta-{name}": value for name, value in FOREIGN["s3"].items()},
        **more,
    }
    _s3(cloud)._execute(
        "PUT", cloud.bucket, key, body=data, headers={"Content-Type": TYPE, **headers}
    )


def seen(cloud: Cloud, key: str) -> Description:
    """The object's attributes, except those that every write changes, and our own metadata."""
    if isinstance(cloud, GcsCloud):
        blob = cloud.server.client().bucket(cloud.bucket).get_blob(key)
        names = ("cache_control", "content_disposition", "content_encoding", "content_language")
        more = ("content_type", "storage_class", "custom_time", "kms_key_name")
        found = {name: getattr(blob, name) for name in (*names, *more)}
        return {**found, "metadata": _foreign(blob.metadata)}
    if isinstance(cloud, AzureCloud):
        with cloud.server.client() as client:
            blob = client.get_blob_client(cloud.bucket, key)
            properties = blob.get_blob_properties()
            content = dict(properties.content_settings)
            del content["content_md5"]
            return {
                **content,
                "tier": properties.blob_tier,
                "tags": blob.get_blob_tags(),
                "metadata": _foreign(properties.metadata),
            }
    return _seen_on_s3(cloud, key)


def _seen_on_s3(cloud: Cloud, key: str) -> Description:
    client = _s3(cloud)
    headers = client.stat_object(cloud.bucket, key).metadata
    changing = {"date", "etag", "last-modified", "content-length", "x-amz-request-id"}
    prefixes = ("content-", "cache-", "expires", "x-amz-storage", "x-amz-server-side", "x-amz-web")
    found = {name.lower(): value for name, value in headers.items()}
    metadata = {
        name.removeprefix("x-amz-meta-"): value
        for name, value in found.items()
        if name.startswith("x-amz-meta-")
    }
    return {
        **{
            name: value
            for name, value in found.items()
            if name.startswith(prefixes) and name not in changing
        },
        "tags": dict(client.get_object_tags(cloud.bucket, key) or {}),
        "metadata": _foreign(metadata),
    }


def grants(cloud: Cloud, key: str) -> set[tuple[str, str]]:
    """The grants of an S3 object's ACL."""
    from xml.etree import ElementTree as ET

    reply = _s3(cloud)._execute("GET", cloud.bucket, key, query_params={"acl": ""})
    root = ET.parse(io.BytesIO(reply.data)).getroot()
    ns = root.tag.partition("}")[0] + "}"
    return {
        (
            grant.findtext(f"{ns}Grantee/{ns}ID") or grant.findtext(f"{ns}Grantee/{ns}URI") or "",
            grant.findtext(f"{ns}Permission") or "",
        )
        for grant in root.iter(f"{ns}Grant")
    }


def _foreign(metadata: Mapping[str, str] | None) -> dict[str, str]:
    ours = {"mode", "uid", "gid", "mtime"}
    return {name: value for name, value in (metadata or {}).items() if name not in ours}


def _query(tags: Mapping[str, str]) -> str:
    from urllib.parse import quote, urlencode

    return urlencode(tags, quote_via=quote)


def _s3(cloud: Cloud) -> Any:
    assert isinstance(cloud, S3Cloud)
    return cloud.server.client()
