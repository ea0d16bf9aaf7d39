"""XML in and out."""

from __future__ import annotations

import re
import time
from collections.abc import Mapping, Sequence
from urllib.parse import quote_plus
from xml.etree import ElementTree as ET
from xml.sax.saxutils import escape

from tests.support.strict_s3.errors import S3Error
from tests.support.strict_s3.http_front import Answer

NAMESPACE = "http://s3.amazonaws.com/doc/2006-03-01/"
_DECLARATION = '<?xml version="1.0" encoding="UTF-8"?>\n'
_CONTROL = re.compile("[\x01-\x1f\x7f\ufffe\uffff]")

Fields = Sequence[tuple[str, object]]
"""Elements in their order; what is inside of one is text, or again elements."""


def document(root: str, fields: Fields | str, *, namespace: str = NAMESPACE) -> bytes:
    """An XML document."""
    xmlns = f' xmlns="{namespace}"' if namespace else ""
    return f"{_DECLARATION}<{root}{xmlns}>{_inside(fields)}</{root}>".encode()


def xml_answer(root: str, fields: Fields | str, headers: Mapping[str, str] | None = None) -> Answer:
    """200 and a document."""
    kind = {"Content-Type": "application/xml"}
    return Answer(200, {**kind, **(headers or {})}, document(root, fields))


def error_document(error: S3Error, resource: str, request_id: str) -> bytes:
    """What tells a refusal."""
    fields = [("Code", error.code), ("Message", str(error)), *error.fields.items()]
    fields += [("Resource", resource), ("RequestId", request_id), ("HostId", "strict")]
    return document("Error", fields, namespace="")


def _inside(content: object) -> str:
    if isinstance(content, (list, tuple)):
        return "".join(f"<{name}>{_inside(value)}</{name}>" for name, value in content)
    return text_of(str(content))


def text_of(text: str) -> str:
    """Escaped as S3 does it: a control character is a reference, which XML 1.0 forbids.

    Source: "ListObjectsV2": "An object key can contain any Unicode character. However, the XML
    1.0 parser cannot parse certain characters, such as characters with an ASCII value from 0 to
    10. For characters that aren't supported in XML 1.0, you can add [encoding-type=url]".
    """
    return _CONTROL.sub(lambda found: f"&#x{ord(found[0]):x};", escape(text, {'"': "&quot;"}))


def url_encoded(text: str) -> str:
    """As ``encoding-type=url`` gives keys back."""
    return quote_plus(text, safe="/*-._")


def quoted(etag: str) -> str:
    """An ETag with its quotes."""
    return f'"{etag}"'


def iso_time(seconds: int) -> str:
    """As in documents; S3 has no milliseconds but shows three digits of them."""
    return time.strftime("%Y-%m-%dT%H:%M:%S.000Z", time.gmtime(seconds))


def parse_document(body: bytes, root: str) -> ET.Element:
    """A document without its namespaces. Raises S3Error: MalformedXML."""
    try:
        # From our own tests only; the parser refuses entities that are not declared.
        parsed = ET.fromstring(body)
    except ET.ParseError:
        raise S3Error("MalformedXML") from None
    for element in parsed.iter():
        element.tag = element.tag.rpartition("}")[2]
    if parsed.tag != root:
        raise S3Error("MalformedXML")
    return parsed
