"""Parses the XML of responses, by the standard library. Knows no document."""

from __future__ import annotations

import re
import sys
import xml.etree.ElementTree as ET
from datetime import UTC, datetime

_NAMES = ("Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec")
_MONTHS = {name: number for number, name in enumerate(_NAMES, 1)}

FORBIDDEN = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\ufffe\uffff]")
"""What no document can hold, not even as a reference (XML 1.0, 2.2)."""
_REFERENCE = re.compile("&#(?:x([0-9a-fA-F]{1,6})|([0-9]{1,7}));")
_PRIVATE = range(0xE000, 0xF900)
"""Code points that mean nothing in Unicode."""


def parse_xml(body: bytes, root: str = "") -> tuple[ET.Element, str]:
    """An XML page.

    Characters that XML forbids are read where stores put them into a key, as they are or as a
    reference: S3 does so where it is not asked for ``encoding-type=url``, and Ceph's gateway also
    then, in the fields that are not keys.

    Entities are refused with the declaration that they need, which no store sends; the names
    of the elements stay as they are, because to copy them would take longer than to parse.

    Args:
        root: local name of the root element; empty: any.

    Returns:
        The root, and what stands before every local name: ``{namespace}`` or nothing.

    Raises:
        ValueError: it is no XML, has a document type, or another root.
    """
    text = body.decode("utf-8-sig")
    if "<!DOCTYPE" in text:
        raise ValueError("a document type")
    try:
        element = ET.fromstring(text)  # noqa: S314 - see above
    except ET.ParseError:
        element = _parse_forbidden(text)
    namespace, _, name = element.tag.rpartition("}")
    if root and name != root:
        raise ValueError("another document")
    return element, f"{namespace}}}" if namespace else ""


def _parse_forbidden(text: str) -> ET.Element:
    """Parse a page with other characters in place of those that XML forbids.

    Raises ValueError: it is no XML for another reason.
    """
    used = {*text, *map(_meant, _REFERENCE.finditer(text))}
    unused = (chr(code) for code in _PRIVATE if chr(code) not in used)
    stand_in = dict(zip(filter(FORBIDDEN.match, sorted(used)), unused, strict=False))

    def replace(found: re.Match[str]) -> str:
        return stand_in.get(_meant(found)) or found[0]

    parsable = _REFERENCE.sub(replace, text).translate(str.maketrans(stand_in))
    try:
        root = ET.fromstring(parsable)  # noqa: S314 - as above
    except ET.ParseError:
        raise ValueError("no XML") from None
    back = str.maketrans({other: character for character, other in stand_in.items()})
    for element in root.iter():
        element.text = element.text and element.text.translate(back)
    return root


def _meant(reference: re.Match[str]) -> str:
    """The character; empty for what is no code point."""
    code: int = int(reference[1], 16) if reference[1] else int(reference[2])
    return chr(code) if code <= sys.maxunicode else ""


def http_time_s(value: str) -> float:
    """Seconds since the epoch, from ``Sun, 06 Nov 1994 08:49:37 GMT`` (RFC 9110, 5.6.7).

    ``email.utils`` takes five times as long, for every entry of a listing.

    Raises:
        ValueError, LookupError: it looks different.
    """
    day, month, year, hour = value[5:7], value[8:11], value[12:16], value[17:19]
    moment = datetime(
        int(year),
        _MONTHS[month],
        int(day),
        int(hour),
        int(value[20:22]),
        int(value[23:25]),
        tzinfo=UTC,
    )
    return moment.timestamp()
