"""The documents of a multipart upload, which S3's REST API and Google's XML API share.

Source: "CompleteMultipartUpload", https://docs.aws.amazon.com/AmazonS3/latest/API/.
"""

from __future__ import annotations

from collections.abc import Iterable
from html import escape  # xml.sax.saxutils imports urllib.request, and that half of the library

from sidecar.mounter.store.http.xml_body import parse_xml

_NAMESPACE = "http://s3.amazonaws.com/doc/2006-03-01/"


def part_list(parts: Iterable[tuple[int, str]]) -> bytes:
    """The body of the request that completes an upload: number and ETag of each part."""
    lines = [
        f"<Part><PartNumber>{number}</PartNumber><ETag>{escape(etag, quote=False)}</ETag></Part>"
        for number, etag in parts
    ]
    document = f'<CompleteMultipartUpload xmlns="{_NAMESPACE}">{"".join(lines)}'
    return f"{document}</CompleteMultipartUpload>".encode()


def parse_fields(body: bytes) -> dict[str, str] | None:
    """Text of the elements below the root; None for an error. Raises ValueError: no XML."""
    if not body:
        return {}
    root, namespace = parse_xml(body)
    if root.tag == f"{namespace}Error":
        return None
    return {field.tag.removeprefix(namespace): field.text or "" for field in root}
