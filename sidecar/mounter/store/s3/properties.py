"""The properties of S3's objects, and the headers that repeat them. Imports no SDK.

Source: "HeadObject", "CopyObject", "GetObjectTagging", "GetObjectAcl" and
"GetBucketOwnershipControls", https://docs.aws.amazon.com/AmazonS3/latest/API/.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping

from sidecar.mounter.store.interface import Properties
from sidecar.mounter.store.object_properties import DISTINCT

CONTENT = (
    "cache-control",
    "content-disposition",
    "content-encoding",
    "content-language",
    "content-type",
    "expires",
)
REDIRECT = "x-amz-website-redirect-location"
CLASS = "x-amz-storage-class"
ENCRYPTION = (
    "x-amz-server-side-encryption",
    "x-amz-server-side-encryption-aws-kms-key-id",
    "x-amz-server-side-encryption-bucket-key-enabled",
)
TAG_COUNT = "x-amz-tagging-count"
_SHOWN = (*CONTENT, REDIRECT, CLASS, *ENCRYPTION, TAG_COUNT)
_TRANSFER_CODING = "aws-chunked"


def properties_in(fields: Mapping[str, str]) -> Properties:
    """From the response to HEAD."""
    return _shown(tuple(map(fields.get, _SHOWN)))


@functools.lru_cache(DISTINCT)
def _shown(values: tuple[str | None, ...]) -> Properties:
    found = {name: value for name, value in zip(_SHOWN, values, strict=True) if value}
    if _TRANSFER_CODING in found.get("content-encoding", ""):
        # The coding of the transfer, which some servers keep. It must not be repeated.
        codings = [coding.strip() for coding in found.pop("content-encoding").split(",")]
        left = ", ".join(coding for coding in codings if coding != _TRANSFER_CODING)
        found.update({"content-encoding": left} if left else {})
    if found.get(TAG_COUNT) == "0":
        del found[TAG_COUNT]
    return found
